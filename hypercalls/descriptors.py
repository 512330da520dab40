"""A PV guest's GDT, single descriptors, and segment bases.

Header: public/xen.h, public/arch-x86/xen-x86_64.h. In Xen: arch/x86/pv/descriptor-tables.c,
arch/x86/pv/misc-hypercalls.c.
"""

from __future__ import annotations

from xenemu.abi.arch_x86.xen import (
    FIRST_RESERVED_GDT_ENTRY,
    SEGBASE_FS,
    SEGBASE_GS_KERNEL,
    SEGBASE_GS_USER,
    SEGBASE_GS_USER_SEL,
)
from xenemu.abi.errno import EINVAL
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.dispatch import INT, PTR, PV, U64, ULONG, Hypercall
from xenemu.hv.frame_table import PGT_seg_desc_page, PGT_writable_page
from xenemu.hv.segdesc import check_descriptor, descriptor_refusal
from xenemu.pv import descriptors
from xenemu.pv.msr import set_base
from xenemu.pv.state import pv
from xenemu.x86 import segment
from xenemu.x86.fault import Fault
from xenemu.x86.paging import ENTRIES, Maddr, is_canonical, mfn_of


def _set_gdt(current: Current, frame_list: int, entries: int) -> None:
    """Install a GDT from a list of frames; EINVAL, EFAULT."""
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise XenError(EINVAL, f"a GDT of {entries} entries reaches Xen's reserved ones")
    width = current.vcpu.width
    count = (entries + ENTRIES - 1) // ENTRIES
    data = current.read(frame_list, count * width) if count else b""
    frames = [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]
    descriptors.set_gdt(current, frames, entries)


def _update_descriptor(current: Current, maddr: int, descriptor: int) -> None:
    """Write one descriptor into a descriptor page or a writable page.

    EINVAL if the address is not aligned, if the frame is not the guest's, or if the guest may not
    have such a descriptor.
    """
    domain, mfn = current.domain, mfn_of(maddr)
    if maddr & 7:
        raise XenError(EINVAL, f"descriptor address {maddr:#x} is not aligned")
    checked = check_descriptor(descriptor, current.vcpu.width)
    if checked is None:
        raise XenError(EINVAL, descriptor_refusal(descriptor, current.vcpu.width))
    frames = domain.frames
    frames.get_page(mfn, domain.domid)
    try:
        seg_desc = frames.type[mfn] == PGT_seg_desc_page
        frames.get_page_type(mfn, PGT_seg_desc_page if seg_desc else PGT_writable_page)
    except XenError as error:
        frames.put_page(mfn)
        raise XenError(EINVAL, error.reason) from None
    domain.memory.write_uint(Maddr(maddr), 8, checked)
    frames.put_page_and_type(mfn)


def _set_segment_base(current: Current, which: int, base: int) -> None:
    """Set a segment base, or the user's GS by selector; EINVAL if it is not canonical."""
    state = pv(current)
    if which in (SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL) and not is_canonical(base):
        raise XenError(EINVAL, f"segment base {base:#x} is not canonical")
    if which == SEGBASE_FS:
        set_base(current, Seg.FS, base)
    elif which == SEGBASE_GS_USER:
        state.inactive_gs = base
    elif which == SEGBASE_GS_KERNEL:
        set_base(current, Seg.GS, base)
    elif which == SEGBASE_GS_USER_SEL:
        _load_user_gs(current, base & 0xFFFF)
    else:
        raise XenError(EINVAL, f"there is no segment base {which}")


def _load_user_gs(current: Current, selector: int) -> None:
    """Load GS for user mode, between two SWAPGS; a selector that would fault becomes null."""
    descriptor = 0
    if not segment.is_null(selector):
        selector |= segment.SEL_RPL
        try:
            descriptor = descriptors.read_descriptor(current, selector)
        except Fault:
            descriptor = 0
        if not _is_loadable(segment.attributes(descriptor)):
            descriptor = selector = 0
    kernel_base = current.cpu.segment(Seg.GS).base
    limit, attributes = segment.limit(descriptor), segment.attributes(descriptor)
    current.cpu.set_segment(Seg.GS, Segment(selector, kernel_base, limit, attributes))
    pv(current).inactive_gs = segment.base(descriptor)


def _is_loadable(attributes: int) -> bool:
    """Whether a data segment register takes it in ring 3: data, or code that may be read."""
    needed = segment.PRESENT | segment.S | segment.DPL
    readable = not attributes & segment.TYPE_CODE or attributes & segment.TYPE_WRITABLE
    return attributes & needed == needed and bool(readable)


set_gdt = Hypercall(Nr.set_gdt, "set_gdt", PV, (PTR, INT), _set_gdt)
update_descriptor = Hypercall(
    Nr.update_descriptor, "update_descriptor", PV, (U64, U64), _update_descriptor
)
set_segment_base = Hypercall(
    Nr.set_segment_base,
    "set_segment_base",
    frozenset({"pv64"}),
    (INT, ULONG),
    _set_segment_base,
)
