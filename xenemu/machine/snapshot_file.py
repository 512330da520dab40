"""A snapshot as a file, which another process, on another machine, can go on from.

The file has a header, which says what is in it, then the machine's plain data, then its memory
without the pieces that are all zeroes. All but the header is compressed. A digest of all that is
before it ends the file: so damage is found before anything is read.

No code is in a file, and none runs when it is read: see `xenemu.encoding`. A file is for the xenemu
that wrote it: the version of the format, of xenemu and of the engine must be the same.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from xenemu import __version__
from xenemu.cpu.shim import UNICORN_VERSION
from xenemu.encoding import DecodeError, decode, encode
from xenemu.errors import UsageError
from xenemu.hv.page_info import RECORD
from xenemu.image.loader import SNAPSHOT_MAGIC
from xenemu.machine.snapshot import Snapshot
from xenemu.x86.paging import PAGE_SHIFT

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = 1
LEVEL: Final = 1  # of compression: the quickest
DIGEST_SIZE: Final = 32
LARGEST_HEADER: Final = 1 << 20
LARGEST_PLAIN: Final = 1 << 30  # bytes of plain data
NONSENSE: Final = (  # what bytes that no xenemu wrote can come to
    AttributeError,
    EOFError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
    zstd.ZstdError,
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
    pieces: list[tuple[int, int, bool]] = []  # machine address, size, whether its bytes are there


@dataclass(frozen=True)
class Saved:
    """What was read from a file."""

    header: Header
    snapshot: Snapshot


def write(file: Callable[[bytes], object], header: Header, snapshot: Snapshot) -> None:
    """Give a file's bytes to `file`; of the header, the fields of the format are set here."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)

    def put(data: bytes) -> None:
        digest.update(data)
        file(data)

    pieces = snapshot.domain.pieces
    bare = replace(snapshot, domain=replace(snapshot.domain, pieces=[]))
    plain = encode(bare, {})
    header.plain_size = len(plain)
    header.pieces = [(at, size, data is not None) for at, size, data in pieces]
    encoded = msgspec.msgpack.encode(header)
    put(SNAPSHOT_MAGIC + len(encoded).to_bytes(4, "little") + encoded)
    compressor = zstd.ZstdCompressor(LEVEL)
    put(compressor.compress(plain))
    for _, _, data in pieces:
        if data is not None:
            put(compressor.compress(data))
    put(compressor.flush())
    file(digest.digest())


def read(path: Path) -> Saved:
    """Read a file; UsageError says why it cannot be used."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(SNAPSHOT_MAGIC))
            if magic != SNAPSHOT_MAGIC:  # it may be a device, and have no end
                raise UsageError(f"{path}: this is no snapshot of xenemu's")
            data = memoryview(magic + file.read())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    whole = data[:-DIGEST_SIZE]
    if hashlib.blake2b(whole, digest_size=DIGEST_SIZE).digest() != data[-DIGEST_SIZE:]:
        raise UsageError(f"{path}: damaged, or not whole: its digest differs")
    try:
        header, rest = _header(whole)
        if (header.format, header.version, header.engine) != (FORMAT, __version__, UNICORN_VERSION):
            raise UsageError(
                f"{path}: made by xenemu {header.version} (format {header.format}, engine"
                f" {header.engine}); this is {__version__} (format {FORMAT}, engine"
                f" {UNICORN_VERSION})"
            )
        return Saved(header, _snapshot(header, rest))
    except MemoryError:
        raise UsageError(f"{path}: this host has not the memory that it takes") from None
    except NONSENSE as error:
        raise UsageError(f"{path}: no snapshot that this xenemu can use: {error}") from None


def _header(data: memoryview) -> tuple[Header, memoryview]:
    start = len(SNAPSHOT_MAGIC) + 4
    end = start + int.from_bytes(data[len(SNAPSHOT_MAGIC) : start], "little")
    if not start < end <= min(len(data), start + LARGEST_HEADER):
        raise DecodeError("its header has no end")
    return msgspec.msgpack.decode(data[start:end], type=Header), data[end:]


def _snapshot(header: Header, data: memoryview) -> Snapshot:
    present = [size for _, size, there in header.pieces if there]
    if header.plain_size > LARGEST_PLAIN:
        raise DecodeError("it has too much plain data")
    parts = _unpack(data, [header.plain_size, *present])
    snapshot = decode(next(parts), {}, Snapshot)
    # Before the memory is unpacked: little of a file can become a lot.
    _check_sizes(snapshot.domain.nr_frames, snapshot.domain.page_info, header.pieces)
    pieces = [(at, size, next(parts) if there else None) for at, size, there in header.pieces]
    next(parts, None)  # to look at the end
    domain = replace(snapshot.domain, pieces=pieces)
    return replace(snapshot, domain=domain)


def _unpack(data: memoryview, sizes: Iterable[int]) -> Iterator[bytes]:
    """The parts of a compressed stream, each of its size; DecodeError if it ends before."""
    stream = zstd.ZstdDecompressor()
    fed: bytes | memoryview = data
    for size in sizes:
        part = bytearray()
        while len(part) < size:
            more = stream.decompress(fed, size - len(part))
            fed = b""
            if not more and (stream.eof or stream.needs_input):
                raise DecodeError("its data end too early")
            part += more
        yield bytes(part)
    if not stream.eof and stream.decompress(fed, 1):
        raise DecodeError("it has more data than it says")
    if not stream.eof or stream.unused_data:
        raise DecodeError("its data do not end where it ends")


def _check_sizes(nr_frames: int, page_info: bytes, pieces: list[tuple[int, int, bool]]) -> None:
    """DecodeError unless the pieces lie within the memory that they are for, one after another."""
    if len(page_info) != nr_frames * RECORD.size:
        raise DecodeError("its frame table has another size than its memory")
    end = 0
    for at, size, _ in pieces:
        if not end <= at <= at + size <= nr_frames << PAGE_SHIFT:
            raise DecodeError("a piece of memory lies outside memory, or in another")
        end = at + size
