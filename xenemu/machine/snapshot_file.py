"""A snapshot as a file, which another process, on another machine, can go on from.

The file has a header, which says what is in it, then the machine's plain data, then the pages of
its memory that are not all zeroes. All but the header is compressed, in blocks. A digest of all
that is before it ends the file: so damage is found before anything is read.

No code is in a file, and none runs when it is read: see `xenemu.encoding`. A file is for the xenemu
that wrote it: the version of the format, of xenemu and of the engine must be the same.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from xenemu import __version__
from xenemu.cpu.shim import UNICORN_VERSION
from xenemu.encoding import DecodeError, decode, encode
from xenemu.errors import OutputError, UsageError
from xenemu.hv.memory import Memory
from xenemu.hv.page_info import RECORD
from xenemu.hv.snapshot import Run
from xenemu.image.loader import SNAPSHOT_MAGIC
from xenemu.machine.snapshot import Snapshot
from xenemu.x86.paging import PAGE_SHIFT, Maddr

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = 2
LEVEL: Final = 1  # of compression: the quickest
DIGEST_SIZE: Final = 32
LENGTH_SIZE: Final = 4  # of the header's length
LARGEST_HEADER: Final = 1 << 20
PLAIN: Final = 64 << 20  # bytes of plain data that any guest may have
LARGEST_PLAIN: Final = 1 << 30
BLOCK: Final = 256 << 10  # bytes of memory that are compressed as one: as much as a cache holds
NONSENSE: Final = (  # what bytes that no xenemu wrote can come to
    AttributeError,
    EOFError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
)


class Header(msgspec.Struct, kw_only=True):
    """What a file says of itself, before anything that takes time to read."""

    format: int = FORMAT
    version: str = __version__
    engine: str = UNICORN_VERSION
    kernel: str  # its path when it was booted
    kernel_digest: str  # SHA-256 of that file
    entry: str
    memory: int  # bytes, as the person asked for them
    name: str = "guest"  # the domain's
    vcpus: int = 1
    disks: list[str] = []  # as options of `xenemu run` have them,
    disk_digests: list[str] = []  # SHA-256 of the files
    nets: list[str] = []
    now_ns: int = 0
    instructions: int = 0
    # For who reads the rest.
    plain_size: int = 0
    blocks: list[int] = []  # the compressed size of each: first the plain data, then memory
    runs: list[tuple[int, int]] = []  # of memory: machine address, size


@dataclass(frozen=True)
class Saved:
    """What was read from a file."""

    header: Header
    snapshot: Snapshot
    digest: bytes = b""  # the file's


@dataclass(frozen=True)
class Stored:
    """The content of a memory in a file that is open: `blocks` after each other are its `runs`."""

    blocks: list[memoryview]
    sizes: list[tuple[int, int]]

    def runs(self) -> Iterator[Run]:
        """Unpack them; DecodeError."""
        block, blocks = memoryview(b""), _unpacked(self.blocks)
        for start, size in self.sizes:
            at, end = start, start + size
            while at < end:
                block = block or memoryview(next(blocks, b""))
                if not block:
                    raise DecodeError("its memory ends too early")
                part = block[: end - at]
                yield at, part
                at, block = at + len(part), block[len(part) :]
        if block or any(blocks):
            raise DecodeError("it has more memory than it says")

    def put(self, memory: Memory, is_new: bool) -> None:
        """Make a memory hold it; DecodeError."""
        if not is_new:
            memory.mapping.madvise(mmap.MADV_DONTNEED)  # zeroes again
        ram = memory.bytes
        for at, size in self.sizes:
            memory.prepare(Maddr(at), size)
        for at, part in self.runs():
            ram[at : at + len(part)] = part


def write(file: Callable[[bytes], object], header: Header, snapshot: Snapshot) -> None:
    """Give a file's bytes to `file`; of the header, the fields of the format are set here."""
    assert snapshot.domain.content is not None
    bare = replace(snapshot, domain=replace(snapshot.domain, content=None))
    plain = encode(bare, {})
    header.plain_size, header.runs = len(plain), []
    if header.plain_size > _most_plain(header):
        raise OutputError("--snapshot: the guest has more than a file can take")
    packed, block = [zstd.compress(plain, LEVEL)], bytearray()
    for at, data in snapshot.domain.content.runs():
        if header.runs and sum(header.runs[-1]) == at:  # a piece ends where the next begins
            start, size = header.runs.pop()
            header.runs.append((start, size + len(data)))
        else:
            header.runs.append((at, len(data)))
        block += data
        while len(block) >= BLOCK:
            packed.append(zstd.compress(block[:BLOCK], LEVEL))
            del block[:BLOCK]
    if block:
        packed.append(zstd.compress(block, LEVEL))
    header.blocks = [len(each) for each in packed]
    encoded = msgspec.msgpack.encode(header)
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    length = len(encoded).to_bytes(LENGTH_SIZE, "little")
    for data in (SNAPSHOT_MAGIC, length, encoded, *packed):
        digest.update(data)
        file(data)
    file(digest.digest())


def read(path: Path) -> Saved:
    """Read a file; UsageError says why it cannot be used."""
    data = _rest_of(path)
    whole, digest = data[:-DIGEST_SIZE], hashlib.blake2b(SNAPSHOT_MAGIC, digest_size=DIGEST_SIZE)
    digest.update(whole)
    if digest.digest() != data[-DIGEST_SIZE:]:
        raise UsageError(f"{path}: damaged, or not whole: its digest differs")
    try:
        header, rest = _header(whole)
        if (header.format, header.version, header.engine) != (FORMAT, __version__, UNICORN_VERSION):
            raise UsageError(
                f"{path}: made by xenemu {header.version} (format {header.format}, engine"
                f" {header.engine}); this is {__version__} (format {FORMAT}, engine"
                f" {UNICORN_VERSION})"
            )
        return Saved(header, _snapshot(header, rest), digest.digest())
    except MemoryError:
        raise UsageError(f"{path}: this host has not the memory that it takes") from None
    except NONSENSE as error:
        raise UsageError(f"{path}: no snapshot that this xenemu can use: {error}") from None


def _rest_of(path: Path) -> memoryview:
    """What is in a file after the magic number."""
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(len(SNAPSHOT_MAGIC)) != SNAPSHOT_MAGIC:  # a device may have no end
                raise UsageError(f"{path}: this is no snapshot of xenemu's")
            return memoryview(file.readall())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _header(data: memoryview) -> tuple[Header, memoryview]:
    end = LENGTH_SIZE + int.from_bytes(data[:LENGTH_SIZE], "little")
    if not LENGTH_SIZE < end <= min(len(data), LARGEST_HEADER):
        raise DecodeError("its header has no end")
    return msgspec.msgpack.decode(data[LENGTH_SIZE:end], type=Header), data[end:]


def _snapshot(header: Header, data: memoryview) -> Snapshot:
    if header.plain_size > _most_plain(header):
        raise DecodeError("it has too much plain data")
    plain, *memory = _cut(data, header.blocks)
    snapshot = decode(_unpack(plain, header.plain_size), {}, Snapshot)
    _check_sizes(snapshot.domain.nr_frames, snapshot.domain.page_info, header.runs)
    content = Stored(memory, header.runs)
    return replace(snapshot, domain=replace(snapshot.domain, content=content))


def _most_plain(header: Header) -> int:
    """How much plain data a file may have, which grows with memory, and with what is on disks."""
    return LARGEST_PLAIN if header.disks else min(PLAIN + header.memory // 64, LARGEST_PLAIN)


def _cut(data: memoryview, sizes: list[int]) -> Iterator[memoryview]:
    """The blocks of a file, each of its size."""
    if sum(sizes) != len(data) or min(sizes, default=0) < 0:
        raise DecodeError("its blocks do not end where it ends")
    end = 0
    for size in sizes:
        yield data[end : end + size]
        end += size


def _unpack(block: memoryview, most: int) -> bytes:
    """A block of no more than so many bytes; DecodeError."""
    stream = zstd.ZstdDecompressor()
    try:
        data = stream.decompress(block, most)
        if not stream.eof and stream.decompress(b"", 1):
            raise DecodeError("it has more data than it says")
    except zstd.ZstdError as error:
        raise DecodeError(str(error)) from None
    if not stream.eof or stream.unused_data:
        raise DecodeError("a block does not end where it should")
    return data


def _unpacked(blocks: Iterable[memoryview]) -> Iterator[bytes]:
    return (_unpack(block, BLOCK) for block in blocks)


def _check_sizes(nr_frames: int, page_info: bytes, runs: list[tuple[int, int]]) -> None:
    """DecodeError unless the runs lie within the memory that they are for, one after another."""
    if len(page_info) != nr_frames * RECORD.size:
        raise DecodeError("its frame table has another size than its memory")
    end = 0
    for at, size in runs:
        if not end <= at < at + size <= nr_frames << PAGE_SHIFT:
            raise DecodeError("a run of memory lies outside memory, or in another")
        end = at + size
