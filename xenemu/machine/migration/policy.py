"""What a guest was told of its CPU, as a stream has it: all leaves of CPUID, and some MSRs.

In Xen: lib/x86/cpuid.c (x86_cpuid_copy_to_buffer), lib/x86/msr.c (x86_msr_copy_to_buffer)
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.arch_x86.cpufeatureset import (
    WORD_1C,
    WORD_1D,
    WORD_7B0,
    WORD_7C0,
    WORD_7D0,
    WORD_E1C,
    WORD_E1D,
    Feature,
    word_of,
)
from xenemu.hv.cpu_policy import CpuPolicy
from xenemu.machine.migration.records import StreamError
from xenemu.machine.migration.saved import CPUID_LEAF, MSR_ENTRY, Data
from xenemu.x86 import msr
from xenemu.x86.cpuid import NOTHING

NO_SUBLEAF: Final = 0xFFFFFFFF  # XEN_CPUID_NO_SUBLEAF
CACHES: Final = 4  # the leaf whose subleaves are caches
FEATURES: Final = 7  # the leaf whose subleaves are features
# Where each word of features is: leaf, and register.
WORDS: Final = {
    WORD_1C: (1, 2),
    WORD_1D: (1, 3),
    WORD_7B0: (7, 1),
    WORD_7C0: (7, 2),
    WORD_7D0: (7, 3),
    WORD_E1C: (0x80000001, 2),
    WORD_E1D: (0x80000001, 3),
}
# What depends on the domain and its state, not on the CPU.
NOT_THE_CPUS: Final = frozenset({Feature.HTT, Feature.HYPERVISOR, Feature.APIC})


def cpuid(policy: CpuPolicy) -> bytes:
    """A policy's leaves, in order."""
    rows = {(CACHES, n): registers for n, registers in policy.caches.items()}
    for leaf, registers in policy.leaves.items():
        rows[leaf, 0 if leaf == FEATURES else NO_SUBLEAF] = registers
    return b"".join(CPUID_LEAF.pack(*where, *rows[where]) for where in sorted(rows))


def msrs(policy: CpuPolicy) -> bytes:
    """The two registers of a policy."""
    return MSR_ENTRY.pack(msr.PLATFORM_INFO, 0, msr.PLATFORM_INFO_CPUID_FAULTING) + MSR_ENTRY.pack(
        msr.ARCH_CAPABILITIES, 0, policy.arch_caps
    )


def check(leaves: Data, here: CpuPolicy) -> None:
    """StreamError if a guest knows of features that the CPU here lacks: it would use them.

    Xen 4.17 only checks that there are so many leaves; then the guest gets an undefined opcode.
    """
    told = {
        leaf: registers for leaf, _, *registers in reversed(list(CPUID_LEAF.iter_unpack(leaves)))
    }
    lacking = []
    for word, (leaf, register) in WORDS.items():
        offered = word_of(here.features | NOT_THE_CPUS, word)
        missing = told.get(leaf, NOTHING)[register] & ~offered
        names = {feature.bit: feature.name for feature in Feature if feature.word == word}
        lacking += [
            names.get(bit, f"{leaf:#x} {'abcd'[register]} {bit}")
            for bit in range(32)
            if missing >> bit & 1
        ]
    if lacking:
        more = f" and {len(lacking) - 4} more" if lacking[4:] else ""
        raise StreamError(
            f"its guest was told of features that the CPU here lacks:"
            f" {', '.join(lacking[:4])}{more}"
        )
