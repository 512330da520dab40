"""The rules of page types, one a test. Every refusal changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from xenemu.abi.errno import EBUSY, EINVAL, EPERM
from xenemu.abi.xen import VMASST_TYPE_m2p_strict
from xenemu.errors import XenError
from xenemu.hv.memory import Memory
from xenemu.hv.pagecheck import recount
from xenemu.hv.pagetype import (
    GUEST_KERNEL,
    Frames,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_seg_desc_page,
    PGT_writable_page,
    needs_flush,
)
from xenemu.hv.paging_rules import M2P_L4_SLOT
from xenemu.x86.paging import ADDR, NX, PAT, PCD, PSE, PWT, RW, US, A, D, G, Mfn, P

GUEST, OTHER = 1, 2
SHARED, RO_SHARED, FREE = 4, 5, 6  # frames
L1, L2, L3, L4, DATA, SPARE, FOREIGN = 16, 17, 18, 19, 20, 21, 40
NR_FRAMES = 48
TABLE = P | RW | US
XEN_ENTRY = 0x7063


@pytest.fixture
def frames() -> Frames:
    """A domain with an L4 that leads to an L1, none of them validated."""
    frames = Frames(Memory(NR_FRAMES))
    frames.assign(Mfn(16), GUEST, 16)
    frames.assign(Mfn(FOREIGN), OTHER)
    frames.share_with_guest(Mfn(SHARED), GUEST, writable=True)
    frames.share_with_guest(Mfn(RO_SHARED), GUEST, writable=False)
    frames.xen_slots = [(M2P_L4_SLOT, XEN_ENTRY), (260, XEN_ENTRY)]
    put(frames, L4, 0, L3, TABLE)
    put(frames, L3, 0, L2, TABLE)
    put(frames, L2, 0, L1, TABLE)
    return frames


def put(frames: Frames, table: int, index: int, target: int, bits: int) -> None:
    frames.memory.table(Mfn(table))[index] = target << 12 | bits


def at(table: int, index: int) -> int:
    return table << 12 | index << 3


def entry(frames: Frames, table: int, index: int) -> int:
    return frames.memory.table(Mfn(table))[index]


def state(frames: Frames) -> list[object]:
    return copy.deepcopy(
        [
            bytes(frames.memory.bytes),
            bytes(frames.memory.page_info),
            frames.linear_pt_count,
            list(frames.heap),
            frames.partial,
            frames.old_tables,
        ]
    )


@contextmanager
def refused(frames: Frames, errno: int, why: str = "") -> Iterator[None]:
    before = state(frames)
    with pytest.raises(XenError) as refusal:
        yield
    assert refusal.value.errno == errno, refusal.value.reason
    assert why in refusal.value.reason
    assert state(frames) == before


def mod(frames: Frames, table: int, index: int, value: int, preserve_ad: bool = False) -> bool:
    return frames.mod_entry(at(table, index), value, GUEST, preserve_ad)


# Becoming a table.


def test_an_empty_frame_becomes_a_table_of_any_level(frames: Frames) -> None:
    for level in (PGT_l1_page_table, PGT_l2_page_table, PGT_l3_page_table, PGT_l4_page_table):
        frames.pin(SPARE, GUEST, level)
        assert (frames.type[SPARE], frames.type_count[SPARE], frames.count[SPARE]) == (level, 1, 2)
        frames.unpin(SPARE, GUEST)
        assert (frames.type_count[SPARE], frames.count[SPARE]) == (0, 1)
    assert recount(frames) == []


def test_pinning_a_root_validates_the_tree_below_it(frames: Frames) -> None:
    put(frames, L1, 0, DATA, P | RW)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    assert [frames.type[mfn] for mfn in (L1, L2, L3, L4)] == [1, 2, 3, 4]
    assert (frames.type_count[DATA], frames.count[DATA]) == (1, 2)
    assert recount(frames) == []


def test_unpinning_a_root_lets_the_tree_go(frames: Frames) -> None:
    put(frames, L1, 0, DATA, P | RW)
    counts = list(frames.count)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    frames.unpin(L4, GUEST)
    assert list(frames.count) == counts
    assert not any(frames.type_count[16:])
    assert frames.type[L1] == PGT_writable_page


def test_a_root_table_gets_xens_entries(frames: Frames) -> None:
    put(frames, L4, 260, DATA, P | RW)
    put(frames, L4, 271, DATA, P | RW)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    assert (entry(frames, L4, 260), entry(frames, L4, 271)) == (XEN_ENTRY, 0)
    assert frames.count[DATA] == 1


@pytest.mark.parametrize(("strict", "shown"), [(0, 0), (1, XEN_ENTRY)])
def test_a_root_shows_the_m2p_at_once_only_to_a_strict_guest(
    frames: Frames, strict: int, shown: int
) -> None:
    frames.vm_assist = strict << VMASST_TYPE_m2p_strict
    put(frames, L4, M2P_L4_SLOT, DATA, P | RW)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    assert entry(frames, L4, M2P_L4_SLOT) == shown


def test_a_writable_mapping_forbids_a_table(frames: Frames) -> None:
    put(frames, L1, 0, SPARE, P | RW)
    frames.pin(L1, GUEST, PGT_l1_page_table)
    with refused(frames, EINVAL):
        frames.pin(SPARE, GUEST, PGT_l1_page_table)


def test_a_read_only_mapping_allows_a_table(frames: Frames) -> None:
    put(frames, L1, 0, SPARE, P)
    frames.pin(L1, GUEST, PGT_l1_page_table)
    frames.pin(SPARE, GUEST, PGT_l1_page_table)
    assert recount(frames) == []


def test_a_table_of_one_level_is_not_one_of_another(frames: Frames) -> None:
    frames.pin(L1, GUEST, PGT_l1_page_table)
    with refused(frames, EINVAL):
        frames.pin(L1, GUEST, PGT_l3_page_table)


def test_pinning_twice_is_refused(frames: Frames) -> None:
    frames.pin(L1, GUEST, PGT_l1_page_table)
    with refused(frames, EINVAL):
        frames.pin(L1, GUEST, PGT_l1_page_table)


@pytest.mark.parametrize("mfn", [L1, FOREIGN, FREE, NR_FRAMES, 1 << 60])
def test_unpinning_what_is_not_pinned_is_refused(frames: Frames, mfn: int) -> None:
    with refused(frames, EINVAL):
        frames.unpin(mfn, GUEST)


def test_a_table_in_use_survives_its_unpinning(frames: Frames) -> None:
    frames.pin(L1, GUEST, PGT_l1_page_table)
    frames.pin(L2, GUEST, PGT_l2_page_table)
    frames.unpin(L1, GUEST)
    assert (frames.type[L1], frames.type_count[L1]) == (PGT_l1_page_table, 1)


def test_a_shared_frame_cannot_become_a_table(frames: Frames) -> None:
    for mfn in (SHARED, RO_SHARED):
        with refused(frames, EINVAL):
            frames.pin(mfn, GUEST, PGT_l1_page_table)


# L1 entries.

BAD_L1_ENTRIES = {
    "cache attribute PWT": (DATA << 12 | P | PWT, EINVAL),
    "cache attribute PCD": (DATA << 12 | P | PCD, EINVAL),
    "cache attribute PAT": (DATA << 12 | P | PAT, EINVAL),
    "no RAM": (NR_FRAMES << 12 | P, EPERM),
    "invalid mfn": (ADDR | P, EINVAL),
    "another domain's": (FOREIGN << 12 | P, EBUSY),
    "nobody's": (FREE << 12 | P, EBUSY),
    "writable table": (L2 << 12 | P | RW, EBUSY),
    "writable itself": (L1 << 12 | P | RW, EBUSY),
    "writable read-only share": (RO_SHARED << 12 | P | RW, EBUSY),
}


@pytest.mark.parametrize(("value", "errno"), BAD_L1_ENTRIES.values(), ids=BAD_L1_ENTRIES)
def test_a_bad_l1_entry_is_refused_in_validation(frames: Frames, value: int, errno: int) -> None:
    put(frames, L1, 3, DATA, P | RW)
    put(frames, L1, 4, DATA, P)
    frames.memory.table(Mfn(L1))[5] = value
    with refused(frames, errno):
        frames.pin(L4, GUEST, PGT_l4_page_table)


@pytest.mark.parametrize(("value", "errno"), BAD_L1_ENTRIES.values(), ids=BAD_L1_ENTRIES)
def test_a_bad_l1_entry_is_refused_as_an_update(frames: Frames, value: int, errno: int) -> None:
    put(frames, L1, 5, DATA, P | RW)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    with refused(frames, errno):
        mod(frames, L1, 5, value)


def test_any_entry_that_is_not_present_is_accepted(frames: Frames) -> None:
    frames.pin(L1, GUEST, PGT_l1_page_table)
    assert not mod(frames, L1, 0, ADDR | PCD | RW)
    assert entry(frames, L1, 0) == ADDR | PCD | RW


def test_kernel_mappings_are_marked_and_user_accessible(frames: Frames) -> None:
    put(frames, L1, 0, DATA, P)
    frames.pin(L1, GUEST, PGT_l1_page_table)
    mod(frames, L1, 1, DATA << 12 | P)
    wanted = DATA << 12 | P | US | GUEST_KERNEL
    assert (entry(frames, L1, 0), entry(frames, L1, 1)) == (wanted, wanted)


def test_user_mappings_are_global(frames: Frames) -> None:
    put(frames, L1, 0, DATA, P | US)
    frames.pin(L1, GUEST, PGT_l1_page_table)
    mod(frames, L1, 1, DATA << 12 | P | US)
    wanted = DATA << 12 | P | US | G
    assert (entry(frames, L1, 0), entry(frames, L1, 1)) == (wanted, wanted)


def test_a_kernel_mapping_written_back_stays_as_it_is(frames: Frames) -> None:
    value = DATA << 12 | P | US | GUEST_KERNEL
    put(frames, L1, 0, 0, value)
    frames.pin(L1, GUEST, PGT_l1_page_table)
    mod(frames, L1, 1, value)
    assert (entry(frames, L1, 0), entry(frames, L1, 1)) == (value, value)


def test_a_read_only_mapping_takes_no_type(frames: Frames) -> None:
    frames.pin(L1, GUEST, PGT_l1_page_table)
    mod(frames, L1, 0, DATA << 12 | P)
    assert (frames.count[DATA], frames.type_count[DATA]) == (2, 0)


def test_making_a_mapping_writable_takes_a_type_and_dropping_it_gives_it_back(
    frames: Frames,
) -> None:
    frames.pin(L1, GUEST, PGT_l1_page_table)
    mod(frames, L1, 0, DATA << 12 | P)
    mod(frames, L1, 0, DATA << 12 | P | RW)
    assert (frames.count[DATA], frames.type_count[DATA]) == (2, 1)
    mod(frames, L1, 0, DATA << 12 | P)
    assert (frames.count[DATA], frames.type_count[DATA]) == (2, 0)
    mod(frames, L1, 0, 0)
    assert frames.count[DATA] == 1


def test_the_last_mapping_of_a_released_frame_frees_it(frames: Frames) -> None:
    put(frames, L1, 0, DATA, P | RW)
    frames.pin(L1, GUEST, PGT_l1_page_table)
    frames.release(Mfn(DATA))
    mod(frames, L1, 0, 0)
    assert list(frames.heap) == [DATA]
    assert recount(frames) == []


def test_preserve_ad_keeps_what_the_cpu_set(frames: Frames) -> None:
    put(frames, L1, 0, DATA, P | A | D)
    frames.pin(L1, GUEST, PGT_l1_page_table)
    mod(frames, L1, 0, DATA << 12 | P | RW, preserve_ad=True)
    assert entry(frames, L1, 0) & (A | D) == A | D
    mod(frames, L1, 0, DATA << 12 | P | RW)
    assert not entry(frames, L1, 0) & (A | D)


def test_an_update_of_a_frame_with_code_is_reported(frames: Frames) -> None:
    frames.pin(L1, GUEST, PGT_l1_page_table)
    frames.memory.code[L1] = 1
    mod(frames, L1, 0, DATA << 12 | P)
    assert frames.memory.stale_code == {L1}


# Higher entries.

BAD_L2_ENTRIES = {
    "large page": (SPARE << 12 | TABLE | PSE, EINVAL),
    "global": (SPARE << 12 | TABLE | G, EINVAL),
    "cache attribute": (SPARE << 12 | TABLE | PCD, EINVAL),
    "no RAM": (NR_FRAMES << 12 | TABLE, EINVAL),
    "another domain's": (FOREIGN << 12 | TABLE, EINVAL),
    "wrong level": (L3 << 12 | TABLE, EINVAL),
    "writable recursion": (L2 << 12 | TABLE, EINVAL),
    "shared frame": (SHARED << 12 | TABLE, EINVAL),
}


@pytest.mark.parametrize(("value", "errno"), BAD_L2_ENTRIES.values(), ids=BAD_L2_ENTRIES)
def test_a_bad_l2_entry_is_refused_in_validation(frames: Frames, value: int, errno: int) -> None:
    put(frames, L1, 0, DATA, P)
    frames.memory.table(Mfn(L2))[7] = value
    with refused(frames, errno):
        frames.pin(L4, GUEST, PGT_l4_page_table)


@pytest.mark.parametrize(("value", "errno"), BAD_L2_ENTRIES.values(), ids=BAD_L2_ENTRIES)
def test_a_bad_l2_entry_is_refused_as_an_update(frames: Frames, value: int, errno: int) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    with refused(frames, errno):
        mod(frames, L2, 7, value)


def test_an_update_that_is_the_same_but_for_a_forbidden_bit_is_refused(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    with refused(frames, EINVAL):
        mod(frames, L2, 0, L1 << 12 | TABLE | G)


def test_an_update_validates_the_new_table_and_lets_the_old_one_go(frames: Frames) -> None:
    put(frames, SPARE, 0, DATA, P | RW)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    assert mod(frames, L2, 0, SPARE << 12 | TABLE)
    assert (frames.type[SPARE], frames.type_count[L1]) == (PGT_l1_page_table, 0)
    assert entry(frames, SPARE, 0) == DATA << 12 | P | RW | US | GUEST_KERNEL
    assert recount(frames) == []


def test_a_bad_table_below_a_new_entry_gives_its_own_errno(frames: Frames) -> None:
    put(frames, SPARE, 0, FOREIGN, P)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    with refused(frames, EBUSY):
        mod(frames, L2, 1, SPARE << 12 | TABLE)


def test_higher_entries_are_user_accessible(frames: Frames) -> None:
    put(frames, L2, 0, L1, P | RW)
    frames.pin(L2, GUEST, PGT_l2_page_table)
    mod(frames, L2, 1, SPARE << 12 | P | RW)
    assert entry(frames, L2, 0) & US
    assert entry(frames, L2, 1) & US


@pytest.mark.parametrize("index", [256, 271])
def test_xens_entries_of_a_root_are_refused(frames: Frames, index: int) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    with refused(frames, EINVAL):
        mod(frames, L4, index, 0)


def test_the_entries_beside_xens_are_the_guests(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    for index in (255, 272):
        mod(frames, L4, index, L3 << 12 | TABLE)
    assert frames.type_count[L3] == 3


def test_a_higher_entry_cannot_be_for_another_owners_frame(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    with refused(frames, EINVAL):
        frames.mod_entry(at(L2, 0), 0, OTHER)


# Linear page tables.


def test_a_table_may_point_to_itself_read_only(frames: Frames) -> None:
    put(frames, L4, 300, L4, P | US)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    assert (frames.type_count[L4], frames.count[L4]) == (1, 2)
    frames.unpin(L4, GUEST)
    assert (frames.type_count[L4], frames.count[L4]) == (0, 1)


def test_a_table_may_point_to_a_validated_one_of_its_level(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    put(frames, SPARE, 300, L4, P)
    frames.pin(SPARE, GUEST, PGT_l4_page_table)
    assert (frames.type_count[L4], frames.linear_pt_count) == (2, {SPARE: -1, L4: 1})
    frames.unpin(L4, GUEST)
    assert frames.type[L4] == PGT_l4_page_table
    frames.unpin(SPARE, GUEST)
    assert (frames.type_count[L4], frames.type_count[L1], frames.linear_pt_count) == (0, 0, {})


def test_a_linear_entry_must_be_read_only(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    put(frames, SPARE, 300, L4, P | RW)
    with refused(frames, EINVAL, "is linear"):
        frames.pin(SPARE, GUEST, PGT_l4_page_table)


def test_a_linear_entry_cannot_be_made_writable(frames: Frames) -> None:
    put(frames, L4, 300, L4, P | US)
    frames.pin(L4, GUEST, PGT_l4_page_table)
    with refused(frames, EINVAL, "may not have RW"):
        mod(frames, L4, 300, L4 << 12 | P | US | RW)


def test_linear_tables_do_not_chain(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    put(frames, SPARE, 300, L4, P)
    frames.pin(SPARE, GUEST, PGT_l4_page_table)
    put(frames, DATA, 300, SPARE, P)
    with refused(frames, EINVAL, "not both"):
        frames.pin(DATA, GUEST, PGT_l4_page_table)
    with refused(frames, EINVAL, "not both"):
        mod(frames, L4, 300, SPARE << 12 | P)


@pytest.mark.parametrize(("table", "count"), [(L4, 0x8000), (SPARE, -0x7FFF)])
def test_linear_entries_are_not_without_number(frames: Frames, table: int, count: int) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    frames.pin(SPARE, GUEST, PGT_l4_page_table)
    frames.linear_pt_count[table] = count
    with refused(frames, EINVAL):
        mod(frames, SPARE, 300, L4 << 12 | P)
    frames.linear_pt_count[table] -= 1 if count > 0 else -1
    mod(frames, SPARE, 300, L4 << 12 | P)


def test_a_failed_validation_undoes_linear_entries_too(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    put(frames, SPARE, 300, L4, P)
    put(frames, SPARE, 301, FOREIGN, P)
    with refused(frames, EINVAL):
        frames.pin(SPARE, GUEST, PGT_l4_page_table)


# Descriptors.

CODE64 = 0x00AF9B000000FFFF
LDT_DESCRIPTOR = 0x0000820000000000


def test_descriptors_are_raised_to_the_guests_ring(frames: Frames) -> None:
    frames.memory.table(Mfn(SPARE))[1] = CODE64
    frames.get_page_and_type(SPARE, GUEST, PGT_seg_desc_page)
    assert entry(frames, SPARE, 1) == CODE64 | 3 << 45


def test_a_system_descriptor_is_refused(frames: Frames) -> None:
    frames.memory.table(Mfn(SPARE))[1] = CODE64
    frames.memory.table(Mfn(SPARE))[2] = LDT_DESCRIPTOR
    with refused(frames, EINVAL):
        frames.get_page_and_type(SPARE, GUEST, PGT_seg_desc_page)


def test_descriptors_in_use_are_not_mapped_writable(frames: Frames) -> None:
    frames.get_page_and_type(SPARE, GUEST, PGT_seg_desc_page)
    frames.pin(L1, GUEST, PGT_l1_page_table)
    with refused(frames, EBUSY):
        mod(frames, L1, 0, SPARE << 12 | P | RW)
    frames.put_page_and_type(SPARE)
    mod(frames, L1, 0, SPARE << 12 | P | RW)
    assert recount(frames) == []


# The TLB.


@pytest.mark.parametrize(
    ("old", "new", "flush"),
    [
        (0, P, False),
        (P, P | RW, False),
        (P | NX, P, False),
        (P, P | A | D, False),
        (P, 0, True),
        (P | RW, P, True),
        (P | US, P, True),
        (P, P | NX, True),
        (P | D, P, True),
        (P, 1 << 12 | P, True),
    ],
)
def test_only_what_takes_away_needs_a_flush(old: int, new: int, flush: bool) -> None:
    assert needs_flush(old, new) is flush


# The checker itself.


def test_recount_sees_a_writable_mapping_of_a_table(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    put(frames, L1, 0, L2, P | RW)
    assert any("uses as writable_page" in fault for fault in recount(frames))


def test_recount_sees_a_lost_reference(frames: Frames) -> None:
    frames.pin(L4, GUEST, PGT_l4_page_table)
    frames.count[L2] -= 1
    assert len(recount(frames)) == 1


def test_recount_knows_the_references_it_is_told_of(frames: Frames) -> None:
    frames.get_page_and_type(L4, GUEST, PGT_l4_page_table)
    assert recount(frames) != []
    assert recount(frames, [(L4, PGT_l4_page_table)]) == []
