"""A PV guest's GDT and LDT: the frames it offers, mapped where only Xen writes.

Each vcpu has 32 pages of Xen's per-domain area: the guest's GDT in pages 0..13, Xen's own
descriptors in page 14, and the LDT, mapped page by page when first used, from page 16.

In Xen: arch/x86/pv/descriptor-tables.c, arch/x86/pv/mm.c (pv_map_ldt_shadow_page).
"""

from __future__ import annotations

from xenemu.abi.arch_x86.xen import (
    FIRST_RESERVED_GDT_ENTRY,
    FIRST_RESERVED_GDT_PAGE,
    FLAT_RING3_CS32,
    FLAT_RING3_CS64,
    FLAT_RING3_DS32,
)
from xenemu.abi.errno import EINVAL
from xenemu.errors import XenError
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.domain import Current
from xenemu.hv.frame_table import PGT_seg_desc_page
from xenemu.pv.paging import in_guest_range
from xenemu.pv.state import pv, pv_domain
from xenemu.x86 import segment
from xenemu.x86.paging import ADDR, ENTRIES, PAGE_SHIFT, RW, A, D, Mfn, P, walk

PERDOMAIN_VIRT_START = 0xFFFF_8200_0000_0000
PERDOMAIN_L4_SLOT = 260
PAGES_PER_VCPU = 32
LDT_PAGE = 16
VCPUS_PER_L1 = ENTRIES // PAGES_PER_VCPU
LAST_RESERVED_GDT_BYTE = (FIRST_RESERVED_GDT_PAGE + 1) * 4096 - 1
MAX_LDT_ENTRIES = 8192
HYPERVISOR_RW = P | RW | A | D
HYPERVISOR_RO = P | A

# Xen's own descriptors, by selector: flat code and data for 64-bit guests.
XEN_DESCRIPTORS = {
    FLAT_RING3_CS32: 0x00CFFB000000FFFF,
    FLAT_RING3_DS32: 0x00CFF3000000FFFF,
    FLAT_RING3_CS64: 0x00AFFB000000FFFF,
    0xE008: 0x00AF9B000000FFFF,  # __HYPERVISOR_CS
    0xE010: 0x00CF93000000FFFF,  # __HYPERVISOR_DS32
}


def gdt_base(vcpu_id: int) -> int:
    """The linear address of a vcpu's GDT."""
    return PERDOMAIN_VIRT_START + (vcpu_id * PAGES_PER_VCPU << PAGE_SHIFT)


def ldt_base(vcpu_id: int) -> int:
    """The linear address where a vcpu's LDT is mapped."""
    return gdt_base(vcpu_id) + (LDT_PAGE << PAGE_SHIFT)


def fill_xen_gdt(table: memoryview) -> None:
    """Write Xen's own descriptors into their page."""
    for selector, descriptor in XEN_DESCRIPTORS.items():
        table[(selector >> 3) - FIRST_RESERVED_GDT_ENTRY] = descriptor


def load_gdt_register(current: Current) -> None:
    """Point the CPU's GDTR at the vcpu's GDT."""
    base = gdt_base(current.vcpu.vcpu_id)
    current.cpu.set_segment(Seg.GDTR, Segment(0, base, LAST_RESERVED_GDT_BYTE))


def _map_page(current: Current, page: int, entry: int) -> None:
    """Set one of the vcpu's 32 entries in the per-domain area."""
    vcpu_id = current.vcpu.vcpu_id
    l1 = pv_domain(current).perdomain_l1[vcpu_id // VCPUS_PER_L1]
    index = vcpu_id % VCPUS_PER_L1 * PAGES_PER_VCPU + page
    current.domain.memory.table(l1)[index] = entry
    current.cpu.flush_tlb()


def map_initial_gdt(current: Current) -> None:
    """Map an empty GDT with Xen's page behind it, as a new vcpu has it."""
    shared = pv_domain(current)
    for page in range(FIRST_RESERVED_GDT_PAGE):
        _map_page(current, page, shared.zero_page << PAGE_SHIFT | HYPERVISOR_RO)
    _map_page(current, FIRST_RESERVED_GDT_PAGE, shared.xen_gdt << PAGE_SHIFT | HYPERVISOR_RW)


def set_gdt(current: Current, frames: list[int], entries: int) -> None:
    """Replace the guest's part of the GDT by descriptors in `frames`.

    EINVAL if there are too many entries, or a frame cannot hold descriptors; then nothing
    has changed.
    """
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise XenError(EINVAL, f"a GDT of {entries} entries reaches Xen's reserved ones")
    domain, state = current.domain, pv(current)
    taken: list[Mfn] = []
    try:
        for mfn in frames:
            domain.frames.get_page_and_type(mfn, domain.domid, PGT_seg_desc_page)
            taken.append(Mfn(mfn))
    except XenError as error:
        for mfn in taken:
            domain.frames.put_page_and_type(mfn)
        raise XenError(EINVAL, error.reason) from None
    zero = pv_domain(current).zero_page << PAGE_SHIFT | HYPERVISOR_RO
    for page in range(FIRST_RESERVED_GDT_PAGE):
        entry = taken[page] << PAGE_SHIFT | HYPERVISOR_RW if page < len(taken) else zero
        _map_page(current, page, entry)
    for old in state.gdt_frames:
        domain.frames.put_page_and_type(old)
    state.gdt_frames, state.gdt_entries = taken, entries


def set_ldt(current: Current, base: int, entries: int) -> None:
    """Set the LDT to `entries` descriptors at linear address `base` (MMUEXT_SET_LDT).

    EINVAL if it is not page-aligned, too long, or reaches outside the guest's addresses.
    """
    end = base + entries * 8
    okay = in_guest_range(base) and (not entries or in_guest_range(end - 1))
    if base & 0xFFF or not okay or entries > MAX_LDT_ENTRIES:
        raise XenError(EINVAL, f"an LDT of {entries} entries at {base:#x} is not possible")
    state = pv(current)
    if (state.ldt_base, state.ldt_entries) == (base, entries):
        return
    drop_ldt(current)
    state.ldt_base, state.ldt_entries = base, entries
    load_ldt_register(current)


def load_ldt_register(current: Current) -> None:
    """Point the CPU's LDTR at the vcpu's LDT, or nowhere."""
    entries = pv(current).ldt_entries
    value = Segment(0)
    if entries:
        value = Segment(8, ldt_base(current.vcpu.vcpu_id), entries * 8 - 1, 0x8200)
    current.cpu.set_segment(Seg.LDTR, value)


def drop_ldt(current: Current) -> None:
    """Unmap what is mapped of the LDT (invalidate_shadow_ldt)."""
    state = pv(current)
    for page, mfn in sorted(state.ldt_frames.items()):
        _map_page(current, LDT_PAGE + page, 0)
        current.domain.frames.put_page_and_type(mfn)
    state.ldt_frames.clear()


def map_ldt_page(current: Current, offset: int) -> bool:
    """Map the page of the LDT at byte `offset`; whether the guest has such a page."""
    state, domain = pv(current), current.domain
    if offset >= state.ldt_entries * 8:
        return False
    steps = walk(domain.memory.words, Mfn(current.cpu.cr3 >> PAGE_SHIFT), state.ldt_base + offset)
    if steps[-1].level != 1 or not steps[-1].entry & P:
        return False
    mfn = Mfn((steps[-1].entry & ADDR) >> PAGE_SHIFT)
    try:
        domain.frames.get_page_and_type(mfn, domain.domid, PGT_seg_desc_page)
    except XenError:
        return False
    state.ldt_frames[offset >> PAGE_SHIFT] = mfn
    _map_page(current, LDT_PAGE + (offset >> PAGE_SHIFT), mfn << PAGE_SHIFT | HYPERVISOR_RW)
    return True


def read_descriptor(current: Current, selector: int) -> int | None:
    """The descriptor that a selector names, or None beyond its table or if not mapped."""
    state, memory = pv(current), current.domain.memory
    index = selector >> 3
    if selector & segment.SEL_TI:
        if index >= state.ldt_entries:
            return None
        page = index >> 9
        if page not in state.ldt_frames and not map_ldt_page(current, index << 3):
            return None
        return memory.words[state.ldt_frames[page] << 9 | index & 511]
    if index >= FIRST_RESERVED_GDT_ENTRY:
        page, table = index - FIRST_RESERVED_GDT_ENTRY, pv_domain(current).xen_gdt
        return memory.words[table << 9 | page] if page < ENTRIES else None
    if index >> 9 >= len(state.gdt_frames):
        return 0
    return memory.words[state.gdt_frames[index >> 9] << 9 | index & 511]
