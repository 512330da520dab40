"""The CPU that guests see: a curated model of what the engine executes.

It calls itself a family 15 processor, for which Linux neither assumes fast ``rep stos`` nor
enhanced ``rep movsb``: one iteration of those costs the engine a whole block. RDRAND, RDSEED
(host entropy), XSAVE, AVX and everything the engine lacks is hidden. Leaf 0x16 names the clock,
1 GHz, so that kernels do not measure it against a PIT.

Intel SDM volume 2, CPUID. Header: public/arch-x86/cpuid.h for the leaves from 0x40000000.
"""

from __future__ import annotations

from typing import Final

Registers = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX
NOTHING: Final[Registers] = (0, 0, 0, 0)
TSC_KHZ: Final = 1_000_000
XEN_LEAF: Final = 0x40000000
SIGNATURE: Final = 0x00000F65  # family 15, model 6, stepping 5

FEATURES_1_EDX: Final = sum(
    1 << bit
    for bit in (
        0,  # fpu
        2,  # de
        4,  # tsc
        5,  # msr
        6,  # pae
        8,  # cx8
        9,  # apic
        11,  # sep
        14,  # mca
        15,  # cmov
        16,  # pat
        19,  # clflush
        23,  # mmx
        24,  # fxsr
        25,  # sse
        26,  # sse2
    )
)
FEATURES_1_ECX: Final = sum(
    1 << bit
    for bit in (
        0,  # sse3
        1,  # pclmulqdq
        9,  # ssse3
        13,  # cx16
        19,  # sse4.1
        20,  # sse4.2
        22,  # movbe
        23,  # popcnt
        25,  # aes
        31,  # hypervisor
    )
)
CX16: Final = 1 << 13  # of leaf 1's ECX
LAHF_LM: Final = 1 << 0  # of leaf 0x80000001's ECX
SYSCALL, NX, LM = 1 << 11, 1 << 20, 1 << 29  # of its EDX
FEATURES_E1_EDX: Final = SYSCALL | NX | LM
FEATURES_E1_ECX: Final = LAHF_LM
BRAND: Final = b"xenemu virtual CPU @ 1.00GHz".ljust(48, b"\0")


def _string(text: bytes) -> Registers:
    words = [int.from_bytes(text[i : i + 4], "little") for i in range(0, 16, 4)]
    return (words[0], words[1], words[2], words[3])


def _vendor(highest: int) -> Registers:
    b, d, c, _ = _string(b"GenuineIntel\0\0\0\0")
    return (highest, b, c, d)


BASIC: Final[dict[int, Registers]] = {
    0x0: _vendor(0x16),
    0x1: (SIGNATURE, 8 << 8 | 1 << 16, FEATURES_1_ECX, FEATURES_1_EDX),
    0x2: (0x00000001, 0, 0, 0),
    0x16: (1000, 1000, 100, 0),
    0x80000000: (0x80000008, 0, 0, 0),
    0x80000001: (0, 0, FEATURES_E1_ECX, FEATURES_E1_EDX),
    0x80000002: _string(BRAND[0:16]),
    0x80000003: _string(BRAND[16:32]),
    0x80000004: _string(BRAND[32:48]),
    0x80000006: (0, 0, 256 << 16 | 6 << 12 | 64, 0),  # 256 KiB of L2, lines of 64 bytes
    0x80000008: (48 << 8 | 40, 0, 0, 0),
}
# Leaf 4: L1 data, L1 instruction, L2; each 8 ways of 64-byte lines.
CACHES: Final[dict[int, Registers]] = {
    0: (0x121, 7 << 22 | 63, 63, 0),
    1: (0x122, 7 << 22 | 63, 63, 0),
    2: (0x143, 7 << 22 | 63, 511, 0),
}


def cpuid(leaf: int, subleaf: int, vcpu_id: int = 0) -> Registers:
    """Answer a leaf below Xen's, as a vcpu with its own APIC id sees it."""
    if leaf == 1:
        a, b, c, d = BASIC[1]
        return (a, b | vcpu_id * 2 << 24, c, d)
    if leaf == 4:
        return CACHES.get(subleaf, NOTHING)
    return BASIC.get(leaf, NOTHING)


def xen_signature(highest: int) -> Registers:
    """The base leaf: the highest of Xen's leaves, and its name."""
    b, c, d, _ = _string(b"XenVMMXenVMM\0\0\0\0")
    return (highest, b, c, d)


def xen_time(subleaf: int) -> Registers:
    """Leaf 3 of Xen's: the TSC is native and runs at 1 GHz from 0."""
    # system_time = (tsc << 1) * 2**31 >> 32, exactly the TSC
    return {
        0: (0, 0, TSC_KHZ, 0),
        1: (0, 0, 1 << 31, 1),
        2: (TSC_KHZ, 0, 0, 0),
    }.get(subleaf, NOTHING)
