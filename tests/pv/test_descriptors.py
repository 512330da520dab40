"""pv/descriptors: GDT and LDT."""

from __future__ import annotations

import pytest

from fakes import (
    KERNEL_ONLY,
    PERDOMAIN_L1,
    XEN_GDT,
    ZERO_FRAME,
    make_pv_current,
    protect,
)
from fakes32 import make_pv32_current
from xenemu.abi.arch_x86.xen import (
    FIRST_RESERVED_GDT_ENTRY,
    FLAT_RING3_CS64,
    HYPERVISOR_COMPAT_VIRT_START,
    HYPERVISOR_VIRT_START,
)
from xenemu.abi.errno import EINVAL
from xenemu.errors import XenError
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_seg_desc_page
from xenemu.pv import descriptors
from xenemu.pv.descriptors import XEN_DESCRIPTORS, map_ldt_page, read_descriptor, set_gdt, set_ldt
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.perdomain import LDT_PAGE, PAGES_PER_VCPU, gdt_base, ldt_base
from xenemu.pv.state import pv
from xenemu.x86 import flags
from xenemu.x86.fault import Fault
from xenemu.x86.paging import RW, US, P

CODE64 = 0x00AFFB000000FFFF
FRAME, FRAME2 = 40, 41
LDT = KERNEL_ONLY + (FRAME << 12)


@pytest.fixture
def current() -> Current:
    """With the frames for tables mapped read-only, as a guest has to have them."""
    current = make_pv_current()
    protect(current, FRAME, FRAME2)
    return current


def mapped(current: Current, page: int) -> int:
    return current.domain.memory.table(PERDOMAIN_L1)[page]


def counts(current: Current) -> tuple[list[int], list[int]]:
    return list(current.domain.frames.count), list(current.domain.frames.type_count)


# The GDT.


def test_a_new_gdt_is_empty_but_for_xens_part(current: Current) -> None:
    assert [mapped(current, page) >> 12 for page in range(15)] == [ZERO_FRAME] * 14 + [XEN_GDT]
    assert not mapped(current, 0) & (RW | US)


def test_a_gdt_is_mapped_for_xen_alone(current: Current) -> None:
    set_gdt(current, [FRAME, FRAME2], 600)
    assert [mapped(current, page) >> 12 for page in range(3)] == [FRAME, FRAME2, ZERO_FRAME]
    assert mapped(current, 0) & (P | RW | US) == P | RW
    assert current.domain.frames.type[FRAME] == PGT_seg_desc_page


def test_the_old_gdt_is_let_go(current: Current) -> None:
    before = counts(current)
    set_gdt(current, [FRAME, FRAME2], 1024)
    set_gdt(current, [FRAME], 1)
    assert current.domain.frames.type_count[FRAME] == 1
    set_gdt(current, [], 0)
    assert counts(current) == before
    assert mapped(current, 0) >> 12 == ZERO_FRAME


@pytest.mark.parametrize(
    ("frames", "entries"),
    [
        ([FRAME, 30], 1024),  # mapped writable
        ([FRAME, 9], 1024),  # not the guest's
        ([FRAME, 1 << 52], 1024),
        ([FRAME], FIRST_RESERVED_GDT_ENTRY + 1),
    ],
)
def test_a_gdt_that_is_refused_changes_nothing(
    current: Current, frames: list[int], entries: int
) -> None:
    set_gdt(current, [FRAME2], 512)
    state, before, page = repr(pv(current)), counts(current), mapped(current, 0)
    with pytest.raises(XenError) as refusal:
        set_gdt(current, frames, entries)
    assert refusal.value.errno == EINVAL
    assert (repr(pv(current)), counts(current), mapped(current, 0)) == (state, before, page)


def test_xens_descriptors_are_found_by_selector(current: Current) -> None:
    for selector, descriptor in XEN_DESCRIPTORS[8].items():
        assert read_descriptor(current, selector) == descriptor
    assert read_descriptor(current, FLAT_RING3_CS64) == CODE64


def test_a_guests_descriptor_is_found_in_its_frame(current: Current) -> None:
    current.domain.memory.words[FRAME2 << 9 | 1] = CODE64
    set_gdt(current, [FRAME, FRAME2], 1024)
    assert read_descriptor(current, 513 << 3 | 3) == CODE64
    assert read_descriptor(current, 1024 << 3) == 0


def test_beyond_the_gdt_is_a_protection_fault(current: Current) -> None:
    with pytest.raises(Fault) as fault:
        read_descriptor(current, 0xFFFB)
    assert (fault.value.vector, fault.value.error_code) == (flags.GP, 0xFFF8)


# The LDT.


def test_an_ldt_is_loaded_but_not_yet_mapped(current: Current) -> None:
    set_ldt(current, LDT, 3)
    assert current.cpu.segment(Seg.LDTR) == Segment(8, ldt_base(0), 23, 0x8200)
    assert mapped(current, LDT_PAGE) == 0


def test_no_ldt_is_a_null_register(current: Current) -> None:
    set_ldt(current, LDT, 3)
    set_ldt(current, 0, 0)
    assert current.cpu.segment(Seg.LDTR) == Segment(0)


@pytest.mark.parametrize(
    ("base", "entries"),
    [(LDT + 8, 1), (LDT, 8193), (HYPERVISOR_VIRT_START, 1), (1 << 47, 1), (LDT, 0xFFFFFFFF)],
)
def test_an_impossible_ldt_changes_nothing(current: Current, base: int, entries: int) -> None:
    state = repr(pv(current))
    with pytest.raises(XenError) as refusal:
        set_ldt(current, base, entries)
    assert refusal.value.errno == EINVAL
    assert repr(pv(current)) == state
    assert current.cpu.segment(Seg.LDTR) == Segment(0)


def test_a_page_of_the_ldt_is_mapped_when_used(current: Current) -> None:
    current.domain.memory.words[FRAME << 9 | 2] = CODE64
    set_ldt(current, LDT, 3)
    assert read_descriptor(current, 2 << 3 | 7) == CODE64
    assert mapped(current, LDT_PAGE) & (P | RW | US) == P | RW
    assert mapped(current, LDT_PAGE) >> 12 == FRAME
    assert current.domain.frames.type[FRAME] == PGT_seg_desc_page


def test_the_kernels_tables_are_used_in_user_mode_too(current: Current) -> None:
    set_ldt(current, LDT, 3)
    toggle_guest_mode(current)
    map_ldt_page(current, 0)
    assert pv(current).ldt_frames == {0: FRAME}


def test_a_page_is_mapped_and_counted_once(current: Current) -> None:
    set_ldt(current, LDT, 512)
    map_ldt_page(current, 0)
    before = counts(current)
    map_ldt_page(current, 8)
    assert counts(current) == before


def test_another_ldt_lets_go_of_the_old_ones_pages(current: Current) -> None:
    before = counts(current)
    set_ldt(current, LDT, 1024)
    map_ldt_page(current, 0)
    map_ldt_page(current, 0x1000)
    set_ldt(current, 0, 0)
    assert counts(current) == before
    assert (mapped(current, LDT_PAGE), mapped(current, LDT_PAGE + 1)) == (0, 0)


def test_the_same_ldt_again_keeps_its_pages(current: Current) -> None:
    set_ldt(current, LDT, 512)
    map_ldt_page(current, 0)
    set_ldt(current, LDT, 512)
    assert pv(current).ldt_frames == {0: FRAME}


def test_beyond_the_ldt_is_a_protection_fault(current: Current) -> None:
    set_ldt(current, LDT, 3)
    with pytest.raises(Fault) as fault:
        read_descriptor(current, 3 << 3 | 7)
    assert (fault.value.vector, fault.value.error_code) == (flags.GP, 3 << 3 | 4)


@pytest.mark.parametrize("base", [LDT - (10 << 12), KERNEL_ONLY + (1 << 21)])
def test_a_page_that_cannot_be_mapped_faults_where_the_guest_has_it(
    current: Current, base: int
) -> None:
    """A page mapped writable, and one not mapped."""
    set_ldt(current, base, 3)
    state, before = repr(pv(current)), counts(current)
    with pytest.raises(Fault) as fault:
        map_ldt_page(current, 8, error_code=2)
    assert fault.value.args == (flags.PAGE_FAULT, 2, base + 8)
    assert (repr(pv(current)), counts(current)) == (state, before)


def test_an_ldt_that_runs_off_the_canonical_addresses_faults_by_selector(current: Current) -> None:
    set_ldt(current, (1 << 47) - 0x1000, 1024)
    with pytest.raises(Fault) as fault:
        map_ldt_page(current, 0x1008)
    assert fault.value.args == (flags.GP, 0x1008 | 4, 0)


def test_each_vcpu_has_its_own_place(current: Current) -> None:
    current = make_pv_current(vcpus=2)
    current.vcpu = current.domain.vcpus[1]
    descriptors.map_initial_gdt(current)
    descriptors.load_gdt_register(current)
    assert mapped(current, PAGES_PER_VCPU) >> 12 == ZERO_FRAME
    gdtr = current.cpu.segment(Seg.GDTR)
    assert (gdtr.base, gdtr.limit) == (gdt_base(1), 0xEFFF)
    assert gdt_base(1) == gdt_base(0) + 0x20000


def test_a_32_bit_guest_may_place_its_ldt_where_none_can_be() -> None:
    """Xen looks at the real address space, and lets the first use of a descriptor fail."""
    current = make_pv32_current()
    set_ldt(current, HYPERVISOR_COMPAT_VIRT_START, 4)
    with pytest.raises(Fault) as fault:
        map_ldt_page(current, 8)
    assert (fault.value.vector, fault.value.vaddr) == (
        flags.PAGE_FAULT,
        HYPERVISOR_COMPAT_VIRT_START + 8,
    )
    assert not pv(current).ldt_frames
