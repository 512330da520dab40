"""Blocks over a disk, kept in a file, so that a later run goes on from them.

The file begins with a header of a block, which names the disk's size and its file's time of change.
Then comes a bitmap: a bit for each block of the disk, in whole blocks, which says whether the block
is here. Then come the blocks, each where it is in the disk; the file has holes where there is none.

A flush writes blocks before the bits that stand for them. So if the process is killed, the file has
what was flushed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import field
from typing import Final

from xenemu.dom0.disk import BLOCK_SIZE, ZEROES, punch_hole
from xenemu.records import dataclass

MAGIC: Final = b"xenemu overlay 1"
HEADER: Final = struct.Struct("<16sQq")
BITS: Final = 8 * BLOCK_SIZE  # in a block of the bitmap
LARGEST: Final = 16 << 40  # bytes of a disk: its bitmap is in memory


class OverlayError(Exception):
    """The file is of no use here: `str()` says why."""


@dataclass
class BlocksInFile:
    """The blocks of an overlay, in a file that this has for itself; see `xenemu.dom0.disk.Blocks`.

    What they hold is not part of a snapshot. `changed` are the blocks of the bitmap that a flush
    has to write.
    """

    descriptor: int
    disk_size: int
    bitmap: bytearray = field(init=False, repr=False)
    present: set[int] = field(default_factory=set, init=False)
    changed: set[int] = field(default_factory=set, init=False)

    @classmethod
    def open(cls, descriptor: int, disk_size: int, disk_changed_ns: int) -> BlocksInFile:
        """Begin in an empty file, or go on in one of the same disk; OverlayError, OSError."""
        header = HEADER.pack(MAGIC, disk_size, disk_changed_ns)
        found = os.pread(descriptor, HEADER.size, 0)
        blocks = cls(descriptor, disk_size)
        if not found:
            os.ftruncate(descriptor, blocks._at(0))
            os.pwrite(descriptor, header, 0)
            return blocks
        if found[: len(MAGIC)] != MAGIC:
            raise OverlayError("it is not empty, and no overlay of xenemu's")
        if found != header:
            raise OverlayError("it is over another disk, or over this one before it was changed")
        blocks._load()
        return blocks

    def __post_init__(self) -> None:
        count = (self.disk_size + BLOCK_SIZE - 1) // BLOCK_SIZE
        self.bitmap = bytearray((count + BITS - 1) // BITS * BLOCK_SIZE)

    def _load(self) -> None:
        self.bitmap[:] = os.pread(self.descriptor, len(self.bitmap), BLOCK_SIZE).ljust(
            len(self.bitmap), b"\0"
        )
        for at, byte in enumerate(self.bitmap):
            if byte:
                self.present.update(8 * at + bit for bit in range(8) if byte >> bit & 1)

    def _at(self, number: int) -> int:
        """Where a block is in the file."""
        return BLOCK_SIZE + len(self.bitmap) + number * BLOCK_SIZE

    def get(self, number: int) -> bytes | None:
        if number not in self.present:
            return None
        return os.pread(self.descriptor, BLOCK_SIZE, self._at(number)).ljust(BLOCK_SIZE, b"\0")

    def put(self, number: int, block: bytes) -> None:
        if os.pwrite(self.descriptor, block, self._at(number)) != len(block):
            raise OSError("the overlay's file takes no more")
        self._add([number])

    def _add(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number not in self.present:
                self.present.add(number)
                self.bitmap[number >> 3] |= 1 << (number & 7)
                self.changed.add(number // BITS)

    def any_of(self, numbers: range) -> bool:
        return bool(self.present) and not self.present.isdisjoint(numbers)

    def discard(self, numbers: range) -> None:
        """Blocks that are here read as zeroes; the others take no room."""
        if not numbers:
            return
        try:  # at once: there are holes already where no block is
            punch_hole(self.descriptor, self._at(numbers.start), len(numbers) * BLOCK_SIZE)
        except OSError:
            fewer = numbers if len(numbers) < len(self.present) else sorted(self.present)
            for number in fewer:
                if number in self.present and number in numbers:
                    self.put(number, ZEROES)

    def flush(self) -> None:
        os.fdatasync(self.descriptor)
        if not self.changed:
            return
        for number in sorted(self.changed):
            start = number * BLOCK_SIZE
            part = self.bitmap[start : start + BLOCK_SIZE]
            if os.pwrite(self.descriptor, part, BLOCK_SIZE + start) != len(part):
                raise OSError("the overlay's file takes no more")
        os.fdatasync(self.descriptor)
        self.changed.clear()

    def save(self) -> object:
        return None

    def restore(self, state: object) -> None:
        pass
