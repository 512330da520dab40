"""CPUID as a PVH guest gets it.

In Xen: arch/x86/cpuid.c (guest_cpuid, cpuid_hypervisor_leaves). Header: public/arch-x86/cpuid.h
"""

from __future__ import annotations

from xenemu.hv import cpuid as common
from xenemu.hv.domain import Current
from xenemu.pvh.lapic import APIC_BASE_ENABLE
from xenemu.pvh.paging import EFER_LMA, cpu_of
from xenemu.pvh.state import pvh
from xenemu.x86 import cpuid

# Features that a kernel in ring 0 has beyond a PV guest's.
NATIVE_1_EDX = sum(1 << bit for bit in (3, 7, 12, 13, 17))  # pse mce mtrr pge pse36
NATIVE_1_ECX = 1 << 21  # x2apic
APIC = 1 << 9
NATIVE_E1_EDX = 1 << 26  # page1gb, which the engine does not refuse either
HVM_VCPU_ID_PRESENT, HVM_DOMID_PRESENT, HVM_UPCALL_VECTOR = 1 << 3, 1 << 4, 1 << 6


def execute(current: Current) -> None:
    """Answer the CPUID instruction in the current registers."""
    common.execute(current, _leaf, _xen_leaf)


def _leaf(current: Current, leaf: int, subleaf: int) -> cpuid.Registers:
    apic = pvh(current).lapic
    a, b, c, d = cpuid.cpuid(leaf, subleaf, current.vcpu.vcpu_id)
    if leaf == 1:
        c, d = c | NATIVE_1_ECX, d | NATIVE_1_EDX
        if not apic.apic_base & APIC_BASE_ENABLE:
            d &= ~APIC
    elif leaf == 0xB:  # Xen knows no topology, and gives only the x2APIC's ID
        c, d = subleaf & 0xFF, apic.apic_id
    elif leaf == 0x80000001:
        d |= NATIVE_E1_EDX
        if not cpu_of(current).efer & EFER_LMA:  # as on every Intel CPU
            d &= ~cpuid.SYSCALL
    return (a, b, c, d)


def _xen_leaf(current: Current, leaf: int, subleaf: int) -> cpuid.Registers:
    if leaf == 4 and not subleaf:
        features = HVM_VCPU_ID_PRESENT | HVM_DOMID_PRESENT | HVM_UPCALL_VECTOR
        return (features, current.vcpu.vcpu_id, current.domain.domid, 0)
    return common.common_xen_leaf(leaf, subleaf, 0)
