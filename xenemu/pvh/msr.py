"""Model-specific registers of a PVH guest: Xen's own, the local APIC's, the CPU's, none.

In Xen: arch/x86/msr.c (guest_rdmsr, guest_wrmsr), arch/x86/hvm/hvm.c (hvm_msr_read_intercept),
arch/x86/hvm/vmx/vmx.c, arch/x86/cpu/mcheck/vmce.c, arch/x86/traps.c (guest_wrmsr_xen)
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL
from xenemu.errors import XenError
from xenemu.hv.cpu import Msr
from xenemu.hv.cpuid import HYPERCALL_MSR
from xenemu.hv.domain import Current
from xenemu.pvh import lapic_glue, mtrr
from xenemu.pvh.callbacks import latch_shared_info_width
from xenemu.pvh.hypercall_page import hypercall_page
from xenemu.pvh.paging import CR0_PG, cpu_of
from xenemu.pvh.state import pvh
from xenemu.x86 import msr
from xenemu.x86.paging import PAGE_SHIFT, Maddr, is_canonical

ALL_ONES = (1 << 64) - 1

# What the CPU keeps itself.
NATIVE = frozenset(
    {
        msr.IA32_SYSENTER_CS,
        msr.IA32_SYSENTER_ESP,
        msr.IA32_SYSENTER_EIP,
        msr.IA32_CR_PAT,
        msr.EFER,
        msr.STAR,
        msr.LSTAR,
        msr.CSTAR,
        msr.FMASK,
        msr.FS_BASE,
        msr.GS_BASE,
        msr.KERNEL_GS_BASE,
    }
)
ADDRESSES = frozenset({msr.IA32_SYSENTER_ESP, msr.IA32_SYSENTER_EIP, msr.LSTAR, msr.CSTAR})

# Performance counters, of which there are none: they read as 0.
P6_EVENT_SELECTS = range(0x186, 0x18A)
COUNTERS = frozenset(
    {
        *range(0xC1, 0xC9),
        *P6_EVENT_SELECTS,
        *range(0x309, 0x30C),  # CORE_PERF_FIXED_CTR*
        *range(0x38D, 0x391),  # CORE_PERF_FIXED_CTR_CTRL to CORE_PERF_GLOBAL_OVF_CTRL
        0x3F1,  # PEBS_ENABLE
        0x600,  # DS_AREA
    }
)

# Machine checks: two banks, in which nothing ever happens; those behind them read as 0.
MCA_BANKS = 2
MC_CTL2 = range(msr.IA32_MC0_CTL2, msr.IA32_MC0_CTL2 + 32)
MC_BANKS = range(msr.IA32_MC0_CTL, msr.IA32_MC0_CTL + 4 * 32)
MC_CTLS = MC_BANKS[: 4 * MCA_BANKS : 4]
MC_ADDRS_AND_MISCS = frozenset((*MC_BANKS[2 : 4 * MCA_BANKS : 4], *MC_BANKS[3 : 4 * MCA_BANKS : 4]))

# Registers of a vcpu that start at 0, and the bits that they can have.
KEPT = {
    msr.MISC_FEATURES_ENABLES: msr.MISC_FEATURES_CPUID_FAULTING,
    msr.IA32_DEBUGCTL: msr.DEBUGCTL_LBR | msr.DEBUGCTL_BTF,
    msr.IA32_MCG_STATUS: ALL_ONES,
    **dict.fromkeys((*MC_CTL2[:MCA_BANKS], *MC_BANKS[: 4 * MCA_BANKS]), ALL_ONES),
}
for _number in MC_CTLS:  # they stick to all ones
    del KEPT[_number]

# DIVERGES: a write to IA32_TSC or IA32_TSC_ADJUST would move the guest's TSC; here that is virtual
# time, on which all clocks agree, and stays so.
TSC = frozenset({msr.IA32_TSC, msr.IA32_TSC_ADJUST})

CONSTANTS = {
    **dict.fromkeys((*COUNTERS, *MC_CTL2[MCA_BANKS:], *MC_BANKS[4 * MCA_BANKS :]), 0),
    **dict.fromkeys(MC_CTLS, ALL_ONES),
    msr.P5_MC_ADDR: 0,
    msr.P5_MC_TYPE: 0,
    msr.IA32_PLATFORM_ID: 0,
    msr.IA32_FEATURE_CONTROL: msr.FEATURE_CONTROL_LOCK,
    msr.IA32_TSC_ADJUST: 0,
    msr.IA32_UCODE_REV: 0,
    msr.PLATFORM_INFO: msr.PLATFORM_INFO_CPUID_FAULTING,
    msr.IA32_MCG_CAP: msr.MCG_SER_P | msr.MCG_TES_P | msr.MCG_CMCI_P | MCA_BANKS,
    msr.IA32_MCG_CTL: 0,
    msr.IA32_PERF_STATUS: 0,
    msr.IA32_PERF_CTL: 0,
    msr.IA32_THERM_STATUS: 0,
    msr.IA32_MISC_ENABLE: (
        msr.MISC_ENABLE_FAST_STRING | msr.MISC_ENABLE_BTS_UNAVAIL | msr.MISC_ENABLE_PEBS_UNAVAIL
    ),
    msr.IA32_TSC_DEADLINE: 0,  # without effect until CPUID offers that mode of the timer
    HYPERCALL_MSR: 0,
    msr.AMD64_NB_CFG: 0,
    msr.K8_ENABLE_C1E: 0,
}
WRITES_IGNORED = (
    TSC
    | COUNTERS
    | frozenset(range(P6_EVENT_SELECTS.stop, P6_EVENT_SELECTS.start + 8))
    | frozenset((*MC_CTLS, *MC_CTL2[MCA_BANKS:], *MC_BANKS[4 * MCA_BANKS :]))
    | {
        msr.P5_MC_ADDR,
        msr.P5_MC_TYPE,
        msr.IA32_UCODE_WRITE,
        msr.IA32_MCG_CAP,
        msr.IA32_MCG_CTL,
        msr.IA32_PERF_CTL,
        msr.IA32_TSC_DEADLINE,
        msr.AMD64_NB_CFG,
    }
)


def read(current: Current, number: int) -> int | Msr:
    """RDMSR of a PVH guest; #GP for what Xen does not know."""
    state = pvh(current)
    if number in NATIVE:
        return Msr.NATIVE
    if number in CONSTANTS:
        return CONSTANTS[number]
    if number in KEPT:
        return state.msrs.get(number, 0)
    if number in mtrr.REGISTERS:
        return state.mtrrs.read(number)
    if number == msr.IA32_TSC:
        return current.cpu.now_ns
    if number == msr.IA32_APIC_BASE:
        return state.lapic.apic_base
    if msr.X2APIC_FIRST <= number <= msr.X2APIC_LAST:
        return lapic_glue.read_msr(current, number)
    return Msr.REFUSED


def write(current: Current, number: int, value: int) -> Msr | None:
    """WRMSR of a PVH guest; #GP for what Xen does not know or allow."""
    if number in NATIVE:
        return Msr.NATIVE if _native_okay(current, number, value) else Msr.REFUSED
    if number in WRITES_IGNORED:
        return None
    if number == HYPERCALL_MSR:
        return _install_hypercall_page(current, value)
    if msr.X2APIC_FIRST <= number <= msr.X2APIC_LAST:
        return lapic_glue.write_msr(current, number, value)
    return None if _write(current, number, value) else Msr.REFUSED


def _native_okay(current: Current, number: int, value: int) -> bool:
    """Whether a register of the CPU's may have this value."""
    if number == msr.EFER:
        known = not value & ~msr.EFER_SCE_LME_LMA_NX
        changed = value ^ cpu_of(current).efer
        return known and not (changed & msr.EFER_LME and current.cpu.cr0 & CR0_PG)
    if number == msr.IA32_CR_PAT:
        return mtrr.pat_okay(value)
    if number == msr.FMASK:
        return not value >> 32
    return number not in ADDRESSES or is_canonical(value)


def _write(current: Current, number: int, value: int) -> bool:
    """Write a register that Xen keeps, or that may only be written what it has."""
    state = pvh(current)
    if number in KEPT:
        if value & ~KEPT[number] or (number in MC_ADDRS_AND_MISCS and value == ALL_ONES):
            return False
        state.msrs[number] = value
        return True
    if number in mtrr.REGISTERS:
        return state.mtrrs.write(number, value)
    if number == msr.IA32_APIC_BASE:
        return lapic_glue.set_base(current, value)
    if number in (msr.IA32_MISC_ENABLE, msr.IA32_UCODE_REV):
        return value == CONSTANTS[number]
    return False


def _install_hypercall_page(current: Current, value: int) -> Msr | None:
    """Fill the page that the guest names; bits 11:0 are the page's number, of which there is 1."""
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
