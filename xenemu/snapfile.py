"""The bytes of a snapshot's file, whatever machine it is of: to pack them, and to unpack them.

The file has a header, which says what is in it, then the machine's plain data, then the pages of
its memory that are not all zeroes. All but the header is compressed, in blocks. A digest of all
that is before it ends the file: so damage is found before anything is read.

A file is unpacked aside, while the rest of xenemu is imported (`read_ahead`). So little is imported
here.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from xenemu import __version__
from xenemu.aside import Aside
from xenemu.encoding import DecodeError
from xenemu.errors import OutputError, UsageError
from xenemu.mapping import Run, anonymous

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC: Final = b"xenemu snapshot\n"
FORMAT: Final = 3
LEVEL: Final = 1  # of compression: the quickest
DIGEST_SIZE: Final = 32
LENGTH_SIZE: Final = 4  # of the header's length
LARGEST_HEADER: Final = 1 << 20
LARGEST_PLAIN: Final = 1 << 30
PLAIN: Final = 64 << 20  # bytes of plain data that any guest may have,
XENS: Final = 256 << 20  # and of memory that is not the guest's
BLOCK: Final = 1 << 22  # bytes of memory that are compressed as one
PAGE_SIZE: Final = 4096
NONSENSE: Final = (  # what bytes that no xenemu wrote can come to
    AttributeError,
    EOFError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
)


class Header(msgspec.Struct, kw_only=True):
    """What a file says of itself, before anything that takes time to read."""

    format: int = FORMAT
    version: str = __version__
    engine: str = ""  # Unicorn's version
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
    ram_size: int = 0  # bytes of address space
    runs: list[tuple[int, int]] = []  # of memory: machine address, size

    @property
    def most_plain(self) -> int:
        """How much plain data there may be: it grows with memory, and with what is on disks."""
        return LARGEST_PLAIN if self.disks else min(PLAIN + self.memory // 64, LARGEST_PLAIN)


@dataclass
class Parts:
    """What is in a file. `plain` and `ram` are empty if the file is of another format.

    `kernel_digest` is that of the kernel as it is now, or empty if it cannot be read.
    """

    header: Header
    digest: bytes
    plain: bytes
    ram: mmap.mmap
    kernel_digest: str


def write(
    file: Callable[[bytes], object],
    header: Header,
    plain: bytes,
    ram_size: int,
    runs: Iterable[Run],
) -> None:
    """Give a file's bytes to `file`; of the header, the fields of the format are set here.

    OutputError: there is more plain data than a file may have.
    """
    header.plain_size, header.ram_size, header.runs = len(plain), ram_size, []
    if header.plain_size > header.most_plain:
        raise OutputError("--snapshot: the guest has more than a file can take")
    packed, block = [zstd.compress(plain, LEVEL)], bytearray()
    for at, data in runs:
        if header.runs and sum(header.runs[-1]) == at:
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
    for data in (MAGIC, length, encoded, *packed):
        digest.update(data)
        file(data)
    file(digest.digest())


_ahead: dict[Path, Aside[Parts]] = {}


def read(path: Path) -> Parts:
    """Read a file, or take what was read ahead; UsageError says why it cannot be used."""
    ahead = _ahead.pop(path, None)
    return _read(path) if ahead is None else ahead.result()


def read_ahead(path: Path) -> None:
    """Begin to read the file that `read` is soon to be asked for."""
    _ahead[path] = Aside(lambda: _read(path))


def _read(path: Path) -> Parts:
    data = _rest_of(path)
    whole, digest = data[:-DIGEST_SIZE], hashlib.blake2b(MAGIC, digest_size=DIGEST_SIZE)
    digest.update(whole)
    if digest.digest() != data[-DIGEST_SIZE:]:
        raise UsageError(f"{path}: damaged, or not whole: its digest differs")
    try:
        header, rest = _header(whole)
        plain, ram = b"", anonymous(PAGE_SIZE)
        if (header.format, header.version) == (FORMAT, __version__):
            plain, ram = _unpack_all(header, rest)
        return Parts(header, digest.digest(), plain, ram, _digest_of(header.kernel))
    except (MemoryError, OSError):
        raise UsageError(f"{path}: this host has not the memory that it takes") from None
    except NONSENSE as error:
        raise UsageError(f"{path}: no snapshot that this xenemu can use: {error}") from None


def _digest_of(kernel: str) -> str:
    with suppress(OSError, ValueError):
        if os.path.isfile(kernel):
            with open(kernel, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def _rest_of(path: Path) -> memoryview:
    """What is in a file after the magic number."""
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(len(MAGIC)) != MAGIC:  # a device may have no end
                raise UsageError(f"{path}: this is no snapshot of xenemu's")
            return memoryview(file.readall())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _header(data: memoryview) -> tuple[Header, memoryview]:
    end = LENGTH_SIZE + int.from_bytes(data[:LENGTH_SIZE], "little")
    if not LENGTH_SIZE < end <= min(len(data), LARGEST_HEADER):
        raise DecodeError("its header has no end")
    return msgspec.msgpack.decode(data[LENGTH_SIZE:end], type=Header), data[end:]


def _unpack_all(header: Header, data: memoryview) -> tuple[bytes, mmap.mmap]:
    if header.plain_size > header.most_plain:
        raise DecodeError("it has too much plain data")
    _check_runs(header)
    plain, *memory = _cut(data, header.blocks)
    unpacked = _unpack(plain, header.plain_size)
    ram = anonymous(header.ram_size)
    _fill(ram, header.runs, memory)
    return unpacked, ram


def _check_runs(header: Header) -> None:
    """DecodeError unless the runs are pages of the memory that they are for, one after another."""
    end = 0
    for at, size in header.runs:
        if not end <= at < at + size <= header.ram_size or (at | size) % PAGE_SIZE:
            raise DecodeError("a run of memory lies outside memory, or in another")
        end = at + size
    if header.ram_size <= 0 or sum(size for _, size in header.runs) > header.memory + XENS:
        raise DecodeError("it has more memory than it says")


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


def _fill(ram: mmap.mmap, runs: list[tuple[int, int]], blocks: list[memoryview]) -> None:
    """Unpack the blocks one after another to where the runs are; DecodeError."""
    base = ctypes.addressof(ctypes.c_char.from_buffer(ram))
    for at, size in runs:
        with suppress(OSError):  # a host without large pages
            ram.madvise(mmap.MADV_HUGEPAGE, at, size)
    places = iter(runs)
    at, room = next(places, (0, 0))
    for block in blocks:
        data, begin = _unpack(block, BLOCK), 0
        while begin < len(data):
            if not room:
                at, room = next(places, (0, 0))
            size = min(room, len(data) - begin)
            if not size:
                raise DecodeError("it has more memory than it says")
            part = data if size == len(data) else data[begin : begin + size]
            ctypes.memmove(base + at, part, size)  # which lets others have Python's lock
            at, room, begin = at + size, room - size, begin + size
    if room or next(places, None):
        raise DecodeError("its memory ends too early")
