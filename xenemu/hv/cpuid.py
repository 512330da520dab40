"""The CPUID instruction, as far as PV and PVH guests have it in common.

In Xen: arch/x86/cpuid.c (guest_cpuid), arch/x86/traps.c (cpuid_hypervisor_leaves).
Header: public/arch-x86/cpuid.h for the leaves from 0x40000000.
"""

from __future__ import annotations

from collections.abc import Callable

from xenemu.abi.version import XEN_VERSION
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.prices import Exit
from xenemu.x86.cpuid import NOTHING, TSC_KHZ, Registers, signature_leaf

XEN_LEAF = 0x40000000
HIGHEST_XEN_LEAF = XEN_LEAF + 5
NR_XEN_LEAVES = 0x200
HYPERCALL_PAGES = 1
HYPERCALL_MSR = 0x40000000
TSC_IS_SAFE, HOST_HAS_RDTSCP = 1 << 1, 1 << 2
Leaf = Callable[[Current, int, int], Registers]


def execute(current: Current, leaf_of: Leaf, xen_leaf: Leaf) -> None:
    """Answer the instruction in the current registers, from `leaf_of` a leaf and subleaf.

    Leaves in Xen's range are answered from `xen_leaf`, by their number in that range.
    """
    regs = current.cpu.regs
    leaf, subleaf = regs[Reg.RAX] & 0xFFFFFFFF, regs[Reg.RCX] & 0xFFFFFFFF
    current.asked(Exit.CPUID, leaf, subleaf)
    if XEN_LEAF <= leaf < XEN_LEAF + NR_XEN_LEAVES:
        answer = xen_leaf(current, leaf - XEN_LEAF, subleaf)
    else:
        answer = leaf_of(current, leaf, subleaf)
    regs[Reg.RAX], regs[Reg.RBX], regs[Reg.RCX], regs[Reg.RDX] = answer


def common_xen_leaf(leaf: int, subleaf: int, features: int, incarnation: int) -> Registers:
    """Xen's leaves, the same for PV and PVH, except for the `features` of leaf 2, ECX.

    `incarnation` is the domain's.
    """
    match leaf:
        case 0:
            return signature_leaf(HIGHEST_XEN_LEAF, b"XenVMMXenVMM")
        case 1:
            return (XEN_VERSION, 0, 0, 0)
        case 2:
            return (HYPERCALL_PAGES, HYPERCALL_MSR, features, 0)
        case 3:
            return _time(subleaf, incarnation)
        case _:
            return NOTHING


def _time(subleaf: int, incarnation: int) -> Registers:
    """The TSC is native and runs at 1 GHz from 0."""
    # system_time = (tsc << 1) * 2**31 >> 32, exactly the TSC
    return {
        0: (TSC_IS_SAFE | HOST_HAS_RDTSCP, 0, TSC_KHZ, incarnation),
        1: (0, 0, 1 << 31, 1),
        2: (TSC_KHZ, 0, 0, 0),
    }.get(subleaf, NOTHING)
