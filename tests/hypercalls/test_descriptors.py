"""hypercalls/descriptors.py"""

from __future__ import annotations

import struct

import pytest

from fakes import L1, make_pv_current, protect
from hypercalls.descriptors import set_gdt, set_segment_base, update_descriptor
from xenemu.abi.arch_x86.xen import (
    FIRST_RESERVED_GDT_ENTRY,
    SEGBASE_FS,
    SEGBASE_GS_KERNEL,
    SEGBASE_GS_USER,
    SEGBASE_GS_USER_SEL,
)
from xenemu.abi.errno import EFAULT, EINVAL, ENOSYS
from xenemu.errors import XenError
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Hypercall, HypercallTable
from xenemu.hv.frame_table import PGT_seg_desc_page
from xenemu.pv.state import pv

GDT, GDT2, FREE = 40, 41, 42
LIST, END = 0x30000, 80 << 12
CODE64_RING0, CODE64_RING3 = 0x00AF9B000000FFFF, 0x00AFFB000000FFFF
DATA_RING3 = 0x1240F39A3456_FFFF  # base 0x12..., present
TSS = 0x0000890000000067
BASE = 0xFFFF_8888_0000_1234


@pytest.fixture
def current() -> Current:
    current = make_pv_current()
    protect(current, GDT, GDT2)
    return current


def call(current: Current, row: Hypercall, *args: int) -> int:
    assert row.handler is not None
    return row.handler(current, *args) or 0


def refused(current: Current, errno: int, row: Hypercall, *args: int) -> None:
    frames = current.domain.frames
    state, segments = repr(pv(current)), repr(current.cpu)
    counts = list(frames.count), list(frames.type_count), list(frames.type)
    guest = bytes(current.domain.memory.bytes[GDT << 12 :])
    with pytest.raises(XenError) as refusal:
        call(current, row, *args)
    assert refusal.value.errno == errno
    assert (repr(pv(current)), repr(current.cpu)) == (state, segments)
    assert (list(frames.count), list(frames.type_count), list(frames.type)) == counts
    assert bytes(current.domain.memory.bytes[GDT << 12 :]) == guest


# set_gdt.


def test_a_gdt_comes_as_a_list_of_frames(current: Current) -> None:
    current.write(LIST, struct.pack("<2Q", GDT, GDT2))
    call(current, set_gdt, LIST, 513)
    assert (pv(current).gdt_frames, pv(current).gdt_entries) == ([GDT, GDT2], 513)


def test_no_gdt_needs_no_list(current: Current) -> None:
    call(current, set_gdt, END, 0)
    assert pv(current).gdt_frames == []


def test_a_gdts_length_is_checked_before_its_list_is_read(current: Current) -> None:
    refused(current, EINVAL, set_gdt, END, FIRST_RESERVED_GDT_ENTRY + 1)
    refused(current, EINVAL, set_gdt, END, 0xFFFFFFFF)
    refused(current, EFAULT, set_gdt, END, FIRST_RESERVED_GDT_ENTRY)


def test_a_list_that_is_cut_off_changes_nothing(current: Current) -> None:
    current.write(END - 8, struct.pack("<Q", GDT))
    refused(current, EFAULT, set_gdt, END - 8, 513)


def test_a_frame_that_holds_what_it_may_not_is_refused(current: Current) -> None:
    current.domain.memory.words[GDT2 << 9 | 7] = TSS
    current.write(LIST, struct.pack("<2Q", GDT, GDT2))
    refused(current, EINVAL, set_gdt, LIST, 1024)


# update_descriptor.


def test_a_descriptor_is_fixed_up_and_written(current: Current) -> None:
    call(current, update_descriptor, FREE << 12 | 8, CODE64_RING0)
    assert current.domain.memory.words[FREE << 9 | 1] == CODE64_RING3


def test_a_descriptor_page_in_use_is_written(current: Current) -> None:
    current.write(LIST, struct.pack("<Q", GDT))
    call(current, set_gdt, LIST, 512)
    before = current.domain.frames.type_count[GDT]
    call(current, update_descriptor, GDT << 12 | 0xFF8, CODE64_RING3)
    assert current.domain.memory.words[GDT << 9 | 511] == CODE64_RING3
    assert current.domain.frames.type[GDT] == PGT_seg_desc_page
    assert current.domain.frames.type_count[GDT] == before


@pytest.mark.parametrize(
    ("maddr", "descriptor"),
    [
        (FREE << 12 | 4, CODE64_RING3),
        (FREE << 12, TSS),
        (L1 << 12, CODE64_RING3),  # a page table
        (9 << 12, CODE64_RING3),  # not the guest's
        (1 << 60, CODE64_RING3),
        ((1 << 64) - 8, CODE64_RING3),
    ],
)
def test_a_descriptor_is_refused(current: Current, maddr: int, descriptor: int) -> None:
    refused(current, EINVAL, update_descriptor, maddr, descriptor)


# set_segment_base.


def test_fs_and_gs_bases_keep_their_selectors(current: Current) -> None:
    for which, segment in ((SEGBASE_FS, Seg.FS), (SEGBASE_GS_KERNEL, Seg.GS)):
        current.cpu.set_segment(segment, Segment(0x2B))
        call(current, set_segment_base, which, BASE)
        assert current.cpu.segment(segment) == Segment(0x2B, BASE)


def test_the_users_gs_base_waits_for_user_mode(current: Current) -> None:
    call(current, set_segment_base, SEGBASE_GS_USER, BASE)
    assert pv(current).inactive_gs == BASE
    assert current.cpu.segment(Seg.GS).base == 0


@pytest.mark.parametrize("which", [SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL])
def test_a_base_is_canonical(current: Current, which: int) -> None:
    refused(current, EINVAL, set_segment_base, which, 1 << 47)


@pytest.mark.parametrize("which", [4, 0xFFFFFFFF])
def test_there_is_no_such_base(current: Current, which: int) -> None:
    refused(current, EINVAL, set_segment_base, which, 0)


def test_32_bit_guests_have_no_segment_bases(current: Current) -> None:
    current.vcpu.environment = "pv32"
    assert HypercallTable([set_segment_base]).call(current, 25, [0] * 6) == -ENOSYS


def load_user_gs(current: Current, selector: int, descriptor: int = 0) -> None:
    current.domain.memory.words[GDT << 9 | 1] = descriptor
    current.write(LIST, struct.pack("<Q", GDT))
    call(current, set_gdt, LIST, 512)
    current.cpu.set_segment(Seg.GS, Segment(0x33, BASE))
    pv(current).inactive_gs = 0x999
    call(current, set_segment_base, SEGBASE_GS_USER_SEL, selector)


@pytest.mark.parametrize("selector", [8, 11, 0xABCD_0000 | 8])
def test_the_users_gs_is_loaded_by_selector(current: Current, selector: int) -> None:
    load_user_gs(current, selector, DATA_RING3)
    seen = current.cpu.segment(Seg.GS)
    assert (seen.selector, seen.base) == (11, BASE)
    assert pv(current).inactive_gs == 0x12_9A_3456 | 0x12_00_0000 & 0xFF000000


@pytest.mark.parametrize("selector", range(4))
def test_a_null_selector_keeps_its_rpl(current: Current, selector: int) -> None:
    load_user_gs(current, selector)
    assert current.cpu.segment(Seg.GS) == Segment(selector, BASE)
    assert pv(current).inactive_gs == 0


@pytest.mark.parametrize(
    ("selector", "descriptor"),
    [
        (8, 0),
        (8, DATA_RING3 & ~(1 << 47)),  # not present
        (8, 0x00AFF9000000FFFF),  # code that cannot be read
        (0xFFF8, 0),  # beyond the GDT
        (0x0C, 0),  # no LDT
        (0xE008, 0),  # Xen's own code
    ],
)
def test_a_selector_that_cannot_be_loaded_becomes_null(
    current: Current, selector: int, descriptor: int
) -> None:
    load_user_gs(current, selector, descriptor)
    assert current.cpu.segment(Seg.GS) == Segment(0, BASE)
    assert pv(current).inactive_gs == 0
