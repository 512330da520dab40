"""CPUID as a PV guest gets it, by the forced-emulation prefix or natively.

In Xen: arch/x86/cpuid.c (guest_cpuid), arch/x86/traps.c (cpuid_hypervisor_leaves).
"""

from __future__ import annotations

from xenemu.hv import cpu_policy
from xenemu.hv import cpuid as common
from xenemu.hv.cpu_policy import CpuPolicy
from xenemu.hv.current import Current
from xenemu.x86.cpuid import Registers
from xenemu.x86.paging import PAGE_SHIFT

FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1 << 0


def policy(current: Current) -> CpuPolicy:
    """What the current domain is told of its CPU."""
    return cpu_policy.PV[current.domain.width]


def execute(current: Current) -> None:
    """Answer the CPUID instruction in the current registers."""
    common.execute(current, _leaf, _xen_leaf)


def _leaf(current: Current, leaf: int, subleaf: int) -> Registers:
    return policy(current).cpuid(leaf, subleaf)


def _xen_leaf(current: Current, leaf: int, subleaf: int) -> Registers:
    if leaf == 5 and not subleaf:  # how wide a machine address can be
        highest_frame = current.domain.memory.nr_frames - 1
        return (0, highest_frame.bit_length() + PAGE_SHIFT, 0, 0)
    features, incarnation = FEAT1_MMU_PT_UPDATE_PRESERVE_AD, current.domain.incarnation
    return common.common_xen_leaf(leaf, subleaf, features, incarnation)
