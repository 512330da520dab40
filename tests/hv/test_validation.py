"""Validation in steps: what others see in between, and that it comes to the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from xenemu.abi.errno import EBUSY, EINVAL
from xenemu.errors import XenError
from xenemu.hv.frame_table import UNLIMITED
from xenemu.hv.memory import Memory
from xenemu.hv.pagecheck import recount
from xenemu.hv.pagetype import (
    PV32,
    Frames,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_seg_desc_page,
    PGT_writable_page,
    Restart,
)
from xenemu.hv.validation import L1_WORK
from xenemu.x86.paging import RW, US, Mfn, P

GUEST, OTHER = 1, 2
L4, L3, L2, LAST_L2 = 16, 17, 18, 19
L1S = range(20, 28)  # four in each L2
DATA, SPARE, FOREIGN = 28, 29, 40
TABLE = P | RW | US
STEP = L1_WORK // 2  # work for one L1 table in each call


def make() -> Frames:
    """A tree of eight L1 tables below two L2, not validated."""
    frames = Frames(Memory(48))
    frames.assign(Mfn(16), GUEST, 16)
    frames.assign(Mfn(FOREIGN), OTHER)
    frames.xen_slots = [(256, 0x7063)]
    link(frames, L4, 0, L3)
    link(frames, L3, 0, L2)
    link(frames, L3, 1, LAST_L2)
    for number, l1 in enumerate(L1S):
        link(frames, L2 + number // 4, number % 4, l1)
        frames.memory.table(Mfn(l1))[5] = DATA << 12 | P | RW
    return frames


@pytest.fixture
def frames() -> Frames:
    return make()


def link(frames: Frames, table: int, index: int, target: int) -> None:
    frames.memory.table(Mfn(table))[index] = target << 12 | TABLE


def state(frames: Frames) -> list[object]:
    return [
        bytes(frames.memory.bytes),
        list(frames.count),
        list(frames.type),
        list(frames.type_count),
        bytes(frames.flags),
        dict(frames.partial),
        list(frames.old_tables),
    ]


def steps(frames: Frames, call: Callable[..., None], *args: int) -> Iterator[None]:
    """Issue a call again and again, with little work allowed to each, until it is through."""
    while True:
        frames.work_left = STEP
        try:
            call(*args)
        except Restart:
            assert recount(frames) == []
            yield
        else:
            return


def validated(frames: Frames, mfns: range = L1S) -> int:
    return sum(frames.type[mfn] == PGT_l1_page_table for mfn in mfns)


def drop(frames: Frames) -> int:
    """Drop what is to be dropped; how many calls it took."""
    calls = 1
    frames.work_left = STEP
    while not frames.put_old_tables():
        assert recount(frames) == []
        frames.work_left = STEP
        calls += 1
    return calls


def refused(errno: int, call: Callable[..., object], *args: int) -> None:
    with pytest.raises(XenError) as refusal:
        call(*args)
    assert refusal.value.errno == errno, refusal.value.reason


def test_in_steps_it_comes_to_the_same_as_at_once(frames: Frames) -> None:
    at_once = make()
    at_once.pin(L4, GUEST, PGT_l4_page_table)
    seen = [validated(frames) for _ in steps(frames, frames.pin, L4, GUEST, PGT_l4_page_table)]
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert state(frames) == state(at_once)
    assert recount(frames) == []


def test_a_partially_validated_table_has_its_type_and_is_not_to_be_changed(
    frames: Frames,
) -> None:
    pin = steps(frames, frames.pin, L4, GUEST, PGT_l4_page_table)
    next(pin)
    assert frames.partial == {L4: 0, L3: 0, L2: 1}
    for mfn in (L4, L3, L2):
        before = state(frames)
        refused(EINVAL, frames.get_page_type, mfn, PGT_writable_page)
        refused(EINVAL, frames.get_page_type, mfn, PGT_seg_desc_page)
        refused(EINVAL, frames.mod_entry, mfn << 12 | 8 * 300, 0, GUEST)
        refused(EINVAL, frames.unpin, mfn, GUEST)
        assert state(frames) == before
    assert "in part" in frames.describe(L4)


def test_what_is_not_reached_yet_is_still_free(frames: Frames) -> None:
    pin = steps(frames, frames.pin, L4, GUEST, PGT_l4_page_table)
    next(pin)
    frames.memory.clear_frame(Mfn(L1S[-1]))
    frames.pin(L1S[-1], GUEST, PGT_l2_page_table)
    refused(EINVAL, lambda: [*pin])
    drop(frames)
    frames.work_left = UNLIMITED
    frames.unpin(L1S[-1], GUEST)
    assert recount(frames) == []
    assert not any(frames.type_count)


def test_another_may_complete_a_part(frames: Frames) -> None:
    pin = steps(frames, frames.pin, L4, GUEST, PGT_l4_page_table)
    next(pin)
    frames.work_left = UNLIMITED
    frames.pin(L3, GUEST, PGT_l3_page_table)
    assert frames.partial == {L4: 0}
    assert validated(frames) == len(L1S)
    assert [*pin] == []
    assert (frames.type_count[L3], frames.count[L3]) == (2, 3)
    assert recount(frames) == []


def test_another_may_complete_a_part_and_use_it_as_something_else(frames: Frames) -> None:
    pin = steps(frames, frames.pin, L4, GUEST, PGT_l4_page_table)
    next(pin)
    frames.work_left = UNLIMITED
    frames.pin(L3, GUEST, PGT_l3_page_table)
    frames.unpin(L3, GUEST)
    frames.get_page_and_type(L3, GUEST, PGT_writable_page)
    refused(EINVAL, lambda: [*pin])
    drop(frames)
    frames.put_page_and_type(L3)
    assert recount(frames) == []
    assert not any(frames.type_count)


def test_a_late_refusal_has_all_dropped_in_steps(frames: Frames) -> None:
    frames.memory.table(Mfn(L1S[-1]))[7] = FOREIGN << 12 | P
    counts = list(frames.count)
    refused(EBUSY, lambda: [*steps(frames, frames.pin, L4, GUEST, PGT_l4_page_table)])
    assert frames.old_tables
    assert recount(frames) == []
    assert drop(frames) > 1
    assert (list(frames.count), frames.partial) == (counts, {})
    assert not any(frames.type_count)


def test_what_a_refusal_leaves_validated_is_adjusted(frames: Frames) -> None:
    """Else one could get hold of it before it is dropped, without what Xen sets in it."""
    frames.memory.table(Mfn(L1S[1]))[7] = FOREIGN << 12 | P
    frames.work_left = L1_WORK + STEP
    refused(EBUSY, frames.pin, L2, GUEST, PGT_l2_page_table)
    assert frames.old_tables
    frames.pin(L1S[0], GUEST, PGT_l1_page_table)
    assert frames.memory.table(Mfn(L1S[0]))[5] & US
    drop(frames)
    assert recount(frames) == []


def test_a_tree_is_dropped_in_steps(frames: Frames) -> None:
    counts = list(frames.count)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    frames.work_left = 1
    frames.unpin(L4, GUEST)
    assert frames.old_tables == [L3]
    assert recount(frames) == []
    refused(EINVAL, frames.get_page_type, L3, PGT_writable_page)
    assert drop(frames) == 2
    assert (list(frames.count), frames.partial) == (counts, {})
    assert not any(frames.type_count)


def test_a_table_that_is_to_be_dropped_can_be_had_again(frames: Frames) -> None:
    frames.pin(L3, GUEST, PGT_l3_page_table)
    frames.work_left = 0
    frames.unpin(L3, GUEST)
    frames.work_left = UNLIMITED
    frames.pin(L3, GUEST, PGT_l3_page_table)
    assert (frames.old_tables, frames.partial) == ([L3], {})
    drop(frames)
    assert (frames.type_count[L3], frames.count[L3], validated(frames)) == (1, 2, len(L1S))
    assert recount(frames) == []


def test_a_new_entry_is_validated_in_steps_before_it_is_written(frames: Frames) -> None:
    frames.memory.table(Mfn(L4))[0] = 0
    frames.pin(L4, GUEST, PGT_l4_page_table)
    change = steps(frames, frames.mod_entry, L4 << 12, L3 << 12 | TABLE, GUEST)  # type: ignore[arg-type]
    next(change)
    assert not frames.memory.table(Mfn(L4))[0]
    assert len([*change]) == len(L1S) - 2
    assert frames.memory.table(Mfn(L4))[0] == L3 << 12 | TABLE
    assert recount(frames) == []


def test_an_old_entrys_tree_is_dropped_in_steps(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    frames.work_left = 0
    frames.mod_entry(L4 << 12, 0, GUEST)
    assert (frames.old_tables, frames.memory.table(Mfn(L4))[0]) == ([L3], 0)
    drop(frames)
    assert not validated(frames)
    assert recount(frames) == []


def test_the_last_l2_of_pae_is_validated_in_steps(frames: Frames) -> None:
    frames.rules, frames.xen_slots = PV32, [(510, 0x7063)]
    frames.memory.table(Mfn(L3))[0] = L2 << 12 | P
    frames.memory.table(Mfn(L3))[1] = 0
    frames.memory.table(Mfn(L3))[3] = LAST_L2 << 12 | P
    assert len([*steps(frames, frames.pin, L3, GUEST, PGT_l3_page_table)]) == len(L1S) - 1
    assert validated(frames) == len(L1S)
    frames.unpin(L3, GUEST)
    drop(frames)
    assert recount(frames) == []
    # What PDPTEs may not have is not left in them.
    assert frames.memory.table(Mfn(L3))[0] == L2 << 12 | P


def test_a_domain_that_is_gone_leaves_nothing(frames: Frames) -> None:
    frames.pin(L2, GUEST, PGT_l2_page_table)
    next(steps(frames, frames.pin, L4, GUEST, PGT_l4_page_table))
    frames.pin(L1S[7], GUEST, PGT_l1_page_table)
    frames.unpin(L2, GUEST)
    assert frames.relinquish(GUEST) == []
    assert recount(frames) == []
    assert (len(frames.heap), frames.pages[GUEST].tot_pages) == (16, 0)


def test_relinquishing_tells_of_what_is_still_held(frames: Frames) -> None:
    frames.get_page_and_type(DATA, GUEST, PGT_writable_page)
    (sentence,) = frames.relinquish(GUEST)
    assert f"mfn {DATA:#x}" in sentence
