"""The host's CPU, as its CPUID names it; its features are in hv/cpu_policy.py.

The CPU calls itself a family 15 processor. For family 15, Linux assumes neither fast ``rep stos``
nor enhanced ``rep movsb``. That is wanted, because one iteration of these costs the engine as much
as a whole block. Leaf 0x16 says that the clock has 1 GHz, so kernels do not measure it against a
PIT.

Intel SDM volume 2, CPUID.
"""

from __future__ import annotations

from typing import Final

Registers = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX
NOTHING: Final[Registers] = (0, 0, 0, 0)
TSC_KHZ: Final = 1_000_000
SIGNATURE: Final = 0x00000F65  # family 15, model 6, stepping 5
CLFLUSH_QUADWORDS: Final = 8
LOGICAL_PROCESSORS: Final = 1  # of the package
PHYSICAL_ADDRESS_BITS: Final = 40
HIGHEST_BASIC, HIGHEST_EXTENDED = 0x16, 0x80000008
BRAND: Final = b"xenemu virtual CPU @ 1.00GHz".ljust(48, b"\0")


def text(name: bytes) -> Registers:
    """Sixteen letters as the four registers have them."""
    a, b, c, d = (int.from_bytes(name[i : i + 4], "little") for i in range(0, 16, 4))
    return (a, b, c, d)


def signature_leaf(highest: int, name: bytes) -> Registers:
    """A leaf with the highest leaf's number, and twelve letters in EBX, ECX and EDX."""
    _, b, c, d = text(bytes(4) + name)
    return (highest, b, c, d)


VENDOR: Final = signature_leaf(HIGHEST_BASIC, b"GenuntelineI")  # GenuineIntel: EBX, EDX, ECX
# What is the same for the host and all guests.
LEAVES: Final[dict[int, Registers]] = {
    0x0: VENDOR,
    0x2: (0x00000001, 0, 0, 0),
    0x16: (1000, 1000, 100, 0),
    0x80000000: (HIGHEST_EXTENDED, 0, 0, 0),
    0x80000002: text(BRAND[0:16]),
    0x80000003: text(BRAND[16:32]),
    0x80000004: text(BRAND[32:48]),
    0x80000006: (0, 0, 256 << 16 | 6 << 12 | 64, 0),  # 256 KiB of L2, lines of 64 bytes
}
# Leaf 4: L1 data, L1 instruction, L2; each 8 ways of 64-byte lines.
CACHES: Final[dict[int, Registers]] = {
    0: (0x121, 7 << 22 | 63, 63, 0),
    1: (0x122, 7 << 22 | 63, 63, 0),
    2: (0x143, 7 << 22 | 63, 511, 0),
}
