"""CR4, and the model-specific registers that are a PV guest's own: EFER, the TSC, segment bases.

In Xen: arch/x86/pv/emul-priv-op.c (read_msr, write_msr), arch/x86/traps.c (guest_wrmsr_xen),
arch/x86/pv/domain.c (pv_fixup_guest_cr4).
"""

from __future__ import annotations

from xenemu.errors import XenError
from xenemu.hv import msr as table
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.cpuid import HYPERCALL_MSR
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.hv.msr import How
from xenemu.pv.hypercall_page import hypercall_page
from xenemu.pv.state import pv
from xenemu.x86 import flags, msr
from xenemu.x86.paging import PAGE_MASK, Maddr, is_canonical, mfn_of

CR4_TSD, CR4_DE = 1 << 2, 1 << 3
CR4_PAE, CR4_MCE = 1 << 5, 1 << 6
CR4_OSFXSR, CR4_OSXMMEXCPT = 1 << 9, 1 << 10
CR4_XEN = CR4_PAE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT  # what a guest sees of Xen's own
CR4_FSGSBASE = 1 << 16
CR4_GUEST_OWNED = CR4_TSD | CR4_DE | CR4_FSGSBASE

XEN_MSRS = HYPERCALL_MSR >> 16


def fixup_guest_cr4(value: int) -> int:
    """The CR4 for a guest that asks for `value`: TSD, DE and FSGSBASE are its own, others Xen's."""
    return value & CR4_GUEST_OWNED | CR4_XEN


def read(current: Current, number: int) -> int | None:
    """RDMSR of a PV kernel, or None for #GP.

    A kernel that has no handler for #GP yet gets no #GP, if the host has the register.
    """
    value = table.read(table.PV, current.vcpu, number)
    if not isinstance(value, How):
        return value
    if value is How.OWN:
        return _read(current, number)
    unguarded = flags.GP not in pv(current).traps
    return 0 if unguarded and number >> 16 != XEN_MSRS and table.host_has(number) else None


def _read(current: Current, number: int) -> int | None:
    cpu = current.cpu
    match number:
        case msr.FS_BASE | msr.GS_BASE | msr.KERNEL_GS_BASE if current.domain.width == 4:
            return None  # they came with long mode
        case msr.FS_BASE:
            return cpu.segment(Seg.FS).base
        case msr.GS_BASE:
            return cpu.segment(Seg.GS).base
        case msr.KERNEL_GS_BASE:
            return pv(current).inactive_gs
        case msr.EFER:
            return guest_efer(current)
        case msr.TSC_AUX:
            return current.vcpu.msrs.get(number, 0)
        case msr.IA32_TSC:
            return cpu.now_ns
        case msr.IA32_APIC_BASE:
            return msr.APIC_BASE_DEFAULT | (0 if current.vcpu.vcpu_id else msr.APIC_BASE_BSP)
        case _:
            assert number == HYPERCALL_MSR
            return 0


def guest_efer(current: Current) -> int:
    """EFER as the guest sees it: no long mode for a 32-bit one."""
    return msr.EFER_SCE_LME_LMA_NX if current.domain.width == 8 else msr.EFER_NX


def write(current: Current, number: int, value: int) -> bool:
    """WRMSR of a PV kernel; False for #GP."""
    answer = table.write(table.PV, current.vcpu, number, value)
    return answer is None or (answer is How.OWN and _write(current, number, value))


def _write(current: Current, number: int, value: int) -> bool:
    bases_usable = current.domain.width == 8 and is_canonical(value)
    match number:
        case msr.FS_BASE | msr.GS_BASE | msr.KERNEL_GS_BASE if not bases_usable:
            return False
        case msr.FS_BASE:
            set_base(current, Seg.FS, value)
        case msr.GS_BASE:
            set_base(current, Seg.GS, value)
        case msr.KERNEL_GS_BASE:
            pv(current).inactive_gs = value
        case msr.TSC_AUX if not value >> 32:
            current.vcpu.msrs[number] = value
            current.cpu.set_tsc_aux(value)
        case msr.EFER:
            return value == guest_efer(current)
        case _ if number == HYPERCALL_MSR:
            return _fill_hypercall_page(current, value)
        case _:
            return False  # the TSC, the local APIC's base
    return True


def _fill_hypercall_page(current: Current, maddr: int) -> bool:
    """Write the hypercall page into one of the guest's frames, if it may be written to."""
    domain, mfn = current.domain, mfn_of(maddr)
    try:
        if maddr & PAGE_MASK:
            return False
        domain.frames.get_page_and_type(mfn, domain.domid, PGT_writable_page)
    except XenError as error:
        current.log(f"no hypercall page for the MSR write: {error.reason}")
        return False
    domain.memory.write(Maddr(maddr), hypercall_page(domain.width))
    domain.frames.put_page_and_type(mfn)
    return True


def set_base(current: Current, which: Seg, base: int) -> None:
    """Set the base of FS or GS, leaving the selector."""
    old = current.cpu.segment(which)
    current.cpu.set_segment(which, Segment(old.selector, base, old.limit, old.attributes))
