"""Where a Linux that unpacked itself has put itself, and its image as if it were linked there.

Xen's entries start a kernel where it is linked. With Linux's own entries, a bzImage's decompressor
may choose another address for the kernel, and another place in memory, at random.

In Linux: arch/x86/boot/compressed/kaslr.c
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.image import Image, Segment
from xenemu.peek import Code, Tables, locate, machine_frame, tables
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Maddr

STEP: Final = 2 << 20  # the least alignment that Linux can be built with
REACH: Final = 1 << 30  # KERNEL_IMAGE_SIZE
SAMPLE: Final = 64  # bytes that tell a kernel from others
# linux_banner and linux_proc_banner, which are constant from the beginning on.
ANCHORS: Final = (re.compile(rb"Linux version \d"), re.compile(rb"%s version %s \("))


@dataclass(frozen=True)
class Move:
    """How far a kernel is from where it was linked, in virtual and in physical addresses."""

    virtual: int
    physical: int


def as_mapped(current: Current, image: Image) -> Image:
    """The image as if it were linked where the guest has it; unchanged if that cannot be told."""
    if current.domain.p2m is None:  # PV: Xen has put it where it is linked
        return image
    move = find(current, image)
    return image if move is None or move == Move(0, 0) else _moved(image, move)


class MappedCode(Code):
    """A kernel's code by name, for somebody who watches it start.

    Addresses have the names that they have where the kernel was linked. Once it runs where it has
    put itself, they have those of there.
    """

    def __init__(self, image: Image, current: Current) -> None:
        super().__init__(image, current)
        self._image, self._current = image, current
        low = min((part.start for part in image.symbols.parts), default=0)
        self._reach = range(low, low + REACH)
        self._settled = current.domain.p2m is None or anchor_of(image) is None

    def format(self, vaddr: int, is_return: bool = False) -> str:
        """Write an address as `Code.format` does."""
        if not self._settled and vaddr in self._reach:
            self._settle()
        return super().format(vaddr, is_return)

    def _settle(self) -> None:
        if (move := find(self._current, self._image)) is None:
            return
        self._settled = True
        if move != Move(0, 0):
            super().__init__(_moved(self._image, move), self._current)


def find(current: Current, image: Image) -> Move | None:
    """How far a Linux was moved; None if it is not mapped yet, or if another kernel runs now.

    None also if it is no Linux. After kexec another kernel may run, and may even have the same
    bytes. This kernel still lies where it was.
    """
    anchor = anchor_of(image)
    if anchor is None:
        return None
    segment, at = anchor
    vaddr, paddr = segment.vaddr + at, segment.paddr + at
    wanted = bytes(segment.data[at : at + SAMPLE])
    memory = current.domain.memory
    frame = machine_frame(current, paddr)
    home = None if frame is None else Maddr(frame << PAGE_SHIFT | paddr & PAGE_MASK)
    if home is not None and memory.read(home, SAMPLE) != wanted:
        home = None
    for found in _tables(current):
        for offset in range(0, REACH, STEP):
            try:
                maddr = locate(current, vaddr + offset, found)
            except XenError:
                continue
            if home in (None, maddr) and memory.read(maddr, SAMPLE) == wanted:
                return Move(offset, maddr - paddr if home is None else 0)
    return None


def _tables(current: Current) -> Iterator[Tables]:
    """The tables in use, and the kernel's own while a program runs that sees less of it."""
    found = tables(current)
    if found is not None:
        yield found
        if found.root & PAGE_SIZE:
            yield replace(found, root=found.root & ~PAGE_SIZE)


@lru_cache(maxsize=2)
def anchor_of(image: Image) -> tuple[Segment, int] | None:
    """Bytes that never change: the segment that they are in, and where they are in it."""
    for anchor in ANCHORS:
        for segment in image.segments:
            for found in anchor.finditer(segment.data, 0, max(0, len(segment.data) - SAMPLE)):
                if (segment.paddr + found.start()) % PAGE_SIZE <= PAGE_SIZE - SAMPLE:
                    return segment, found.start()
    return None


@lru_cache(maxsize=1)
def _moved(image: Image, move: Move) -> Image:
    return image.moved(move.virtual, move.physical)
