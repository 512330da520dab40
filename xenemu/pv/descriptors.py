"""A PV guest's GDT and LDT: frames of the guest's, mapped where only Xen writes.

In Xen: arch/x86/pv/descriptor-tables.c, arch/x86/pv/mm.c (pv_map_ldt_shadow_page).
"""

from __future__ import annotations

from xenemu.abi.arch_x86.xen import (
    COMPAT_RING3_CS,
    COMPAT_RING3_DS,
    FIRST_RESERVED_GDT_ENTRY,
    FIRST_RESERVED_GDT_PAGE,
    FLAT_RING1_CS,
    FLAT_RING1_DS,
    FLAT_RING3_CS32,
    FLAT_RING3_CS64,
    FLAT_RING3_DS32,
)
from xenemu.abi.errno import EINVAL
from xenemu.errors import XenError
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_seg_desc_page
from xenemu.pv.paging import in_guest_range
from xenemu.pv.perdomain import LDT_PAGE, drop_ldt, gdt_base, ldt_base, map_page
from xenemu.pv.state import pv, pv_domain
from xenemu.x86 import flags, segment
from xenemu.x86.fault import Fault
from xenemu.x86.paging import (
    ADDR,
    ENTRIES,
    PAGE_MASK,
    PAGE_SHIFT,
    RW,
    A,
    D,
    Maddr,
    Mfn,
    P,
    is_canonical,
    l1_entry,
)

LAST_RESERVED_GDT_BYTE = (FIRST_RESERVED_GDT_PAGE + 1) * 4096 - 1
MAX_LDT_ENTRIES = 8192
HYPERVISOR_RW = P | RW | A | D
HYPERVISOR_RO = P | A
# How the guest's own pages are mapped, by its width. In 32-bit tables the kernel's ring 1 has the
# rights of Xen's ring 0: it may not write. What the CPU would is left to `mark_accessed`.
TABLE_PAGE = {8: HYPERVISOR_RW, 4: HYPERVISOR_RO}
ACCESSED_BYTE = 5  # of a descriptor, its bit 0

# Xen's own descriptors, by the guest's width and by selector: flat code and data.
XEN_SEGMENTS = {
    0xE008: 0x00AF9B000000FFFF,  # __HYPERVISOR_CS
    0xE010: 0x00CF93000000FFFF,  # __HYPERVISOR_DS32
}
XEN_DESCRIPTORS = {
    8: {
        FLAT_RING3_CS32: 0x00CFFB000000FFFF,
        FLAT_RING3_DS32: 0x00CFF3000000FFFF,
        FLAT_RING3_CS64: 0x00AFFB000000FFFF,
        **XEN_SEGMENTS,
    },
    4: {
        FLAT_RING1_CS: 0x00CFBB000000FFFF,
        FLAT_RING1_DS: 0x00CFB3000000FFFF,
        COMPAT_RING3_CS: 0x00CFFB000000FFFF,
        COMPAT_RING3_DS: 0x00CFF3000000FFFF,
        **XEN_SEGMENTS,
    },
}


def fill_xen_gdt(table: memoryview, width: int) -> None:
    """Write Xen's own descriptors, for a guest of `width`, into their page."""
    for selector, descriptor in XEN_DESCRIPTORS[width].items():
        table[(selector >> 3) - FIRST_RESERVED_GDT_ENTRY] = descriptor


def load_gdt_register(current: Current) -> None:
    """Point the CPU's GDTR at the vcpu's GDT."""
    base = gdt_base(current.vcpu.vcpu_id, current.domain.width)
    current.cpu.set_segment(Seg.GDTR, Segment(0, base, LAST_RESERVED_GDT_BYTE))


def map_initial_gdt(current: Current) -> None:
    """Map an empty GDT and Xen's page after it, as a new vcpu has them."""
    shared = pv_domain(current)
    for page in range(FIRST_RESERVED_GDT_PAGE):
        map_page(current, page, shared.zero_page << PAGE_SHIFT | HYPERVISOR_RO)
    map_page(current, FIRST_RESERVED_GDT_PAGE, shared.xen_gdt << PAGE_SHIFT | HYPERVISOR_RW)


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
    bits = TABLE_PAGE[domain.width]
    for page in range(FIRST_RESERVED_GDT_PAGE):
        entry = taken[page] << PAGE_SHIFT | bits if page < len(taken) else zero
        map_page(current, page, entry)
    for old in state.gdt_frames:
        domain.frames.put_page_and_type(old)
    state.gdt_frames, state.gdt_entries = taken, entries


def set_ldt(current: Current, base: int, entries: int) -> None:
    """Set the LDT to `entries` descriptors at linear address `base` (MMUEXT_SET_LDT).

    EINVAL if it is not page-aligned, too long, or at an address that is Xen's or not canonical. For
    a 32-bit guest, such addresses are all out of reach. If its LDT lies where Xen seems to be for
    it, the fault comes when the LDT is used.
    """
    if base & 0xFFF:
        raise XenError(EINVAL, f"an LDT begins on a page boundary, not at {base:#x}")
    if not in_guest_range(base):
        raise XenError(EINVAL, f"an LDT cannot be at {base:#x}, which is Xen's or not canonical")
    if entries > MAX_LDT_ENTRIES:
        raise XenError(EINVAL, f"an LDT has at most {MAX_LDT_ENTRIES} entries, not {entries}")
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
        value = Segment(
            8, ldt_base(current.vcpu.vcpu_id, current.domain.width), entries * 8 - 1, 0x8200
        )
    current.cpu.set_segment(Seg.LDTR, value)


def map_ldt_page(current: Current, offset: int, error_code: int = 0) -> None:
    """Map the page of the LDT at byte `offset`, if it is not; a Fault if the guest has none.

    `error_code` is that of the access, for the page fault at the guest's own address.
    """
    state, domain = pv(current), current.domain
    page, linear = offset >> PAGE_SHIFT, state.ldt_base + offset
    if page in state.ldt_frames:
        return
    mfn = _ldt_frame(current, linear) if offset < state.ldt_entries * 8 else None
    try:
        if mfn is None:
            raise XenError(EINVAL, f"the LDT has no page at {linear:#x}")
        domain.frames.get_page_and_type(mfn, domain.domid, PGT_seg_desc_page)
    except XenError as error:
        current.log(f"the LDT at {linear:#x} cannot be used: {error.reason}")
        if not is_canonical(linear):
            raise Fault(flags.GP, offset & ~segment.SEL_RPL | segment.SEL_TI) from None
        raise Fault(flags.PAGE_FAULT, error_code, linear) from None
    state.ldt_frames[page] = mfn
    map_page(current, LDT_PAGE + page, mfn << PAGE_SHIFT | TABLE_PAGE[domain.width])


def mark_accessed(current: Current, vaddr: int) -> bool:
    """Set the accessed bit that the CPU could not, in the descriptor mapped at `vaddr`.

    False if the bit is set already, or if there is no code or data descriptor. Then it was not the
    CPU that wrote.
    """
    memory = current.domain.memory
    words, levels = memory.words, current.domain.frames.rules.root_type
    at = l1_entry(words, pv(current).kernel_root, vaddr, levels)
    if at is None or not words[at >> 3] & P:
        return False
    maddr = words[at >> 3] & ADDR | vaddr & PAGE_MASK & -8
    attributes = segment.attributes(words[maddr >> 3])
    if not attributes & segment.S or attributes & segment.TYPE_ACCESSED:
        return False
    byte = Maddr(maddr + ACCESSED_BYTE)
    memory.write_uint(byte, 1, memory.bytes[byte] | 1)
    return True


def _ldt_frame(current: Current, linear: int) -> Mfn | None:
    """The frame that the kernel's tables have at `linear`, whatever mode the guest is in."""
    domain = current.domain
    if not in_guest_range(linear, domain.width):
        return None
    levels = domain.frames.rules.root_type
    words = domain.memory.words
    at = l1_entry(words, pv(current).kernel_root, linear, levels)
    if at is None or not words[at >> 3] & P:
        return None
    return Mfn((words[at >> 3] & ADDR) >> PAGE_SHIFT)


def data_segment(current: Current, selector: int) -> Segment | None:
    """The data segment that Xen loads for the guest; None where the load faults."""
    if segment.is_null(selector):
        return Segment(selector)
    try:
        descriptor = read_descriptor(current, selector)
    except Fault:
        return None
    attributes = segment.attributes(descriptor)
    readable = not attributes & segment.TYPE_CODE or attributes & segment.TYPE_WRITABLE
    conforming = attributes & segment.TYPE_CODE and attributes & segment.TYPE_CONFORMING
    needed = segment.PRESENT | segment.S
    if attributes & needed != needed or not readable:
        return None
    if not conforming and segment.dpl(attributes) < selector & segment.SEL_RPL:
        return None
    base, limit = segment.base(descriptor), segment.limit(descriptor)
    return Segment(selector, base, limit, attributes | segment.TYPE_ACCESSED)


def read_descriptor(current: Current, selector: int) -> int:
    """The descriptor that a selector names; a Fault where the CPU would raise one.

    #GP if the selector lies beyond the table; #PF if the guest does not have the page of the LDT.
    """
    state, memory = pv(current), current.domain.memory
    index = selector >> 3
    if selector & segment.SEL_TI:
        if index >= state.ldt_entries:
            raise Fault(flags.GP, selector & ~segment.SEL_RPL)
        map_ldt_page(current, index << 3)
        return memory.words[state.ldt_frames[index >> 9] << 9 | index & 511]
    if index >= FIRST_RESERVED_GDT_ENTRY + ENTRIES:
        raise Fault(flags.GP, selector & ~segment.SEL_RPL)
    if index >= FIRST_RESERVED_GDT_ENTRY:
        return memory.words[pv_domain(current).xen_gdt << 9 | index & 511]
    if index >> 9 >= len(state.gdt_frames):
        return 0
    return memory.words[state.gdt_frames[index >> 9] << 9 | index & 511]
