"""hv/p2m: what a guest's frame numbers stand for."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.abi.errno import EINVAL
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.p2m import MAX_GFN, NR_GFNS, PER_PAGE, P2m
from xenemu.x86.paging import Mfn

FAR = 0x12345


@pytest.fixture
def p2m() -> P2m:
    """Frames 1 and 2 of 4 are the guest's RAM."""
    return P2m(range(1, 3))


def test_ram_is_at_its_own_number(p2m):
    assert [p2m.get(gfn) for gfn in range(5)] == [None, 1, 2, None, None]
    assert p2m.lookup(2) == 2


@pytest.mark.parametrize("gfn", [0, 3, 4, -1, 1 << 70])
def test_a_hole_is_no_memory(p2m, gfn):
    assert p2m.get(gfn) is None
    with pytest.raises(XenError) as error:
        p2m.lookup(gfn)
    assert error.value.errno == EINVAL


@pytest.mark.parametrize("gfn", [0, 3, FAR])
def test_a_frame_can_be_elsewhere(p2m, gfn):
    p2m.set(gfn, Mfn(9))
    assert p2m.get(gfn) == 9
    assert p2m.elsewhere == {gfn: 9}
    assert p2m.changed


def test_where_a_frame_is(p2m):
    p2m.set(FAR, Mfn(3))
    assert [p2m.find(Mfn(mfn)) for mfn in range(4)] == [None, 1, 2, FAR]


def test_what_is_removed_is_a_hole(p2m):
    p2m.set(FAR, Mfn(3))
    p2m.changed = False
    assert [p2m.remove(1), p2m.remove(FAR)] == [1, 3]
    assert p2m.changed
    assert (p2m.get(1), p2m.get(FAR), p2m.elsewhere) == (None, None, {})


def test_removing_a_hole_changes_nothing(p2m):
    assert p2m.remove(0) is None
    assert not p2m.changed


def test_ram_that_comes_back_is_at_its_own_number(p2m):
    p2m.set(2, p2m.remove(2))
    assert p2m.elsewhere == {}
    assert p2m.get(2) == 2


def test_the_highest_frame(p2m):
    assert p2m.highest == 2
    p2m.set(FAR, Mfn(0))
    assert p2m.highest == FAR
    assert P2m().highest == -1


def test_ram_may_fill_pages_of_the_table_and_share_them():
    hole = 2 * PER_PAGE + 5
    p2m = P2m(range(hole), range(hole + 1, 3 * PER_PAGE + 1))
    places = [gfn for gfn in range(3 * PER_PAGE + 1) if gfn != hole]
    assert list(p2m.places()) == [(gfn, gfn) for gfn in places]
    assert p2m.elsewhere == {}
    for gfn in places:
        assert p2m.remove(gfn) == gfn
    assert p2m._entries == {}


def test_a_granted_frame_leaves_its_place(p2m):
    p2m.map_grant(FAR, Mfn(1))
    assert (p2m.get(FAR), p2m.get(1), p2m.find(Mfn(1))) == (1, None, None)
    p2m.map_grant(2, Mfn(1))
    assert (p2m.get(2), p2m.get(FAR), p2m.granted) == (1, 1, {2, FAR})


def test_a_grant_is_not_replaced(p2m):
    p2m.map_grant(FAR, Mfn(1))
    with pytest.raises(DomainCrash, match="maps a grant"):
        p2m.map_grant(FAR, Mfn(2))
    assert (p2m.get(FAR), p2m.get(2)) == (1, 2)


def test_a_removed_grant_is_an_ordinary_hole(p2m):
    p2m.map_grant(2, Mfn(2))
    assert p2m.get(2) == 2
    p2m.remove(2)
    assert (p2m.get(2), p2m.granted) == (None, set())


@pytest.mark.parametrize("gfn", [NR_GFNS - 1, NR_GFNS, MAX_GFN])
def test_frames_that_no_address_reaches_have_places_too(p2m, gfn):
    p2m.set(gfn, Mfn(9))
    assert (p2m.get(gfn), p2m.find(Mfn(9)), p2m.highest) == (9, gfn, gfn)
    assert p2m.remove(gfn) == 9
    assert (p2m.get(gfn), p2m.find(Mfn(9)), p2m.highest) == (None, None, 2)


def test_the_engine_finds_frames_in_the_table(p2m):
    p2m.set(FAR, Mfn(9))
    assert [p2m.table[gfn] for gfn in (0, 1, FAR, FAR + 1)] == [0, 2, 10, 0]


def test_a_frame_that_wanders_takes_no_memory_of_the_hosts(p2m):
    for page in range(1, 100):
        p2m.set(page * PER_PAGE, Mfn(9))
        p2m.remove(page * PER_PAGE)
    assert [*p2m._entries] == [0]


GFNS = st.sampled_from([0, 1, 2, 3, PER_PAGE, FAR, NR_GFNS - 1, NR_GFNS, MAX_GFN])
STEPS = st.lists(st.tuples(st.sampled_from(["set", "remove", "grant", "load"]), GFNS))


@given(STEPS)
def test_it_is_a_dict_of_frames(steps):
    """Whatever is done to it, it says what a dict of the same would; so does a copy of it."""
    p2m, there = P2m(range(1, 3)), {1: 1, 2: 2}
    engine_looks_at = p2m.table
    for what, gfn in steps:
        mfn = next(mfn for mfn in range(1, 20) if mfn not in there.values())
        if what == "set" and gfn not in there:
            p2m.set(gfn, Mfn(mfn))
            there[gfn] = mfn
        elif what == "remove":
            assert p2m.remove(gfn) == there.pop(gfn, None)
        elif what == "grant" and gfn not in p2m.granted:
            p2m.map_grant(gfn, Mfn(mfn))
            there[gfn] = mfn
        elif what == "load":
            other = copy.deepcopy(p2m)
            p2m.remove(gfn)
            p2m.become(other)
            assert p2m == other
        assert dict(p2m.places()) == dict(sorted(there.items()))
        assert all(p2m.get(gfn) == there.get(gfn) for gfn in (*there, 0, FAR))
        ungranted = {mfn: gfn for gfn, mfn in there.items() if gfn not in p2m.granted}
        assert all(p2m.find(Mfn(mfn)) == ungranted.get(mfn) for mfn in range(20))
        assert p2m.highest == max(there, default=-1)
    assert p2m.table is engine_looks_at
