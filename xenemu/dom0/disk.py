"""What the blocks of a disk are kept in: a file, and what the guest has written since.

A disk reads into views of the guest's memory, and writes out of them, so that no byte passes
through Python if it need not. Offsets and sizes are bytes, and lie within the disk. An OSError is
the host's, and becomes an error of the request.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import BinaryIO, Final, Protocol

from xenemu.records import dataclass

BLOCK_SHIFT: Final = 12
BLOCK_SIZE: Final = 1 << BLOCK_SHIFT
ZEROES: Final = bytes(BLOCK_SIZE)
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
# The system calls of all disks; Python takes the second form of two of them.
CALLS: Final = "pread64 preadv preadv2 pwrite64 pwritev pwritev2 fdatasync fallocate".split()

Views = Sequence[memoryview]


class Disk(Protocol):
    """A disk: `size` bytes."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, views: Views) -> None:
        """Fill the views, one after the other, from `offset` on."""

    def write(self, offset: int, views: Views) -> None:
        """Store the views, one after the other, from `offset` on."""

    def discard(self, offset: int, size: int) -> None:
        """What is there is not needed any more: it may read as anything."""

    def file_at(self, offset: int, size: int, to_write: bool) -> int | None:
        """The file that has these bytes at this offset, and may be written to if that is asked."""

    def flush(self) -> None:
        """Return when all that was written outlives this process, and this host."""

    def save(self) -> object:
        """What a snapshot must know to go back."""

    def restore(self, state: object) -> None:
        """Go back to what `save` returned."""


def size_of(views: Views) -> int:
    """The bytes in all of the views."""
    return sum(map(len, views))


@dataclass
class FileDisk:
    """A file of exactly the disk's bytes, which is written to.

    DIVERGES from the rule of snapshots: what a file holds is not part of one.
    """

    descriptor: int
    size: int

    def read(self, offset: int, views: Views) -> None:
        for at, some in _batches(offset, views):
            _whole(os.preadv(self.descriptor, some, at), some)

    def write(self, offset: int, views: Views) -> None:
        for at, some in _batches(offset, views):
            _whole(os.pwritev(self.descriptor, some, at), some)

    def discard(self, offset: int, size: int) -> None:
        if size:
            punch_hole(self.descriptor, offset, size)

    def file_at(self, offset: int, size: int, to_write: bool) -> int | None:
        return self.descriptor

    def flush(self) -> None:
        os.fdatasync(self.descriptor)

    def save(self) -> object:
        return None

    def restore(self, state: object) -> None:
        pass


@dataclass
class StreamDisk:
    """A file in another form, as a library reads it; it is never written to."""

    stream: BinaryIO
    size: int

    def read(self, offset: int, views: Views) -> None:
        try:
            self.stream.seek(offset)
            data = memoryview(self.stream.read(size_of(views)))
        except OSError:
            raise
        except Exception as error:  # whatever the library meets in a file that is damaged
            raise OSError(errno.EIO, f"{error}") from error
        _whole(len(data), views)
        for view in views:
            view[:] = data[: len(view)]
            data = data[len(view) :]

    def write(self, offset: int, views: Views) -> None:
        raise NotImplementedError("an overlay is over it")

    def discard(self, offset: int, size: int) -> None:
        raise NotImplementedError("an overlay is over it")

    def file_at(self, offset: int, size: int, to_write: bool) -> int | None:
        return None

    def flush(self) -> None:
        pass

    def save(self) -> object:
        return None

    def restore(self, state: object) -> None:
        pass


class Blocks(Protocol):
    """Where an overlay keeps blocks of BLOCK_SIZE bytes by their numbers."""

    def get(self, number: int) -> bytes | None: ...
    def put(self, number: int, block: bytes) -> None: ...
    def any_of(self, numbers: range) -> bool: ...
    def discard(self, numbers: range) -> None: ...
    def flush(self) -> None: ...
    def save(self) -> object: ...
    def restore(self, state: object) -> None: ...


@dataclass
class BlocksInMemory:
    """Blocks in this process's memory, which go with it."""

    blocks: dict[int, bytes] = field(default_factory=dict)

    def get(self, number: int) -> bytes | None:
        return self.blocks.get(number)

    def put(self, number: int, block: bytes) -> None:
        self.blocks[number] = block

    def any_of(self, numbers: range) -> bool:
        return bool(self.blocks) and not self.blocks.keys().isdisjoint(numbers)

    def discard(self, numbers: range) -> None:
        """Blocks that are here read as zeroes; the others take no room."""
        if len(numbers) > len(self.blocks):
            discarded = [number for number in self.blocks if number in numbers]
        else:
            discarded = [number for number in numbers if number in self.blocks]
        for number in discarded:
            self.blocks[number] = ZEROES

    def flush(self) -> None:
        pass

    def save(self) -> object:
        return dict(self.blocks)

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self.blocks = dict(state)


@dataclass
class OverlayDisk:
    """Blocks over a disk that stays as it is."""

    base: Disk
    blocks: Blocks

    @property
    def size(self) -> int:
        return self.base.size

    def read(self, offset: int, views: Views) -> None:
        size = size_of(views)
        if not self.blocks.any_of(_numbers(offset, size)):
            self.base.read(offset, views)
            return
        data = memoryview(b"".join(self._pieces(offset, size)))
        for view in views:
            view[:] = data[: len(view)]
            data = data[len(view) :]

    def write(self, offset: int, views: Views) -> None:
        size = size_of(views)
        data = memoryview(views[0] if len(views) == 1 else b"".join(views))
        for number in _numbers(offset, size):
            start, end = number << BLOCK_SHIFT, number + 1 << BLOCK_SHIFT
            if start >= offset and end <= offset + size:
                block = bytes(data[start - offset : end - offset])
            else:
                old = bytearray(self._block(number))
                first, last = max(start, offset), min(end, offset + size)
                old[first - start : last - start] = data[first - offset : last - offset]
                block = bytes(old)
            self.blocks.put(number, block)

    def discard(self, offset: int, size: int) -> None:
        whole = range(_numbers(offset, BLOCK_SIZE)[-1], offset + size >> BLOCK_SHIFT)
        self.blocks.discard(whole)

    def file_at(self, offset: int, size: int, to_write: bool) -> int | None:
        if to_write or self.blocks.any_of(_numbers(offset, size)):
            return None
        return self.base.file_at(offset, size, to_write)

    def flush(self) -> None:
        self.blocks.flush()

    def save(self) -> object:
        return self.blocks.save()

    def restore(self, state: object) -> None:
        self.blocks.restore(state)

    def _block(self, number: int) -> bytes:
        """A block as it is now; what lies beyond the disk's end is zeroes."""
        block = self.blocks.get(number)
        if block is None:
            start = number << BLOCK_SHIFT
            read = bytearray(BLOCK_SIZE)
            self.base.read(start, [memoryview(read)[: min(BLOCK_SIZE, self.size - start)]])
            block = bytes(read)
        return block

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        """The bytes, block by block, those of the disk below in one read for each run of them."""
        end = offset + size
        run = at = offset  # what lies between them is the disk's below
        for number in _numbers(offset, size):
            start = max(number << BLOCK_SHIFT, offset)
            at = min(number + 1 << BLOCK_SHIFT, end)
            block = self.blocks.get(number)
            if block is not None:
                yield self._below(run, start)
                yield block[start & BLOCK_SIZE - 1 :][: at - start]
                run = at
        yield self._below(run, end)

    def _below(self, start: int, end: int) -> bytes:
        if start == end:
            return b""
        data = bytearray(end - start)
        self.base.read(start, [memoryview(data)])
        return bytes(data)


def _numbers(offset: int, size: int) -> range:
    """The blocks of which these bytes have a part."""
    return range(offset >> BLOCK_SHIFT, (offset + size + BLOCK_SIZE - 1) >> BLOCK_SHIFT)


IOV_MAX: Final = 1024


def _batches(offset: int, views: Views) -> Iterator[tuple[int, Views]]:
    """As many views at a time as the host takes in one call."""
    if len(views) <= IOV_MAX:
        yield offset, views
        return
    for first in range(0, len(views), IOV_MAX):
        some = views[first : first + IOV_MAX]
        yield offset, some
        offset += size_of(some)


def _whole(count: int, views: Views) -> None:
    if count != size_of(views):
        raise OSError(f"{count} bytes of {size_of(views)}: the file is shorter than it was")


def punch_hole(descriptor: int, offset: int, size: int) -> None:
    """Give a part of a file back to the host, which reads as zeroes; OSError if it cannot."""
    call = ctypes.CDLL(None, use_errno=True).fallocate64
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
