"""One host CPU, and what each kind of guest is told of it.

Xen begins with the host's features. It keeps a feature if its mark in the featureset names the kind
of guest. It sets a few features itself. Then it drops each feature that depends on a dropped one.
libxl then changes a PVH guest's topology.

For example, a 32-bit PV guest does not get LM. CX16 depends on LM, so it does not get CX16.

In Xen: arch/x86/cpu-policy.c, tools/gen-cpuid.py, tools/libs/guest/xg_cpuid_x86.c
(xc_cpuid_apply_policy).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from xenemu.abi.arch_x86.cpufeatureset import (
    WORD_1C,
    WORD_1D,
    WORD_7B0,
    WORD_7C0,
    WORD_7D0,
    WORD_ARCH_CAPS,
    WORD_ARCH_CAPS_HIGH,
    WORD_E1C,
    WORD_E1D,
    WORD_E7D,
    Feature,
    word_of,
)
from xenemu.records import dataclass
from xenemu.x86 import cpuid
from xenemu.x86.cpuid import NOTHING, Registers

Features = frozenset[Feature]

# What the engine executes as a CPU does, and no slower than what kernels do without it. That it is
# not vulnerable to this and that is true, too: it speculates on nothing. It is silent on Meltdown
# (RDCL_NO): where that is a danger, Xen hides its own mappings from 64-bit PV guests (XPTI), which
# see none here.
HOST_FEATURES: Final[Features] = frozenset(Feature) - {Feature.HTT, Feature.HYPERVISOR}
PV_MARKS, HVM_MARKS = "A", "ASH"
MAX_CORES: Final = 32  # of a package: leaf 4 has 6 bits for the highest of twice as many

# What cannot be without what, as far as a guest loses any of it (gen-cpuid.py: deps).
DEPENDENTS: Final[dict[Feature, Features]] = {
    Feature.LM: frozenset({Feature.CX16, Feature.LAHF_LM, Feature.PAGE1GB}),
}


@dataclass(frozen=True)
class CpuPolicy:
    """What a CPU has, and what its leaves say, except for what depends on the vcpu or its state.

    `leaves` has all leaves but leaf 4, whose subleaves are `caches`. Every other leaf has only
    subleaf 0, or gives the same answer for each subleaf.
    """

    features: Features
    leaves: Mapping[int, Registers]
    caches: Mapping[int, Registers]

    def has(self, feature: Feature) -> bool:
        """Whether CPUID, or MSR_ARCH_CAPABILITIES, shows it."""
        return feature in self.features

    def cpuid(self, leaf: int, subleaf: int) -> Registers:
        """A leaf outside of Xen's range."""
        if leaf == 4:
            return self.caches.get(subleaf, NOTHING)
        if leaf == 7 and subleaf:
            return NOTHING
        return self.leaves.get(leaf, NOTHING)

    @property
    def arch_caps(self) -> int:
        """MSR_ARCH_CAPABILITIES."""
        high = word_of(self.features, WORD_ARCH_CAPS_HIGH)
        return high << 32 | word_of(self.features, WORD_ARCH_CAPS)


def _policy(
    features: Features, logical_processors: int, caches: Mapping[int, Registers]
) -> CpuPolicy:
    words = {number: word_of(features, number) for number in range(WORD_7D0 + 1)}
    ebx = logical_processors << 16 | cpuid.CLFLUSH_QUADWORDS << 8
    linear_address_bits = 48 if Feature.LM in features else 32
    leaves = {
        **cpuid.LEAVES,
        0x1: (cpuid.SIGNATURE, ebx, words[WORD_1C], words[WORD_1D]),
        0x7: (0, words[WORD_7B0], words[WORD_7C0], words[WORD_7D0]),
        0x80000001: (0, 0, words[WORD_E1C], words[WORD_E1D]),
        0x80000007: (0, 0, 0, words[WORD_E7D]),
        0x80000008: (linear_address_bits << 8 | cpuid.PHYSICAL_ADDRESS_BITS, 0, 0, 0),
    }
    return CpuPolicy(features, leaves, caches)


def _offered(marks: str) -> Features:
    """The host's features for the guests that `marks` stand for."""
    shown = {feature for feature in HOST_FEATURES if set(feature.marks) & set(marks)}
    return frozenset(shown | {Feature.HYPERVISOR})


def _without(features: Features, lost: Features) -> Features:
    dependents: Features = frozenset().union(*(DEPENDENTS.get(one, frozenset()) for one in lost))
    return features - lost - dependents


@lru_cache
def hvm(nr_vcpus: int) -> CpuPolicy:
    """What a PVH guest with so many vcpus is told: its host's package has a core for each of them.

    A package has a power of two of cores, and no more than the leaves can tell of: with more vcpus
    than that, the host has several packages.
    """
    cores = min(1 << (nr_vcpus - 1).bit_length(), MAX_CORES)
    caches = {n: ((cores - 1) << 26 | a, b, c, d) for n, (a, b, c, d) in cpuid.CACHES.items()}
    # The APIC IDs of its vcpus are even, as of cores without hyper-threading.
    return _policy(
        _offered(HVM_MARKS) | {Feature.HTT},
        cpuid.LOGICAL_PROCESSORS * cores * 2,
        _cores_of_even_ids(caches),
    )


def _cores_of_even_ids(caches: Mapping[int, Registers]) -> dict[int, Registers]:
    """Twice as many cores in the package, none of which shares a cache."""
    cores = {n: (a >> 26) << 1 | 1 for n, (a, *_) in caches.items()}  # less one
    return {n: (cores[n] << 26 | a & 0x3FFF, b, c, d) for n, (a, b, c, d) in caches.items()}


# DIVERGES: Xen 4.17 shows no leaf above 0xd. Leaf 0x16 keeps kernels from measuring their clock.
PV64: Final = _policy(_offered(PV_MARKS), cpuid.LOGICAL_PROCESSORS, cpuid.CACHES)
# No long mode, and without it no SYSCALL on a CPU of Intel's.
PV32: Final = _policy(
    _without(PV64.features, frozenset({Feature.LM, Feature.SYSCALL})),
    cpuid.LOGICAL_PROCESSORS,
    cpuid.CACHES,
)
HVM: Final = hvm(1)
PV: Final = {8: PV64, 4: PV32}  # by the guest's width
