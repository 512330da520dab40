"""CPUID as a PVH guest gets it.

In Xen: arch/x86/cpuid.c (guest_cpuid), arch/x86/traps.c (cpuid_hypervisor_leaves).
Header: public/arch-x86/cpuid.h
"""

from __future__ import annotations

from xenemu.abi.arch_x86.cpufeatureset import Feature
from xenemu.hv import cpu_policy
from xenemu.hv import cpuid as common
from xenemu.hv.current import Current
from xenemu.pvh.lapic import APIC_BASE_ENABLE
from xenemu.pvh.paging import EFER_LMA, cpu_of
from xenemu.pvh.state import pvh
from xenemu.x86.cpuid import Registers

HVM_IOMMU_MAPPINGS, HVM_VCPU_ID_PRESENT, HVM_DOMID_PRESENT = 1 << 2, 1 << 3, 1 << 4
HVM_UPCALL_VECTOR = 1 << 6


def execute(current: Current) -> None:
    """Answer the CPUID instruction in the current registers."""
    common.execute(current, _leaf, _xen_leaf)


def _leaf(current: Current, leaf: int, subleaf: int) -> Registers:
    apic = pvh(current).lapic
    a, b, c, d = cpu_policy.hvm(len(current.domain.vcpus)).cpuid(leaf, subleaf)
    if leaf == 1:
        b |= apic.apic_id << 24
        if not apic.apic_base & APIC_BASE_ENABLE:
            d &= ~(1 << Feature.APIC.bit)
    elif leaf == 0xB:  # Xen knows no topology, and gives only the x2APIC's ID
        c, d = subleaf & 0xFF, apic.apic_id
    elif leaf == 0x80000001 and not cpu_of(current).efer & EFER_LMA:  # as on every Intel CPU
        d &= ~(1 << Feature.SYSCALL.bit)
    return (a, b, c, d)


def _xen_leaf(current: Current, leaf: int, subleaf: int) -> Registers:
    if leaf == 4 and not subleaf:
        features = HVM_IOMMU_MAPPINGS | HVM_VCPU_ID_PRESENT | HVM_DOMID_PRESENT | HVM_UPCALL_VECTOR
        return (features, current.vcpu.vcpu_id, current.domain.domid, 0)
    return common.common_xen_leaf(leaf, subleaf, 0, current.domain.incarnation)
