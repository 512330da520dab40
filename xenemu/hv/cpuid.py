"""The CPUID instruction, as far as PV and PVH guests have it in common.

In Xen: arch/x86/cpuid.c (guest_cpuid), arch/x86/traps.c (cpuid_hypervisor_leaves).
"""

from __future__ import annotations

from collections.abc import Callable

from xenemu.abi.version import XEN_VERSION
from xenemu.hv.cpu import Reg
from xenemu.hv.domain import Current
from xenemu.x86 import cpuid

HIGHEST_XEN_LEAF = cpuid.XEN_LEAF + 5
NR_XEN_LEAVES = 0x100
HYPERCALL_PAGES = 1
HYPERCALL_MSR = 0x40000000
Leaf = Callable[[Current, int, int], cpuid.Registers]


def execute(current: Current, leaf_of: Leaf, xen_leaf: Leaf) -> None:
    """Answer the instruction in the current registers, from `leaf_of` a leaf and subleaf.

    Those of Xen's range are `xen_leaf`'s, by their number in it.
    """
    regs = current.cpu.regs
    leaf, subleaf = regs[Reg.RAX] & 0xFFFFFFFF, regs[Reg.RCX] & 0xFFFFFFFF
    if cpuid.XEN_LEAF <= leaf < cpuid.XEN_LEAF + NR_XEN_LEAVES:
        answer = xen_leaf(current, leaf - cpuid.XEN_LEAF, subleaf)
    else:
        answer = leaf_of(current, leaf, subleaf)
    regs[Reg.RAX], regs[Reg.RBX], regs[Reg.RCX], regs[Reg.RDX] = answer


def common_xen_leaf(leaf: int, subleaf: int, features: int) -> cpuid.Registers:
    """Xen's leaves that are alike but for the `features` of leaf 2, ECX."""
    match leaf:
        case 0:
            return cpuid.xen_signature(HIGHEST_XEN_LEAF)
        case 1:
            return (XEN_VERSION, 0, 0, 0)
        case 2:
            return (HYPERCALL_PAGES, HYPERCALL_MSR, features, 0)
        case 3:
            return cpuid.xen_time(subleaf)
        case _:
            return cpuid.NOTHING
