"""EFI's memory map, and the pages and pieces of pool that are given out of it. Plain data.

UEFI specification 2.10, section 7.2.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Final

from xenemu.abi.hvm.e820 import E820_ACPI, E820_RAM
from xenemu.entries.efi.abi import MemoryType
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

MAX_REGIONS: Final = 1 << 12
MAX_POOL: Final = 1 << 16  # pieces at a time
GRAIN: Final = 16  # bytes that a piece of pool is a multiple of
# There are drivers and boot loaders that take the address 0 for a failure.
FIRST_PAGE: Final = range(PAGE_SIZE)


@dataclass(order=True)
class Region:
    """Pages of one type; both addresses are whole pages."""

    start: int
    end: int
    type: int

    @property
    def pages(self) -> int:
        return self.end - self.start >> PAGE_SHIFT


@dataclass
class MemoryMap:
    """All regions, by address; there are gaps where nothing is. `key` changes with the map.

    `pieces` are those of the pool in use, by address: type and size. `free` are the others.
    """

    regions: list[Region]
    key: int = 1
    pieces: dict[int, tuple[int, int]] = field(default_factory=dict)
    free: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by type

    @classmethod
    def of_e820(cls, e820: Iterable[tuple[int, int, int]]) -> MemoryMap:
        """What a domain has, before anything is given out of it."""
        types = {E820_RAM: MemoryType.CONVENTIONAL, E820_ACPI: MemoryType.ACPI_RECLAIM}
        regions: list[Region] = []
        for start, size, kind in sorted(e820):
            end = start + size + PAGE_MASK & ~PAGE_MASK
            first = max(start & ~PAGE_MASK, regions[-1].end if regions else 0)
            if first < end:
                regions.append(Region(first, end, types.get(kind, MemoryType.RESERVED)))
        memory = cls(regions)
        memory.claim(FIRST_PAGE.start, FIRST_PAGE.stop, MemoryType.BOOT_SERVICES_DATA)
        memory._merge()
        return memory

    def find(self, pages: int, below: int) -> int | None:
        """The highest address of free pages that end at `below` or before; None without any."""
        size = pages << PAGE_SHIFT
        for region in reversed(self.regions):
            if region.type == MemoryType.CONVENTIONAL:
                start = (min(region.end, below) & ~PAGE_MASK) - size
                if start >= region.start:
                    return start
        return None

    def is_all(self, start: int, end: int, types: Container[int]) -> bool:
        """Whether these addresses, of which there are some, all are memory of these types."""
        at = start
        while at < end:
            region = self.at(at)
            if region is None or region.type not in types:
                return False
            at = region.end
        return start < end

    def at(self, address: int) -> Region | None:
        """The region that an address is in."""
        index = bisect_right(self.regions, address, key=lambda region: region.start) - 1
        if index >= 0 and address < self.regions[index].end:
            return self.regions[index]
        return None

    def claim(self, start: int, end: int, kind: int) -> None:
        """Make pages, which are all in the map, a region of this type."""
        index = bisect_right(self.regions, start, key=lambda region: region.start) - 1
        pieces = []
        last = index
        while last < len(self.regions) and self.regions[last].start < end:
            region = self.regions[last]
            pieces.append(Region(region.start, min(region.end, start), region.type))
            pieces.append(Region(max(region.start, end), region.end, region.type))
            last += 1
        pieces.append(Region(start, end, kind))
        self.regions[index:last] = sorted(piece for piece in pieces if piece.start < piece.end)
        self.key += 1

    def allocate(self, kind: int, pages: int, below: int) -> int | None:
        """Give out pages as high as can be below an address; None if there are none."""
        start = self.find(pages, below)
        if start is not None:
            self.take(start, pages, kind)
        return start

    def take(self, start: int, pages: int, kind: int) -> None:
        """Give out pages that are free."""
        self.claim(start, start + (pages << PAGE_SHIFT), kind)
        self._merge()

    @property
    def is_full(self) -> bool:
        """Whether there are as many regions as a guest may make."""
        return len(self.regions) >= MAX_REGIONS

    def _merge(self) -> None:
        """Make neighbours of one type one region."""
        merged: list[Region] = []
        for region in self.regions:
            if merged and (merged[-1].end, merged[-1].type) == (region.start, region.type):
                merged[-1].end = region.end
            else:
                merged.append(region)
        self.regions = merged

    # Pool.

    def allocate_pool(self, kind: int, size: int, below: int) -> int | None:
        """Give out a piece of memory; None if there is none."""
        size = max(GRAIN, size + GRAIN - 1 & -GRAIN)
        if len(self.pieces) >= MAX_POOL:
            return None
        free = self.free.setdefault(kind, [])
        for index, (at, length) in enumerate(free):
            if length >= size:
                free[index : index + 1] = [(at + size, length - size)] if length > size else []
                self.pieces[at] = kind, size
                return at
        pages = size + PAGE_MASK >> PAGE_SHIFT
        start = None if self.is_full else self.allocate(kind, pages, below)
        if start is not None:
            self.pieces[start] = kind, size
            if rest := (pages << PAGE_SHIFT) - size:
                insort(free, (start + size, rest))
        return start

    def free_pool(self, at: int) -> bool:
        """Take back a piece; whether there was one."""
        kind, size = self.pieces.pop(at, (0, 0))
        if not size:
            return False
        free = self.free[kind]
        insort(free, (at, size))
        index = free.index((at, size))
        if index + 1 < len(free) and at + size == free[index + 1][0]:
            free[index : index + 2] = [(at, size + free[index + 1][1])]
        if index and sum(free[index - 1]) == at:
            start = free[index - 1][0]
            free[index - 1 : index + 1] = [(start, sum(free[index]) - start)]
        return True
