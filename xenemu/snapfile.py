"""The bytes of a snapshot's file, whatever machine it is of: to pack them, and to unpack them.

The file has a header, which says what is in it, then the machine's plain data, then the pages of
its memory that are not all zeroes. All but the header is compressed, in blocks. A digest of all
that is before it ends the file: so damage is found before anything is read.

A file is unpacked by another process while the rest of xenemu is imported (`read_ahead`). So little
is imported here.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from xenemu import __version__
from xenemu.encoding import DecodeError
from xenemu.errors import OutputError, UsageError
from xenemu.mapping import Run, anonymous, private
from xenemu.records import dataclass

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC: Final = b"xenemu snapshot\n"
RECORDING_MAGIC: Final = b"xenemu recording\n"  # of recording/file, which is no snapshot
FORMAT: Final = 3
LEVEL: Final = 1  # of compression: the quickest
DIGEST_SIZE: Final = 32
LENGTH_SIZE: Final = 4  # of the header's length
LARGEST_HEADER: Final = 1 << 20
LARGEST_PLAIN: Final = 1 << 30
PLAIN: Final = 64 << 20  # bytes of plain data that any guest may have,
XENS: Final = 256 << 20  # and of memory that is not the guest's
BLOCK: Final = 256 << 10  # bytes of memory that are compressed as one: as much as a cache holds
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
    is_shell: bool = False  # /init is a shell of xenemu's own making
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


_ahead: dict[Path, _Ahead] = {}


def read(path: Path) -> Parts:
    """Read a file, or take what was read ahead; UsageError says why it cannot be used."""
    ahead = _ahead.pop(path, None)
    return (ahead and ahead.parts()) or _read(path, _Here())


def looks_like_one(path: Path) -> bool:
    """Whether it is a file that begins as a snapshot's does."""
    with suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                return file.read(len(MAGIC)) == MAGIC
    return False


def read_ahead(path: Path) -> None:
    """Begin to read the file that `read` is soon to be asked for, in a process of its own.

    To be called while this process is small. A thread would not do: for each block of memory, it
    would have to wait for Python's lock.
    """
    with suppress(OSError):  # it is read later
        _ahead[path] = _Ahead(path)


class _Place(Protocol):
    """Where memory is unpacked to."""

    def begin(self, header: Header) -> None:
        """Make room."""

    def put(self, at: int, data: bytes) -> None:
        """Store some of it."""


class _Here:
    """Memory of this process."""

    def begin(self, header: Header) -> None:
        self.ram = anonymous(header.ram_size)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        for at, size in header.runs:
            with suppress(OSError):  # a host without large pages
                self.ram.madvise(mmap.MADV_HUGEPAGE, at, size)

    def put(self, at: int, data: bytes) -> None:
        ctypes.memmove(self._base + at, data, len(data))


class _There:
    """Memory that another process will map: a file without a name. The plain data follow it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def begin(self, header: Header) -> None:
        os.truncate(self._descriptor, header.ram_size)

    def put(self, at: int, data: bytes) -> None:
        os.pwrite(self._descriptor, data, at)


class _Answer(msgspec.Struct):
    """What a process that reads a file has found: `error`, or the rest."""

    error: str = ""
    header: Header | None = None
    digest: bytes = b""
    kernel_digest: str = ""


class _Ahead:
    """A process that reads a file."""

    def __init__(self, path: Path) -> None:
        self._ram = os.memfd_create("xenemu-ram")
        self._told, tell = os.pipe()
        self._process = os.fork()
        if not self._process:
            with suppress(BaseException):
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.write(tell, msgspec.msgpack.encode(self._read(path)))
            os._exit(0)
        os.close(tell)

    def _read(self, path: Path) -> _Answer:
        there = _There(self._ram)
        try:
            parts = _read(path, there)
        except UsageError as error:
            return _Answer(str(error))
        there.put(parts.header.ram_size, parts.plain)
        return _Answer("", parts.header, parts.digest, parts.kernel_digest)

    def parts(self) -> Parts | None:
        """What is in the file, when it is read; None if that process has failed. UsageError."""
        with open(self._told, "rb") as told, open(self._ram, "rb+", buffering=0) as ram:
            data = told.read()
            os.waitpid(self._process, 0)
            try:
                answer = msgspec.msgpack.decode(data, type=_Answer)
                if answer.error:
                    raise UsageError(answer.error)
                assert answer.header is not None
                size = answer.header.ram_size
                plain = os.pread(ram.fileno(), answer.header.plain_size, size)
                mapped = private(ram.fileno(), size)
            except (msgspec.MsgspecError, OSError):
                return None
        return Parts(answer.header, answer.digest, plain, mapped, answer.kernel_digest)


def _read(path: Path, place: _Place) -> Parts:
    data = _rest_of(path)
    whole, digest = data[:-DIGEST_SIZE], hashlib.blake2b(MAGIC, digest_size=DIGEST_SIZE)
    digest.update(whole)
    if digest.digest() != data[-DIGEST_SIZE:]:
        raise UsageError(f"{path}: damaged, or not whole: its digest differs")
    try:
        header, rest = _header(whole)
        plain = b""
        if (header.format, header.version) == (FORMAT, __version__):
            plain = _unpack_all(header, rest, place)
        ram = place.ram if isinstance(place, _Here) and plain else anonymous(PAGE_SIZE)
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


def open_now(path: Path, buffering: int = -1) -> IO[bytes]:
    """Open a file to read; if it is a FIFO, without waiting for somebody who writes to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb", buffering)


def _rest_of(path: Path) -> memoryview:
    """What is in a file after the magic number."""
    try:
        with open_now(path, buffering=0) as file:
            magic = file.read(len(MAGIC))  # a device may have no end
            if magic == RECORDING_MAGIC[: len(MAGIC)]:
                raise UsageError(f"{path}: a recording, no snapshot: xenemu replay repeats its run")
            if magic != MAGIC:
                raise UsageError(f"{path}: this is no snapshot of xenemu's")
            return memoryview(file.read())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _header(data: memoryview) -> tuple[Header, memoryview]:
    end = LENGTH_SIZE + int.from_bytes(data[:LENGTH_SIZE], "little")
    if not LENGTH_SIZE < end <= min(len(data), LARGEST_HEADER):
        raise DecodeError("its header has no end")
    return msgspec.msgpack.decode(data[LENGTH_SIZE:end], type=Header), data[end:]


def _unpack_all(header: Header, data: memoryview, place: _Place) -> bytes:
    """The plain data; memory is where it is wanted."""
    if header.plain_size > header.most_plain:
        raise DecodeError("it has too much plain data")
    _check_runs(header)
    plain, *memory = _cut(data, header.blocks)
    unpacked = _unpack(plain, header.plain_size)
    place.begin(header)
    _fill(place, header.runs, memory)
    return unpacked


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


def _fill(place: _Place, runs: list[tuple[int, int]], blocks: list[memoryview]) -> None:
    """Unpack the blocks one after another to where the runs are; DecodeError."""
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
            place.put(at, data if size == len(data) else data[begin : begin + size])
            at, room, begin = at + size, room - size, begin + size
    if room or next(places, None):
        raise DecodeError("its memory ends too early")
