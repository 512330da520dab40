"""Model-specific registers of a PVH guest: Xen's own, the local APIC's, the CPU's, none.

In Xen: arch/x86/msr.c, arch/x86/hvm/hvm.c (hvm_msr_read_intercept), arch/x86/traps.c
(guest_wrmsr_xen)
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL
from xenemu.errors import XenError
from xenemu.hv.cpu import Msr
from xenemu.hv.domain import Current
from xenemu.pvh import lapic_glue, mtrr
from xenemu.pvh.callbacks import latch_shared_info_width
from xenemu.pvh.cpuid import HYPERCALL_MSR
from xenemu.pvh.hypercall_page import hypercall_page
from xenemu.pvh.state import pvh
from xenemu.x86 import msr
from xenemu.x86.paging import PAGE_SHIFT, Maddr, is_canonical

X2APIC_FIRST, X2APIC_LAST = 0x800, 0x8FF
MCG_CAP, MCG_STATUS = 0x179, 0x17A
# What the CPU keeps itself, with the engine's own checks.
NATIVE = frozenset(
    {
        0x174,  # SYSENTER_CS
        0x175,  # SYSENTER_ESP
        0x176,  # SYSENTER_EIP
        msr.IA32_CR_PAT,
        msr.EFER,
        0xC0000081,  # STAR
        0xC0000082,  # LSTAR
        0xC0000083,  # CSTAR
        0xC0000084,  # FMASK
        msr.FS_BASE,
        msr.GS_BASE,
        msr.KERNEL_GS_BASE,
        0xC0000103,  # TSC_AUX
    }
)
EFER_KNOWN = 0xD01  # SCE LME LMA NX
ADDRESSES = frozenset({0x175, 0x176, 0xC0000082, 0xC0000083})  # SYSENTER_*, LSTAR, CSTAR
SHORT = frozenset({0xC0000084, 0xC0000103})  # FMASK, TSC_AUX: 32 bits


def read(current: Current, number: int) -> int | Msr:
    """RDMSR of a PVH guest; #GP for what Xen does not know."""
    state = pvh(current)
    if number in NATIVE:
        return Msr.NATIVE
    if number in mtrr.REGISTERS:
        return state.mtrrs.read(number)
    if number == msr.IA32_APIC_BASE:
        return state.lapic.apic_base
    if X2APIC_FIRST <= number <= X2APIC_LAST:
        return lapic_glue.read_msr(current, number)
    if number == HYPERCALL_MSR:
        return 0
    match number:
        case msr.IA32_TSC:
            return current.cpu.now_ns
        case msr.IA32_UCODE_REV | 0x17:  # IA32_PLATFORM_ID
            return 0
        case msr.IA32_MISC_ENABLE:
            return msr.MISC_ENABLE_FAST_STRING
        case msr.PLATFORM_INFO | msr.MISC_FEATURES_ENABLES:
            return 0
        case 0x179 | 0x17A:  # MCG_CAP, MCG_STATUS: no banks
            return 0
        case _:
            return Msr.REFUSED


def write(current: Current, number: int, value: int) -> Msr | None:
    """WRMSR of a PVH guest; #GP for what Xen does not know or allow."""
    if number == msr.EFER and value & ~EFER_KNOWN:
        return Msr.REFUSED
    if number == msr.IA32_CR_PAT and not mtrr.pat_okay(value):
        return Msr.REFUSED
    if number in ADDRESSES and not is_canonical(value):
        return Msr.REFUSED
    if number in SHORT and value >> 32:
        return Msr.REFUSED
    if number in NATIVE:
        return Msr.NATIVE
    if number in mtrr.REGISTERS:
        return None if pvh(current).mtrrs.write(number, value) else Msr.REFUSED
    if number == HYPERCALL_MSR:
        return _install_hypercall_page(current, value)
    if number == msr.IA32_APIC_BASE:
        return None if lapic_glue.set_base(current, value) else Msr.REFUSED
    if X2APIC_FIRST <= number <= X2APIC_LAST:
        return lapic_glue.write_msr(current, number, value)
    if number == msr.IA32_UCODE_REV and not value:
        return None
    if number in (msr.IA32_MISC_ENABLE, msr.MISC_FEATURES_ENABLES, MCG_STATUS):
        return None if value == read(current, number) else Msr.REFUSED
    return Msr.REFUSED


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
