"""A domain as it was at one instant: its plain data, and what its memory held.

The watchers are not part of a snapshot. If a domain takes the place of another, it has the watchers
of that one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Final, Protocol

from xenemu.encoding import decode, encode
from xenemu.hv.frame_table import DOMID_NONE
from xenemu.hv.memory import ZERO_PAGE, Memory
from xenemu.hv.state.domain import Backend, Domain
from xenemu.mapping import Run
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Maddr

PIECE_SIZE: Final = 1 << 20  # memory is kept in pieces of so many bytes, without those of zeroes
ZEROES: Final = bytes(PIECE_SIZE)
MEMORY: Final = ""  # where backends have their names


Piece = tuple[int, int, bytes | None]


class Content(Protocol):
    """What a memory held."""

    def runs(self) -> Iterator[Run]:
        """What is not zero, in runs of whole pages, from the lowest."""

    def make(self, nr_frames: int) -> Memory:
        """A memory of its own that holds it."""

    def put(self, memory: Memory) -> None:
        """Make a memory of the same size hold it."""


@dataclass(frozen=True)
class Pieces:
    """A content in memory: of each piece the machine address, the size, the bytes; None for zeroes.

    Every frame that is ever in use is in one of them.
    """

    pieces: list[Piece]

    @classmethod
    def of(cls, domain: Domain) -> Pieces:
        """What a domain's memory holds now."""
        return cls(list(pieces(domain)))

    def runs(self) -> Iterator[Run]:
        """Runs of pages that are not zero, each within a piece."""
        for at, size, data in self.pieces:
            if data is None:
                continue
            begin = None
            for offset in range(0, size, PAGE_SIZE):
                if data[offset : offset + PAGE_SIZE] != ZERO_PAGE:
                    begin = offset if begin is None else begin
                elif begin is not None:
                    yield at + begin, memoryview(data)[begin:offset]
                    begin = None
            if begin is not None:
                yield at + begin, memoryview(data)[begin:]

    def make(self, nr_frames: int) -> Memory:
        """A new memory with these pieces."""
        memory = Memory(nr_frames)
        for at, size, data in self.pieces:
            if data is not None:
                memory.bytes[at : at + size] = data
        return memory

    def put(self, memory: Memory) -> None:
        """Make a memory hold these pieces again.

        Only pages that differ are written to: the memory may be shared with a fork.
        """
        scratch = bytearray(PIECE_SIZE)  # compares much faster than a view does
        for at, size, data in self.pieces:
            wanted = ZEROES[:size] if data is None else data
            now = scratch if size == PIECE_SIZE else bytearray(size)
            now[:] = memory.bytes[at : at + size]
            if now != wanted:
                for page in range(0, size, PAGE_SIZE):
                    content = wanted[page : page + PAGE_SIZE]
                    if now[page : page + PAGE_SIZE] != content:
                        memory.bytes[at + page : at + page + PAGE_SIZE] = content


@dataclass(frozen=True)
class DomainSnapshot:
    """A domain as it was.

    * `plain` is its plain data, encoded.
    * `backends` have what each of its backends saved, by name.
    * `content` is what its memory held; None while that is kept elsewhere.
    * `page_info` are the records of its memory's frames.
    """

    plain: bytes
    backends: dict[str, object]
    content: Content | None
    nr_frames: int
    page_info: bytes

    @classmethod
    def of(cls, domain: Domain, bare: bool = False) -> DomainSnapshot:
        """Keep what a domain is now; if `bare`, without its memory's content."""
        unwatched = copy.copy(domain)
        unwatched.watch, unwatched.peers = None, {}
        return cls(
            encode(unwatched, {MEMORY: domain.memory, **domain.backends}),
            {name: backend.save() for name, backend in domain.backends.items()},
            None if bare else Pieces.of(domain),
            domain.memory.nr_frames,
            domain.memory.page_info[:],
        )

    def restore(self, now: Domain) -> Domain:
        """The domain as it was, in the memory of the present one, which ends here."""
        assert self.content is not None
        memory = now.memory
        code = {mfn: _frame(memory, mfn) for mfn, was_code in enumerate(memory.code) if was_code}
        self.content.put(memory)
        # What is the same need not be translated anew.
        memory.stale_code.update(mfn for mfn, was in code.items() if was != _frame(memory, mfn))
        domain = self.revive(now.memory, now.backends)
        if now.p2m is not None and domain.p2m is not None:  # the engine looks into it
            now.p2m.become(domain.p2m)
            domain.p2m = now.p2m
        domain.watch, domain.peers = now.watch, now.peers
        del domain.peers[now.domid]  # which a renewed domain has no more
        domain.peers[domain.domid] = domain
        return domain

    def revive(self, memory: Memory, backends: dict[str, Backend]) -> Domain:
        """The domain as it was, in a memory with its content, with backends of the same names.

        DecodeError: the snapshot is of another version of the records, or damaged.
        """
        domain = decode(self.plain, {MEMORY: memory, **backends}, Domain)
        for name, state in self.backends.items():
            backends[name].restore(state)
        memory.page_info[:] = self.page_info
        return domain


def pieces(domain: Domain) -> Iterator[Piece]:
    """What its memory holds now, as `Pieces` has it."""
    ram = domain.memory.bytes
    for start, end in _used(domain):
        for at in range(start, end, PIECE_SIZE):
            size = min(PIECE_SIZE, end - at)
            data = bytes(ram[at : at + size])  # bytes compare much faster than views do
            yield at, size, None if data == bytes(size) else data


def _frame(memory: Memory, mfn: int) -> bytes:
    return memory.read(Maddr(mfn << PAGE_SHIFT), PAGE_SIZE)


def _used(domain: Domain) -> list[tuple[int, int]]:
    """The ranges of memory that may hold anything.

    A PVH guest's memory has a hole of gigabytes. In a PV guest's memory, Xen has frames that nobody
    owns.
    """
    frames = domain.frames
    if domain.p2m is None:
        return [(0, domain.memory.nr_frames << PAGE_SHIFT)]
    used = bytearray(owner != DOMID_NONE for owner in frames.owner)
    for mfn in frames.heap:
        used[mfn] = 1
    ranges, at = [], used.find(1)
    while at >= 0:
        end = used.find(0, at)
        end = len(used) if end < 0 else end
        ranges.append((at << PAGE_SHIFT, end << PAGE_SHIFT))
        at = used.find(1, end)
    return ranges
