"""hv/pagetype: the PAE tables of a 32-bit guest."""

from __future__ import annotations

import pytest

from xenemu.abi.errno import EINVAL, EPERM, ERANGE
from xenemu.abi.xen import VMASST_TYPE_pae_extended_cr3
from xenemu.errors import XenError
from xenemu.hv.frame_table import PGT_pae_xen_l2
from xenemu.hv.memory import Memory
from xenemu.hv.pagecheck import recount
from xenemu.hv.pagetype import (
    PV32,
    Frames,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_writable_page,
)
from xenemu.x86.paging import NX, PCD, PSE, PWT, RW, US, A, G, Mfn, P

GUEST = 1
ROOT, L2, LAST_L2, L1, OTHER = 4, 5, 6, 7, 8
XEN_SLOT, XEN_ENTRY = 510, 0x1063
LINK = P | RW | US


@pytest.fixture
def frames() -> Frames:
    """ROOT[0] -> L2, ROOT[3] -> LAST_L2; nothing is a table yet."""
    frames = Frames(Memory(16), PV32)
    frames.assign(Mfn(4), GUEST, 8)
    frames.xen_slots = [(XEN_SLOT, XEN_ENTRY)]
    link(frames, ROOT, 0, L2 << 12 | P)
    link(frames, ROOT, 3, LAST_L2 << 12 | P)
    return frames


def table(frames: Frames, mfn: int) -> memoryview:
    return frames.memory.table(Mfn(mfn))


def link(frames: Frames, mfn: int, index: int, entry: int) -> None:
    table(frames, mfn)[index] = entry


def snapshot(frames: Frames) -> object:
    lists = (frames.type, frames.type_count, frames.count, frames.flags)
    return bytes(frames.memory.bytes), [list(one) for one in lists]


def refused(frames: Frames, operation: object, *args: object, errno: int = EINVAL) -> None:
    before = snapshot(frames)
    with pytest.raises(XenError) as error:
        operation(*args)  # type: ignore[operator]
    assert error.value.errno == errno
    assert snapshot(frames) == before
    assert recount(frames) == []


def pin(frames: Frames, mfn: int = ROOT, level: int = PGT_l3_page_table) -> None:
    frames.pin(mfn, GUEST, level)


def change(frames: Frames, mfn: int, index: int, entry: int) -> bool:
    return frames.mod_entry(mfn << 12 | index << 3, entry, GUEST)


def test_a_root_has_four_entries_and_the_last_one_leads_to_xen(frames: Frames) -> None:
    link(frames, ROOT, 4, 0xDEAD000)
    link(frames, ROOT, 511, OTHER << 12 | P)
    pin(frames)
    assert [frames.type[mfn] for mfn in (ROOT, L2, LAST_L2)] == [
        PGT_l3_page_table,
        PGT_l2_page_table,
        PGT_pae_xen_l2,
    ]
    assert table(frames, ROOT).tolist() == [L2 << 12 | LINK, 0, 0, LAST_L2 << 12 | LINK] + [0] * 508
    assert (table(frames, LAST_L2)[XEN_SLOT], table(frames, L2)[XEN_SLOT]) == (XEN_ENTRY, 0)
    assert recount(frames) == []


def test_xens_slots_hold_nothing_of_the_guests(frames: Frames) -> None:
    first = PV32.xen_slots.start
    link(frames, LAST_L2, first, OTHER << 12 | P)
    link(frames, L2, first, OTHER << 12 | P)  # where it is an ordinary table
    pin(frames)
    assert table(frames, LAST_L2)[first] == 0
    assert frames.type[OTHER] == PGT_l1_page_table
    frames.unpin(ROOT, GUEST)
    assert frames.type[LAST_L2] == frames.type[OTHER] == PGT_writable_page
    assert recount(frames) == []


def test_a_root_needs_its_fourth_entry(frames: Frames) -> None:
    link(frames, ROOT, 3, 0)
    refused(frames, pin, frames)


def test_the_last_l2_is_not_shared_by_two_roots(frames: Frames) -> None:
    pin(frames)
    link(frames, OTHER, 3, LAST_L2 << 12 | P)
    refused(frames, pin, frames, OTHER)


def test_the_last_l2_is_not_shared_within_a_root(frames: Frames) -> None:
    link(frames, ROOT, 0, LAST_L2 << 12 | P)
    refused(frames, pin, frames)


def test_a_pinned_l2_cannot_become_the_last_one(frames: Frames) -> None:
    pin(frames, LAST_L2, PGT_l2_page_table)
    refused(frames, pin, frames)


def test_the_last_l2_cannot_be_pinned_as_an_ordinary_one(frames: Frames) -> None:
    pin(frames)
    refused(frames, pin, frames, LAST_L2, PGT_l2_page_table)


def test_ordinary_l2s_are_shared(frames: Frames) -> None:
    link(frames, ROOT, 1, L2 << 12 | P)
    pin(frames)
    assert frames.type_count[L2] == 2


@pytest.mark.parametrize("index", [3, 4, 511])
def test_the_last_entry_of_a_root_and_what_is_behind_it_stay(frames: Frames, index: int) -> None:
    pin(frames)
    refused(frames, change, frames, ROOT, index, OTHER << 12 | P)
    refused(frames, change, frames, ROOT, index, 0)


def test_the_other_entries_of_a_root_in_use_may_change(frames: Frames) -> None:
    pin(frames)
    assert not change(frames, ROOT, 1, OTHER << 12 | P)
    assert table(frames, ROOT)[1] == OTHER << 12 | LINK
    assert change(frames, ROOT, 0, 0)
    assert frames.type[L2] == PGT_writable_page
    assert recount(frames) == []


@pytest.mark.parametrize("bit", [NX, 1 << 62, 1 << 52, PWT, PCD, PSE, G])
def test_a_root_entry_has_no_other_bits(frames: Frames, bit: int) -> None:
    pin(frames)
    refused(frames, change, frames, ROOT, 0, L2 << 12 | P | bit)
    refused(frames, change, frames, ROOT, 1, OTHER << 12 | P | bit)
    frames.unpin(ROOT, GUEST)
    link(frames, ROOT, 1, OTHER << 12 | P | bit)
    refused(frames, pin, frames)


def test_a_root_is_below_4_gib_unless_the_guest_knows_long_addresses() -> None:
    frames = Frames(Memory((1 << 20) + 16), PV32)
    root = (1 << 20) + 4
    frames.assign(Mfn(root), GUEST, 4)
    link(frames, root, 3, root + 1 << 12 | P)
    with pytest.raises(XenError) as error:
        frames.pin(root, GUEST, PGT_l3_page_table)
    assert (error.value.errno, frames.type_count[root]) == (ERANGE, 0)
    frames.vm_assist = 1 << VMASST_TYPE_pae_extended_cr3
    frames.pin(root, GUEST, PGT_l3_page_table)


def test_an_l2_entry_may_have_nx(frames: Frames) -> None:
    pin(frames)
    change(frames, L2, 0, L1 << 12 | P | NX)
    assert table(frames, L2)[0] == L1 << 12 | P | NX


@pytest.mark.parametrize("index", [PV32.xen_slots.start, XEN_SLOT, 511])
def test_xens_slots_are_not_the_guests_to_change(frames: Frames, index: int) -> None:
    pin(frames)
    refused(frames, change, frames, LAST_L2, index, OTHER << 12 | P, errno=EPERM)
    change(frames, L2, index, OTHER << 12 | P)


def test_the_last_l2_may_map_all_four_and_itself(frames: Frames) -> None:
    """As kernels with recursive page tables have it."""
    pin(frames)
    change(frames, LAST_L2, 0, L2 << 12 | P)
    change(frames, LAST_L2, 3, LAST_L2 << 12 | P)
    assert recount(frames, []) == []
    refused(frames, change, frames, LAST_L2, 4, L2 << 12 | P | RW)
    frames.unpin(ROOT, GUEST)
    assert frames.type[L2] == frames.type[LAST_L2] == PGT_writable_page
    assert recount(frames) == []


def test_a_root_is_not_its_own_l2(frames: Frames) -> None:
    pin(frames)
    refused(frames, change, frames, ROOT, 1, ROOT << 12 | P)


def test_entries_say_what_the_guest_wrote(frames: Frames) -> None:
    """Ring 1 is not user mode: there is nothing to hide from it."""
    pin(frames)
    change(frames, L2, 0, L1 << 12 | P | A)
    change(frames, L1, 0, OTHER << 12 | P)
    change(frames, L1, 1, OTHER << 12 | P | US)
    assert table(frames, L2)[0] == L1 << 12 | P | A
    assert table(frames, L1).tolist()[:2] == [OTHER << 12 | P, OTHER << 12 | P | US]
