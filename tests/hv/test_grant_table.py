"""hv/grant_table"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import DOMID, make_current, make_domain, make_pvh_current
from grantfakes import HEAP, OTHER, PAGE, REF, STRANGER, grant, granting, refused, set_status, state
from xenemu.abi.errno import EBUSY, EINVAL, ENOMEM, ERANGE
from xenemu.abi.grant_table import (
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_writing,
    grant_entry_v1,
    grant_entry_v2,
)
from xenemu.errors import DomainCrash, XenError
from xenemu.hv import grant_table
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.grant_table import GNTPIN_devr_inc, GNTPIN_hstr_inc, GNTPIN_hstw_inc
from xenemu.hv.heap import Heap
from xenemu.hv.state.domain import DOM0, Domain

READ, WRITE = GNTPIN_hstr_inc, GNTPIN_hstw_inc
MAX_PINS = 128  # of each kind
READONLY = GTF_permit_access | GTF_readonly


@pytest.fixture
def domain() -> Domain:
    """A domain whose grant REF gives itself a page."""
    return granting(make_current()).domain


@pytest.fixture
def v2(domain: Domain) -> Domain:
    """The same in version 2."""
    grant_table.set_version(domain, 2)
    grant(domain, REF, PAGE)
    return domain


def acquire(domain: Domain, incr: int, by: int = DOMID, mapping: bool = False) -> int:
    return grant_table.acquire(domain, by, REF, incr, mapping).mfn


def refused_version(domain: Domain, errno: int, version: int) -> None:
    before = state(domain)
    with pytest.raises(XenError) as error:
        grant_table.set_version(domain, version)
    assert error.value.errno == errno
    assert state(domain) == before


# The frames.


def test_a_grown_table_is_the_guests_to_map_and_never_a_page_table(domain: Domain) -> None:
    grant_table.grow(domain, 3)
    assert len(domain.grants.frames) == 3
    for mfn in domain.grants.frames:
        assert domain.frames.owner[mfn] == DOMID
        with pytest.raises(XenError, match="other type in use"):
            domain.frames.get_page_type(mfn, PGT_l1_page_table)


def test_a_table_never_shrinks(domain: Domain) -> None:
    grant_table.grow(domain, 2)
    grant_table.grow(domain, 0)
    assert len(domain.grants.frames) == 2


@pytest.mark.parametrize("nr_frames", [65, len(HEAP) + 2])
def test_a_table_has_a_limit_and_so_has_the_machine(domain: Domain, nr_frames: int) -> None:
    refused(domain, GNTST_general_error, lambda: grant_table.grow(domain, nr_frames))


def test_status_frames_grow_with_the_table(v2: Domain) -> None:
    assert len(v2.grants.status_frames) == 1
    v2.frames.add_to_heap([3, 4, 5])
    grant_table.grow(v2, 9)
    assert (len(v2.grants.frames), len(v2.grants.status_frames)) == (9, 2)


def test_a_status_frame_brings_the_frames_that_it_is_for(v2: Domain) -> None:
    v2.grants.max_frames = 8
    assert grant_table.frame_at(v2, 0, status=True) == v2.grants.status_frames[0]
    assert len(v2.grants.frames) == 1
    before = state(v2)
    with pytest.raises(XenError) as error:
        grant_table.frame_at(v2, 1, status=True)
    assert error.value.errno == EINVAL
    assert state(v2) == before


# Versions.


def test_a_new_version_empties_the_table_but_for_the_toolstacks_grants(domain: Domain) -> None:
    grant(domain, 1, OTHER, GTF_permit_access | GTF_reading, to=0)
    grant_table.set_version(domain, 2)
    assert grant_table.read_entry(domain, 1) == grant_entry_v2(GTF_permit_access, 0, 0, 0, OTHER)
    assert grant_table.read_status(domain, 1) == GTF_reading
    assert grant_table.read_entry(domain, REF) == grant_entry_v2(0, 0, 0, 0, 0)
    assert grant_table.nr_entries(domain) == 256


def test_back_in_version_1_a_kept_grant_shows_its_status_and_the_frames_are_given_back(
    domain: Domain,
) -> None:
    grant(domain, 1, OTHER, GTF_permit_access | GTF_reading, to=0)
    heap = list(domain.frames.heap)
    grant_table.set_version(domain, 2)
    grant(domain, 2, OTHER, GTF_accept_transfer)
    grant_table.set_version(domain, 1)
    kept = grant_entry_v1(GTF_permit_access | GTF_reading, 0, OTHER)
    assert grant_table.read_entry(domain, 1) == kept
    assert grant_table.read_entry(domain, 2) == grant_entry_v1(0, 0, 0)
    assert (list(domain.frames.heap), domain.grants.status_frames) == (heap, [])


def test_the_same_version_again_changes_nothing(v2: Domain) -> None:
    before = state(v2)
    grant_table.set_version(v2, 2)
    assert state(v2) == before


@pytest.mark.parametrize("version", [0, 3])
def test_there_is_no_other_version(domain: Domain, version: int) -> None:
    refused_version(domain, EINVAL, version)


def test_a_grant_in_use_keeps_the_version(domain: Domain) -> None:
    acquire(domain, READ)
    refused_version(domain, EBUSY, 2)


def test_a_kept_grant_may_be_in_use(domain: Domain) -> None:
    grant(domain, 1, OTHER)
    grant_table.acquire(domain, DOMID, 1, READ, mapping=False)
    grant_table.set_version(domain, 2)
    grant_table.release(domain, 1, READ)
    assert grant_table.read_status(domain, 1) == 0


@pytest.mark.parametrize(("flags", "frame"), [(GTF_permit_access, 1 << 32), (GTF_transitive, PAGE)])
def test_what_version_1_cannot_say_is_not_lost(v2: Domain, flags: int, frame: int) -> None:
    grant(v2, 7, frame, flags)
    refused_version(v2, ERANGE, 1)


def test_a_status_frame_that_is_mapped_is_kept(v2: Domain) -> None:
    v2.frames.get_page(v2.grants.status_frames[0], DOMID)
    refused_version(v2, EBUSY, 1)


def test_without_memory_there_are_no_status_frames(domain: Domain) -> None:
    domain.frames.heap = Heap(domain.memory.nr_frames)
    refused_version(domain, ENOMEM, 2)


def test_status_frames_leave_the_physmap_and_one_in_use_is_the_end() -> None:
    domain = make_pvh_current().domain
    assert domain.p2m is not None
    domain.frames.add_to_heap(HEAP)
    grant_table.grow(domain, 1)
    for used in (False, True):
        grant_table.set_version(domain, 2)
        status = domain.grants.status_frames[0]
        domain.p2m.set(0x1000, status)
        if used:
            domain.frames.get_page(status, DOMID)
            with pytest.raises(DomainCrash, match="status frame"):
                grant_table.set_version(domain, 1)
        else:
            grant_table.set_version(domain, 1)
        assert domain.p2m.get(0x1000) is None


# Entries.


def test_the_toolstack_seeds_grants_for_dom0() -> None:
    domain = make_domain()
    domain.frames.add_to_heap(HEAP)
    grant_table.seed(domain, 1, PAGE)
    assert grant_table.read_entry(domain, 1) == grant_entry_v1(GTF_permit_access, 0, PAGE)


@pytest.mark.parametrize("version", [1, 2])
def test_entries_are_swapped_with_their_status(domain: Domain, version: int) -> None:
    grant_table.set_version(domain, version)
    grant(domain, REF, PAGE)
    last = grant_table.nr_entries(domain) - 1
    set_status(domain, REF, GTF_writing)
    grant_table.swap(domain, REF, last)
    assert grant_table.read_entry(domain, last).frame == PAGE
    assert grant_table.read_status(domain, last) & GTF_writing
    assert (grant_table.read_entry(domain, REF).frame, grant_table.read_status(domain, REF)) == (
        0,
        0,
    )


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [(REF, 512, GNTST_bad_gntref), (512, REF, GNTST_bad_gntref), (10, REF, GNTST_eagain)],
)
def test_entries_that_cannot_be_swapped(domain: Domain, a: int, b: int, status: int) -> None:
    acquire(domain, READ)
    refused(domain, status, lambda: grant_table.swap(domain, a, b))


# Pinning.


@pytest.mark.parametrize("version", [1, 2])
def test_the_status_shows_that_a_grant_is_in_use(domain: Domain, version: int) -> None:
    grant_table.set_version(domain, version)
    grant(domain, REF, PAGE)

    def in_use() -> int:
        return grant_table.read_status(domain, REF) & (GTF_reading | GTF_writing)

    acquire(domain, WRITE)
    acquire(domain, READ)
    assert in_use() == GTF_reading | GTF_writing
    grant_table.release(domain, REF, WRITE)
    assert in_use() == GTF_reading
    grant_table.release(domain, REF, READ)
    assert in_use() == 0
    assert grant_table.read_entry(domain, REF).flags == GTF_permit_access


@pytest.mark.parametrize(("to", "by"), [(DOM0, DOMID), (DOMID, DOM0)])
def test_a_grant_is_its_grantees_alone(domain: Domain, to: int, by: int) -> None:
    grant(domain, REF, PAGE, to=to)
    refused(domain, GNTST_general_error, lambda: acquire(domain, READ, by))
    assert acquire(domain, READ, to) == PAGE
    assert domain.grants.active[REF].domid == to
    grant(domain, REF, PAGE, GTF_permit_access | GTF_reading, to=by)
    refused(domain, GNTST_general_error, lambda: acquire(domain, READ, by))
    grant_table.release(domain, REF, READ)
    assert acquire(domain, READ, by) == PAGE


def test_a_grant_in_use_keeps_its_frame(domain: Domain) -> None:
    acquire(domain, READ)
    grant(domain, REF, OTHER)
    assert acquire(domain, READ) == PAGE
    assert acquire(domain, WRITE, mapping=True) == PAGE
    assert acquire(domain, WRITE) == PAGE


def test_a_grant_in_use_for_reading_is_not_written_once_it_is_of_another_frame(
    domain: Domain,
) -> None:
    acquire(domain, READ)
    grant(domain, REF, OTHER, GTF_permit_access | GTF_reading)
    refused(domain, GNTST_general_error, lambda: acquire(domain, WRITE))


def test_a_grant_in_use_is_not_used_once_its_frame_is_gone(domain: Domain) -> None:
    acquire(domain, READ)
    domain.frames.release(PAGE)
    refused(domain, GNTST_general_error, lambda: acquire(domain, READ, mapping=True))


@pytest.mark.parametrize(
    ("flags", "to", "frame", "incr", "status"),
    [
        (GTF_permit_access, STRANGER, PAGE, READ, GNTST_general_error),
        (0, DOMID, PAGE, READ, GNTST_general_error),
        (GTF_accept_transfer, DOMID, PAGE, READ, GNTST_general_error),
        (GTF_transitive, DOMID, PAGE, READ, GNTST_general_error),
        (READONLY, DOMID, PAGE, WRITE, GNTST_general_error),
        (GTF_permit_access, DOMID, 0xFFFFFFFF, READ, GNTST_bad_page),
        (GTF_permit_access, DOMID, 5, WRITE, GNTST_bad_page),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_an_entry_that_does_not_allow_it(
    domain: Domain, version: int, flags: int, to: int, frame: int, incr: int, status: int
) -> None:
    grant_table.set_version(domain, version)
    grant(domain, REF, frame, flags, to)
    refused(domain, status, lambda: acquire(domain, incr, mapping=True))


def test_a_grant_in_use_for_reading_may_become_read_only(domain: Domain) -> None:
    acquire(domain, READ)
    grant(domain, REF, PAGE, READONLY | GTF_reading)
    refused(domain, GNTST_general_error, lambda: acquire(domain, WRITE))
    acquire(domain, READ)


def test_a_part_of_a_page_is_not_mapped(v2: Domain) -> None:
    grant_table.write_entry(
        v2, REF, grant_entry_v2(GTF_permit_access | GTF_sub_page, DOMID, 0, 4096, PAGE)
    )
    refused(v2, GNTST_general_error, lambda: acquire(v2, READ, mapping=True))
    acquire(v2, READ)


@pytest.mark.parametrize("incr", [READ, WRITE, GNTPIN_devr_inc])
def test_pins_of_each_kind_are_counted_up_to_a_limit(domain: Domain, incr: int) -> None:
    for _ in range(MAX_PINS):
        acquire(domain, incr, mapping=True)
    act: Callable[[], object] = lambda: acquire(domain, incr, mapping=True)  # noqa: E731
    refused(domain, GNTST_general_error, act)
    acquire(domain, WRITE if incr == READ else READ)


def test_what_failed_to_pin_shows_no_use(domain: Domain) -> None:
    """Not even what the guest itself wrote there, as Xen clears it."""
    grant(domain, REF, 0xFFFFFFFF, GTF_permit_access | GTF_reading)
    with pytest.raises(Exception, match="does not belong"):
        acquire(domain, READ)
    assert grant_table.read_status(domain, REF) == GTF_permit_access
