"""CPUID as a PV guest gets it, by the forced-emulation prefix or natively.

In Xen: arch/x86/cpuid.c (guest_cpuid), arch/x86/traps.c (cpuid_hypervisor_leaves).
"""

from __future__ import annotations

from xenemu.abi.version import XEN_VERSION
from xenemu.hv.cpu import Reg
from xenemu.hv.domain import Current
from xenemu.x86 import cpuid
from xenemu.x86.paging import PAGE_SHIFT

HIGHEST_XEN_LEAF = cpuid.XEN_LEAF + 5
HYPERCALL_PAGES = 1
HYPERCALL_MSR = 0x40000000
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
    regs = current.cpu.regs
    leaf, subleaf = regs[Reg.RAX] & 0xFFFFFFFF, regs[Reg.RCX] & 0xFFFFFFFF
    if cpuid.XEN_LEAF <= leaf < cpuid.XEN_LEAF + 0x100:
        a, b, c, d = _xen_leaf(current, leaf - cpuid.XEN_LEAF, subleaf)
    else:
        a, b, c, d = cpuid.cpuid(leaf, subleaf, current.vcpu.vcpu_id)
        if current.domain.width == 4 and leaf in MASKS32:
            masks = MASKS32[leaf]
            a, b, c, d = a & masks[0], b & masks[1], c & masks[2], d & masks[3]
    regs[Reg.RAX], regs[Reg.RBX], regs[Reg.RCX], regs[Reg.RDX] = a, b, c, d


def _xen_leaf(current: Current, leaf: int, subleaf: int) -> cpuid.Registers:
    match leaf:
        case 0:
            return cpuid.xen_signature(HIGHEST_XEN_LEAF)
        case 1:
            return (XEN_VERSION, 0, 0, 0)
        case 2:
            return (HYPERCALL_PAGES, HYPERCALL_MSR, FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0)
        case 3:
            return cpuid.xen_time(subleaf)
        case 5 if not subleaf:  # how wide a machine address can be
            highest_frame = current.domain.memory.nr_frames - 1
            return (0, highest_frame.bit_length() + PAGE_SHIFT, 0, 0)
        case _:
            return cpuid.NOTHING
