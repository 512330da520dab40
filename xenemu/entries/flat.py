"""The flat segments that Linux's boot protocol and EFI begin with, and tables that have them.

In Linux: Documentation/arch/x86/boot.rst (the 32-bit and the 64-bit boot protocol)
"""

from __future__ import annotations

import struct
from typing import Final

from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.pvh.personality import DATA32, FLAT_LIMIT
from xenemu.x86.paging import PAGE_SIZE, PSE, RW, P

BOOT_CS, BOOT_DS = 0x10, 0x18
CODE64: Final = 0x00A09B00  # attributes: ring 0, accessed
GDT_LIMIT: Final = 4 * 8 - 1


def gdt(code: int) -> bytes:
    """A GDT with flat segments: BOOT_CS, which has the attributes `code`, and BOOT_DS."""
    flat = [(attributes | 0xF0000) << 32 | 0xFFFF for attributes in (code, DATA32)]
    return struct.pack("<4Q", 0, 0, *flat)


def load_segments(current: Current, code: int, gdt_at: int, which: tuple[Seg, ...]) -> None:
    """Load CS, the segments `which` as data, and GDTR."""
    cpu = current.cpu
    cpu.set_segment(Seg.CS, Segment(BOOT_CS, 0, FLAT_LIMIT, code))
    for data in which:
        cpu.set_segment(data, Segment(BOOT_DS, 0, FLAT_LIMIT, DATA32))
    cpu.set_segment(Seg.GDTR, Segment(0, gdt_at, GDT_LIMIT))


def identity_tables(at: int, gib: int) -> bytes:
    """Tables of `2 + gib` pages at an address; they map memory to itself, in pages of 2 MiB."""
    pages = [at + n * PAGE_SIZE | RW | P for n in range(2 + gib)]
    root = struct.pack("<512Q", pages[1], *[0] * 511)
    level3 = struct.pack("<512Q", *pages[2:], *[0] * (512 - gib))
    large = (n << 21 | PSE | RW | P for n in range(512 * gib))
    return root + level3 + struct.pack(f"<{512 * gib}Q", *large)
