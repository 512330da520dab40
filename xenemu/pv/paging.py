"""A PV guest's address spaces: its two roots, and the gate's translation through them.

In Xen: arch/x86/mm.c (new_guest_cr3, do_mmuext_op), arch/x86/pv/domain.c (toggle_guest_mode),
include/asm-x86/x86_64/uaccess.h (access_ok).
"""

from __future__ import annotations

from xenemu.abi.arch_x86.xen import HYPERVISOR_COMPAT_VIRT_START, HYPERVISOR_VIRT_END
from xenemu.abi.errno import EFAULT
from xenemu.abi.xen import VMASST_TYPE_m2p_strict
from xenemu.errors import XenError
from xenemu.hv.clock import update_secondary_time
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l4_page_table
from xenemu.hv.pagetype import Restart
from xenemu.hv.paging_rules import M2P_L4_SLOT
from xenemu.hv.scheduler import update_runstate_area
from xenemu.hv.state.domain import Domain
from xenemu.pv.perdomain import PERDOMAIN_VIRT_START, drop_ldt
from xenemu.pv.state import pv
from xenemu.x86.paging import ADDR, ENTRIES, PAGE_MASK, PAGE_SHIFT, PSE, RW, A, D, Maddr, Mfn, P

LOWER_HALF_END = 1 << 47
TOP = 1 << 64
LEVEL_SHIFTS = (39, 30, 21)


def in_guest_range(vaddr: int, width: int = 8) -> bool:
    """Whether Xen would touch `vaddr` for a guest of `width`: canonical, and not Xen's own."""
    if width == 4:
        return 0 <= vaddr < HYPERVISOR_COMPAT_VIRT_START
    return 0 <= vaddr < LOWER_HALF_END or HYPERVISOR_VIRT_END <= vaddr < TOP


def translate(
    current: Current,
    vaddr: int,
    writing: bool,
    root: int | None = None,
    shifts: tuple[int, ...] = LEVEL_SHIFTS,
) -> Maddr:
    """Find the machine address of `vaddr`, as Xen's own access would.

    Without a `root`, in the tables in use. `shifts` has, for each level above L1, how far the bits
    of `vaddr` are to the left that are its index.

    EFAULT where the access would fault: the address is not mapped, not writable, not canonical, or
    Xen's.
    """
    if not (0 <= vaddr < LOWER_HALF_END or HYPERVISOR_VIRT_END <= vaddr < TOP):
        raise XenError(EFAULT, f"{vaddr:#x} is not an address of the guest's")
    if root is None and shifts is LEVEL_SHIFTS:
        maddr = current.cpu.translate(vaddr, writing)
        if maddr is not None:
            return Maddr(maddr)
    words = current.domain.memory.words
    table = current.cpu.cr3 >> PAGE_SHIFT if root is None else root
    for shift in shifts:
        entry = words[table << 9 | vaddr >> shift & 511]
        # A present large page cannot be: validation refuses it.
        if not entry & P or entry & PSE or (writing and not entry & RW):
            raise _fault(vaddr, writing, entry)
        table = (entry & ADDR) >> PAGE_SHIFT
    index = table << 9 | vaddr >> PAGE_SHIFT & 511
    entry = words[index]
    wanted = P | RW if writing else P
    if entry & wanted != wanted:
        raise _fault(vaddr, writing, entry)
    mark = A | D if writing else A
    if entry & mark != mark:
        words[index] = entry | mark
    return Maddr(entry & ADDR | vaddr & PAGE_MASK)


def translate32(current: Current, vaddr: int, writing: bool, root: int | None = None) -> Maddr:
    """`translate` for a 32-bit guest, whose root has four entries.

    Xen's own part of the address space is elsewhere. So Xen reads for the guest what the guest
    could read itself, which includes the machine-to-physical table.
    """
    if not 0 <= vaddr < PERDOMAIN_VIRT_START[4]:
        raise XenError(EFAULT, f"{vaddr:#x} is not an address of the guest's")
    return translate(current, vaddr, writing, root, LEVEL_SHIFTS[1:])


def _fault(vaddr: int, writing: bool, entry: int) -> XenError:
    what = "read-only" if writing and entry & P else "not mapped"
    return XenError(EFAULT, f"{vaddr:#x} is {what}")


def first_fault(current: Current, vaddr: int, writing: bool) -> int:
    """Where an access that starts at `vaddr` and was refused faults: there, or a page further."""
    try:
        current.translate(current, vaddr, writing)
    except XenError:
        return vaddr
    return (vaddr | PAGE_MASK) + 1


def cr3_to_mfn(cr3: int, width: int) -> int:
    """The frame that a guest's CR3 names; a 32-bit one has bits 31:20 of it in bits 11:0."""
    return cr3 >> PAGE_SHIFT if width == 8 else (cr3 >> PAGE_SHIFT | cr3 << 20) & 0xFFFFFFFF


def mfn_to_cr3(mfn: int, width: int) -> int:
    """The CR3 that names a frame to a guest."""
    return mfn << PAGE_SHIFT if width == 8 else (mfn << PAGE_SHIFT | mfn >> 20) & 0xFFFFFFFF


def new_guest_cr3(current: Current, mfn: int) -> None:
    """Make a table the root of the kernel's address space (MMUEXT_NEW_BASEPTR, mov to CR3).

    EINVAL, or what its validation says, if the frame cannot be a top-level table. `Restart` until
    the new tree is validated, and the old one dropped.
    """
    state, domain = pv(current), current.domain
    if not domain.frames.put_old_tables():
        raise Restart
    if mfn == state.kernel_root:
        current.cpu.flush_tlb()
        return
    domain.frames.get_page_and_type(mfn, domain.domid, domain.frames.rules.root_type)
    drop_ldt(current)
    if domain.width == 8 and not domain.vm_assist >> VMASST_TYPE_m2p_strict & 1:
        show_m2p(domain, mfn)
    old, state.kernel_root = state.kernel_root, Mfn(mfn)
    if state.kernel_mode:
        current.cpu.cr3 = mfn << PAGE_SHIFT
    domain.frames.put_page_and_type(old)
    _tell_root(current, mfn, user=False)
    if domain.frames.old_tables:
        raise Restart


def new_user_baseptr(current: Current, mfn: int) -> None:
    """Make a table, or none if 0, the root of the user's address space.

    EINVAL, or what its validation says, if the frame cannot be a top-level table. `Restart` until
    the new tree is validated.
    """
    state, domain = pv(current), current.domain
    if mfn == state.user_root:
        return
    if mfn:
        domain.frames.get_page_and_type(mfn, domain.domid, PGT_l4_page_table)
        if domain.vm_assist >> VMASST_TYPE_m2p_strict & 1:
            hide_m2p(domain, mfn)
    old, state.user_root = state.user_root, Mfn(mfn)
    if old:
        domain.frames.put_page_and_type(old)
    _tell_root(current, mfn, user=True)


def _tell_root(current: Current, mfn: int, user: bool) -> None:
    if current.watch is not None:
        for observer in current.watch:
            observer.root_set(current, mfn, user)


def m2p_entry(domain: Domain) -> int:
    """The entry by which a root shows the machine-to-physical table."""
    return next((entry for slot, entry in domain.frames.xen_slots if slot == M2P_L4_SLOT), 0)


def show_m2p(domain: Domain, root: int) -> None:
    """Let a kernel's root show the machine-to-physical table (fill_ro_mpt)."""
    domain.memory.words[root * ENTRIES + M2P_L4_SLOT] = m2p_entry(domain)


def hide_m2p(domain: Domain, root: int) -> None:
    """Take the machine-to-physical table from a user's root (zap_ro_mpt)."""
    domain.memory.table(Mfn(root))[M2P_L4_SLOT] = 0


def toggle_guest_mode(current: Current) -> None:
    """Switch between kernel and user mode: the root, and SWAPGS."""
    state, cpu = pv(current), current.cpu
    state.kernel_mode = not state.kernel_mode
    gs = cpu.segment(Seg.GS)
    cpu.set_segment(Seg.GS, Segment(gs.selector, state.inactive_gs, gs.limit, gs.attributes))
    state.inactive_gs = gs.base
    cpu.cr3 = (state.kernel_root if state.kernel_mode else state.user_root) << PAGE_SHIFT
    if current.vcpu.areas_stale:
        current.vcpu.areas_stale = False
        if state.kernel_mode:  # they were not to be written in user mode's address space
            update_runstate_area(current)
            update_secondary_time(current, current.vcpu)
