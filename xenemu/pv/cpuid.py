"""CPUID as a PV guest gets it, by the forced-emulation prefix or natively.

In Xen: arch/x86/cpuid.c (guest_cpuid), arch/x86/traps.c (cpuid_hypervisor_leaves).
"""

from __future__ import annotations

from xenemu.hv import cpuid as common
from xenemu.hv.domain import Current
from xenemu.x86 import cpuid
from xenemu.x86.paging import PAGE_SHIFT

FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1 << 0
# By leaf: EAX..EDX of what a 32-bit guest has. Without long mode there is no CMPXCHG16B, no LAHF
# in it, and on an Intel CPU no SYSCALL (recalculate_cpuid_policy).
WORD = 0xFFFFFFFF
MASKS32 = {
    0x1: (WORD, WORD, ~cpuid.CX16 & WORD, WORD),
    0x80000001: (WORD, WORD, ~cpuid.LAHF_LM & WORD, ~(cpuid.SYSCALL | cpuid.LM) & WORD),
}


def execute(current: Current) -> None:
    """Answer the CPUID instruction in the current registers."""
    common.execute(current, _leaf, _xen_leaf)


def _leaf(current: Current, leaf: int, subleaf: int) -> cpuid.Registers:
    a, b, c, d = cpuid.cpuid(leaf, subleaf, current.vcpu.vcpu_id)
    if current.domain.width == 4 and leaf in MASKS32:
        masks = MASKS32[leaf]
        return (a & masks[0], b & masks[1], c & masks[2], d & masks[3])
    return (a, b, c, d)


def _xen_leaf(current: Current, leaf: int, subleaf: int) -> cpuid.Registers:
    if leaf == 5 and not subleaf:  # how wide a machine address can be
        highest_frame = current.domain.memory.nr_frames - 1
        return (0, highest_frame.bit_length() + PAGE_SHIFT, 0, 0)
    return common.common_xen_leaf(leaf, subleaf, FEAT1_MMU_PT_UPDATE_PRESERVE_AD)
