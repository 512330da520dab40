"""Memory type range registers: a PVH guest may read and write them; they have no effect.

libxenguest starts a domain with all memory write-back. Intel SDM volume 3, "Memory Type Range
Registers". In Xen: arch/x86/hvm/mtrr.c, tools/libs/guest/xg_dom_x86.c (vcpu_hvm)
"""

from __future__ import annotations

from dataclasses import field

from xenemu.records import dataclass
from xenemu.x86.msr import MTRR_CAP, MTRR_DEF_TYPE, MTRR_FIXED

CAPABILITIES = 8 | 1 << 8 | 1 << 10  # 8 variable ranges, fixed ranges, write-combining
TYPES = frozenset({0, 1, 4, 5, 6})
PAT_TYPES = TYPES | {7}
WRITE_BACK, ENABLE, FIXED_ENABLE = 6, 1 << 11, 1 << 10
ADDRESS_BITS = 40
MASK_VALID = 1 << 11


def _types_okay(value: int, types: frozenset[int]) -> bool:
    """Whether each byte is a memory type."""
    return all(value >> shift & 0xFF in types for shift in range(0, 64, 8))


def pat_okay(value: int) -> bool:
    """Whether IA32_PAT may have this value."""
    return _types_okay(value, PAT_TYPES)


@dataclass
class Mtrrs:
    """A vcpu's registers, by MSR number; those that are not listed are 0."""

    values: dict[int, int] = field(default_factory=lambda: {MTRR_DEF_TYPE: ENABLE | WRITE_BACK})

    def read(self, number: int) -> int:
        """RDMSR of one of msr.MTRRS."""
        return CAPABILITIES if number == MTRR_CAP else self.values.get(number, 0)

    def write(self, number: int, value: int) -> bool:
        """WRMSR of one of msr.MTRRS; False for #GP: read-only, a reserved bit, no such type."""
        if not self._okay(number, value):
            return False
        self.values[number] = value
        return True

    def _okay(self, number: int, value: int) -> bool:
        if number == MTRR_CAP:
            return False
        if number in MTRR_FIXED:
            return _types_okay(value, TYPES)
        if number == MTRR_DEF_TYPE:
            return value & 0xFF in TYPES and not value & ~(0xFF | ENABLE | FIXED_ENABLE)
        if value >> ADDRESS_BITS:
            return False
        if number & 1:  # a mask
            return not value & (0xFFF & ~MASK_VALID)
        return value & 0xFF in TYPES and not value & 0xF00
