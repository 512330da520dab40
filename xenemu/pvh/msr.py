"""The model-specific registers that are a PVH guest's own: the CPU's, the local APIC's, MTRRs.

In Xen: arch/x86/hvm/hvm.c (hvm_msr_read_intercept, hvm_msr_write_intercept),
arch/x86/hvm/vmx/vmx.c, arch/x86/traps.c (guest_wrmsr_xen)
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL
from xenemu.errors import XenError
from xenemu.hv import msr as table
from xenemu.hv.cpu import Msr
from xenemu.hv.cpuid import HYPERCALL_MSR
from xenemu.hv.current import Current
from xenemu.hv.msr import How
from xenemu.pvh import lapic_glue, mtrr
from xenemu.pvh.callbacks import latch_shared_info_width
from xenemu.pvh.hypercall_page import hypercall_page
from xenemu.pvh.paging import CR0_PG, cpu_of
from xenemu.pvh.state import pvh
from xenemu.x86 import msr
from xenemu.x86.paging import PAGE_SHIFT, Maddr, is_canonical

# What the CPU keeps itself.
NATIVE = frozenset(
    {*msr.SYSENTER, msr.IA32_CR_PAT, msr.EFER, *msr.SYSCALL, *msr.BASES, msr.TSC_AUX}
)
ADDRESSES = frozenset({msr.IA32_SYSENTER_ESP, msr.IA32_SYSENTER_EIP, msr.LSTAR, msr.CSTAR})


def read(current: Current, number: int) -> int | Msr:
    """RDMSR of a PVH guest; #GP for what Xen does not know."""
    value = table.read(table.HVM, current.vcpu, number)
    if not isinstance(value, How):
        return value
    return _read(current, number) if value is How.OWN else Msr.REFUSED


def _read(current: Current, number: int) -> int | Msr:
    state = pvh(current)
    if number in NATIVE:
        return Msr.NATIVE
    if number in msr.MTRRS:
        return state.mtrrs.read(number)
    if number == msr.IA32_TSC:
        return current.cpu.now_ns
    if number == msr.IA32_APIC_BASE:
        return state.lapic.apic_base
    if number == HYPERCALL_MSR:
        return 0
    return lapic_glue.read_msr(current, number)


def write(current: Current, number: int, value: int) -> Msr | None:
    """WRMSR of a PVH guest; #GP for what Xen does not know or allow."""
    answer = table.write(table.HVM, current.vcpu, number, value)
    if answer is None:
        return None
    return _write(current, number, value) if answer is How.OWN else Msr.REFUSED


def _write(current: Current, number: int, value: int) -> Msr | None:
    state = pvh(current)
    if number in NATIVE:
        return Msr.NATIVE if _native_okay(current, number, value) else Msr.REFUSED
    if number in msr.MTRRS:
        return None if state.mtrrs.write(number, value) else Msr.REFUSED
    if number == msr.IA32_TSC:
        # DIVERGES: the TSC would move; here it is virtual time, on which all clocks agree.
        return None
    if number == msr.IA32_APIC_BASE:
        return None if lapic_glue.set_base(current, value) else Msr.REFUSED
    if number == HYPERCALL_MSR:
        return _install_hypercall_page(current, value)
    return lapic_glue.write_msr(current, number, value)


def _native_okay(current: Current, number: int, value: int) -> bool:
    """Whether a register of the CPU's may have this value."""
    if number == msr.EFER:
        known = not value & ~msr.EFER_SCE_LME_LMA_NX
        changed = value ^ cpu_of(current).efer
        return known and not (changed & msr.EFER_LME and current.cpu.cr0 & CR0_PG)
    if number == msr.IA32_CR_PAT:
        return mtrr.pat_okay(value)
    if number in (msr.FMASK, msr.TSC_AUX):
        return not value >> 32
    return number not in ADDRESSES or is_canonical(value)


def _install_hypercall_page(current: Current, value: int) -> Msr | None:
    """Fill the page that the guest names; bits 11:0 number the page, and there is only one."""
    if value & 0xFFF:
        return Msr.REFUSED
    try:
        mfn = current.domain.gfn_to_mfn(value >> PAGE_SHIFT)
    except XenError as error:
        assert error.errno == EINVAL
        return Msr.REFUSED
    latch_shared_info_width(current)
    current.domain.memory.write(Maddr(mfn << PAGE_SHIFT), hypercall_page())
    return None
