"""A snapshot as a file, which another process, on another machine, can go on from.

No code is in a file, and none runs when it is read: see `xenemu.encoding`. `xenemu.snapfile` has
what the bytes are. A file is for the xenemu that wrote it: the version of the format, of xenemu and
of the engine must be the same.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from xenemu import __version__, snapfile
from xenemu.cpu.shim import UNICORN_VERSION
from xenemu.encoding import DecodeError, decode, encode
from xenemu.errors import UsageError
from xenemu.hv.memory import Memory
from xenemu.hv.page_info import RECORD
from xenemu.hv.snapshot import PIECE_SIZE
from xenemu.machine.snapshot import Snapshot
from xenemu.mapping import Run
from xenemu.records import dataclass
from xenemu.snapfile import DIGEST_SIZE, FORMAT, NONSENSE, Header
from xenemu.x86.paging import PAGE_SHIFT

__all__ = ["DIGEST_SIZE", "Header", "Saved", "Unpacked", "read", "write"]


@dataclass(frozen=True)
class Saved:
    """What was read from a file."""

    header: Header
    snapshot: Snapshot
    digest: bytes = b""  # the file's
    kernel_digest: str = ""  # of the kernel that the header names, as it is now


@dataclass
class Unpacked:
    """The content of a memory: memory itself, until it is given away, and where it has anything."""

    ram: mmap.mmap | None
    sizes: list[tuple[int, int]]

    def runs(self) -> Iterator[Run]:
        """What is not zero."""
        assert self.ram is not None, "it is given away"
        view = memoryview(self.ram)
        return ((at, view[at : at + size]) for at, size in self.sizes)

    def make(self, nr_frames: int) -> Memory:
        """The memory, which is given away."""
        assert self.ram is not None, "it is given away"
        ram, self.ram = self.ram, None
        return Memory(nr_frames, ram)

    def put(self, memory: Memory) -> None:
        """Make another memory hold it."""
        zeroes = bytes(PIECE_SIZE)
        for at in range(0, len(memory.bytes), PIECE_SIZE):
            piece = memory.bytes[at : at + PIECE_SIZE]
            if bytes(piece) != zeroes[: len(piece)]:
                piece[:] = zeroes[: len(piece)]
        for at, data in self.runs():
            memory.bytes[at : at + len(data)] = data


def write(file: Callable[[bytes], object], header: Header, snapshot: Snapshot) -> None:
    """Give a file's bytes to `file`; of the header, the fields of the format are set here."""
    domain = snapshot.domain
    assert domain.content is not None
    header.engine = UNICORN_VERSION
    plain = encode(replace(snapshot, domain=replace(domain, content=None)), {})
    snapfile.write(file, header, plain, domain.nr_frames << PAGE_SHIFT, domain.content.runs())


def read(path: Path) -> Saved:
    """Read a file; UsageError says why it cannot be used."""
    parts = snapfile.read(path)
    header = parts.header
    if (header.format, header.version, header.engine) != (FORMAT, __version__, UNICORN_VERSION):
        raise UsageError(
            f"{path}: made by xenemu {header.version} (format {header.format}, engine"
            f" {header.engine}); this is {__version__} (format {FORMAT}, engine"
            f" {UNICORN_VERSION})"
        )
    try:
        snapshot = decode(parts.plain, {}, Snapshot)
        domain = snapshot.domain
        if domain.nr_frames << PAGE_SHIFT != header.ram_size:
            raise DecodeError("its memory has another size than its header says")
        if len(domain.page_info) != domain.nr_frames * RECORD.size:
            raise DecodeError("its frame table has another size than its memory")
    except MemoryError:
        raise UsageError(f"{path}: this host has not the memory that it takes") from None
    except NONSENSE as error:
        raise UsageError(f"{path}: no snapshot that this xenemu can use: {error}") from None
    domain = replace(domain, content=Unpacked(parts.ram, header.runs))
    return Saved(header, replace(snapshot, domain=domain), parts.digest, parts.kernel_digest)
