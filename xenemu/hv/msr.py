"""Model-specific registers: one table for both kinds of guest.

In Xen: arch/x86/msr.c (guest_rdmsr, guest_wrmsr), arch/x86/cpu/mcheck/vmce.c,
arch/x86/cpu/mcheck/mce_intel.c, arch/x86/cpu/vpmu.c; and for PV arch/x86/pv/emul-priv-op.c
(read_msr, write_msr), for HVM arch/x86/hvm/hvm.c (hvm_msr_read_intercept,
hvm_msr_write_intercept), arch/x86/hvm/vmx/vmx.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from xenemu.hv import cpu_policy
from xenemu.hv.cpuid import HYPERCALL_MSR
from xenemu.hv.state.vcpu import Vcpu
from xenemu.records import dataclass
from xenemu.x86 import msr

ALL_BITS: Final = (1 << 64) - 1
AMD_MSRS: Final = 0xC001


class How(Enum):
    """What becomes of an access to a register."""

    REFUSED = 1  # #GP
    OWN = 2  # the kind of guest answers for itself
    VALUE = 3  # reads: a constant
    KEPT = 4  # reads: what was written, at first 0; writes: bits that the register has
    IGNORED = 5  # writes: no effect
    SAME = 6  # writes: only what is read


@dataclass(frozen=True)
class Access:
    """How a guest reads and writes a register; the constant, or the bits that it can set."""

    reads: How
    writes: How
    value: int = 0


NONE: Final = Access(How.REFUSED, How.REFUSED)
OWN: Final = Access(How.OWN, How.OWN)
ZERO: Final = Access(How.VALUE, How.REFUSED)  # reads as 0
DUMMY: Final = Access(How.VALUE, How.IGNORED)  # reads as 0, takes anything
CLEARED: Final = Access(How.VALUE, How.SAME)  # reads as 0, takes a 0
WRITE_ONLY: Final = Access(How.REFUSED, How.IGNORED)


def constant(value: int) -> Access:
    """A register that can only be read."""
    return Access(How.VALUE, How.REFUSED, value)


def stuck(value: int) -> Access:
    """A register that accepts any value and stays as it is."""
    return Access(How.VALUE, How.IGNORED, value)


def kept(bits: int = ALL_BITS) -> Access:
    """A register of the vcpu's that has these bits."""
    return Access(How.KEPT, How.KEPT, bits)


# Machine checks: two banks, in which nothing ever happens; those after them read as 0.
MCA_BANKS: Final = 2
NR_BANKS: Final = 32
MC_CTL2 = range(msr.IA32_MC0_CTL2, msr.IA32_MC0_CTL2 + NR_BANKS)
MC_BANKS = range(msr.IA32_MC0_CTL, msr.IA32_MC0_CTL + 4 * NR_BANKS)
BANKS = MC_BANKS[: 4 * MCA_BANKS]

# Performance counters, of which there are none, and the record of branches, which is empty.
COUNTERS = (
    *range(0xC1, 0xC9),  # P6_PERFCTR*
    *range(0x186, 0x18A),  # P6_EVNTSEL*
    *range(0x309, 0x30C),  # CORE_PERF_FIXED_CTR*
    *range(0x38D, 0x391),  # CORE_PERF_FIXED_CTR_CTRL to CORE_PERF_GLOBAL_OVF_CTRL
)
PEBS_AND_DS = (0x3F1, 0x600)
MORE_EVENT_SELECTS = range(0x18A, 0x18E)
LAST_BRANCHES = (0x1D7, 0x1D8, 0x1DA, *range(0x680, 0x690), *range(0x6C0, 0x6D0))  # family 15's

LOCKED: Final = constant(msr.FEATURE_CONTROL_LOCK)
PLATFORM_INFO: Final = constant(msr.PLATFORM_INFO_CPUID_FAULTING)
MISC_FEATURES: Final = kept(msr.MISC_FEATURES_CPUID_FAULTING)
ARCH_CAPS: Final = constant(cpu_policy.HVM.arch_caps)
MCG_CAP: Final = stuck(msr.MCG_SER_P | msr.MCG_TES_P | msr.MCG_CMCI_P | MCA_BANKS)
PV_MISC_ENABLE: Final = stuck(msr.MISC_ENABLE | msr.MISC_ENABLE_XTPR_DISABLE)
HVM_MISC_ENABLE: Final = Access(How.VALUE, How.SAME, msr.MISC_ENABLE)
DEBUGCTL: Final = kept(msr.DEBUGCTL_LBR | msr.DEBUGCTL_BTF)
XEN_PAT: Final = constant(msr.XEN_PAT)
SET: Final = stuck(ALL_BITS)

# The registers, what a PV guest may do with each, and what an HVM guest may. All others: NONE.
TABLE: Final[tuple[tuple[Iterable[int], Access, Access], ...]] = (
    ((msr.P5_MC_ADDR, msr.P5_MC_TYPE), ZERO, ZERO),
    ((msr.IA32_TSC,), OWN, OWN),
    ((msr.IA32_PLATFORM_ID,), ZERO, ZERO),
    ((msr.IA32_APIC_BASE,), OWN, OWN),
    ((msr.IA32_FEATURE_CONTROL,), LOCKED, LOCKED),
    # DIVERGES: a write would move the TSC; here it is virtual time, on which all clocks agree.
    ((msr.IA32_TSC_ADJUST,), NONE, DUMMY),
    ((msr.IA32_UCODE_WRITE,), NONE, WRITE_ONLY),
    ((msr.IA32_UCODE_REV,), CLEARED, CLEARED),
    (COUNTERS, DUMMY, DUMMY),
    ((msr.PLATFORM_INFO,), PLATFORM_INFO, PLATFORM_INFO),
    ((msr.IA32_MPERF, msr.IA32_APERF), WRITE_ONLY, NONE),
    (msr.MTRRS, NONE, OWN),
    ((msr.ARCH_CAPABILITIES,), ARCH_CAPS, ARCH_CAPS),
    ((msr.MISC_FEATURES_ENABLES,), MISC_FEATURES, MISC_FEATURES),
    (msr.SYSENTER, NONE, OWN),
    ((msr.IA32_MCG_CAP,), MCG_CAP, MCG_CAP),
    ((msr.IA32_MCG_STATUS,), kept(), kept()),
    ((msr.IA32_MCG_CTL,), DUMMY, DUMMY),
    (MORE_EVENT_SELECTS, NONE, WRITE_ONLY),
    ((msr.IA32_PERF_STATUS,), ZERO, ZERO),
    ((msr.IA32_PERF_CTL,), DUMMY, DUMMY),
    ((msr.IA32_THERM_CONTROL, msr.IA32_ENERGY_PERF_BIAS), WRITE_ONLY, NONE),
    ((msr.IA32_THERM_STATUS,), ZERO, ZERO),
    ((msr.IA32_MISC_ENABLE,), PV_MISC_ENABLE, HVM_MISC_ENABLE),
    (LAST_BRANCHES, NONE, DUMMY),
    ((msr.IA32_DEBUGCTL,), NONE, DEBUGCTL),
    ((msr.IA32_CR_PAT,), XEN_PAT, OWN),
    (MC_CTL2[:MCA_BANKS], kept(), kept()),
    (MC_CTL2[MCA_BANKS:], DUMMY, DUMMY),
    ((msr.IA32_PERF_CAPABILITIES,), ZERO, NONE),
    (PEBS_AND_DS, NONE, DUMMY),
    (BANKS[::4], SET, SET),  # CTL
    (BANKS[1::4], CLEARED, CLEARED),  # STATUS
    (BANKS[2::4], CLEARED, CLEARED),  # ADDR
    (BANKS[3::4], CLEARED, CLEARED),  # MISC
    (MC_BANKS[len(BANKS) :], DUMMY, DUMMY),
    ((msr.IA32_TSC_DEADLINE,), NONE, DUMMY),  # CPUID does not offer that mode of the timer
    (range(msr.X2APIC_FIRST, msr.X2APIC_LAST + 1), NONE, OWN),
    ((HYPERCALL_MSR,), OWN, OWN),
    ((msr.EFER,), OWN, OWN),
    (msr.SYSCALL, NONE, OWN),
    (msr.BASES, OWN, OWN),
    ((msr.TSC_AUX,), OWN, OWN),
    ((msr.AMD64_NB_CFG,), DUMMY, DUMMY),
    ((msr.K8_ENABLE_C1E,), NONE, ZERO),
)
PV: Final = {number: pv for numbers, pv, _ in TABLE for number in numbers}
HVM: Final = {number: hvm for numbers, _, hvm in TABLE for number in numbers}


def read(column: dict[int, Access], vcpu: Vcpu, number: int) -> int | How:
    """RDMSR: the value, or why the table has none: REFUSED or OWN."""
    access = column.get(number, NONE)
    match access.reads:
        case How.VALUE:
            return access.value
        case How.KEPT:
            return vcpu.msrs.get(number, 0)
        case other:
            return other


def write(column: dict[int, Access], vcpu: Vcpu, number: int, value: int) -> How | None:
    """WRMSR: None if it is done, or else REFUSED or OWN."""
    access = column.get(number, NONE)
    match access.writes:
        case How.IGNORED:
            return None
        case How.SAME:
            return None if value == access.value else How.REFUSED
        case How.KEPT if value & ~access.value:
            return How.REFUSED
        case How.KEPT:
            vcpu.msrs[number] = value
            return None
        case other:
            return other


def host_has(number: int) -> bool:
    """Whether the host itself can read a register: what an HVM guest can, and nothing of AMD's."""
    return HVM.get(number, NONE).reads is not How.REFUSED and number >> 16 != AMD_MSRS


def cpuid_faults(vcpu: Vcpu) -> bool:
    """Whether the guest asked that CPUID outside of its kernel be #GP."""
    return bool(vcpu.msrs.get(msr.MISC_FEATURES_ENABLES, 0) & msr.MISC_FEATURES_CPUID_FAULTING)
