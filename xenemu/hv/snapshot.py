"""A domain as it was at one instant: its plain data, and what its memory held.

The watchers are not part of a snapshot. If a domain takes the place of another, it has the watchers
of that one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

from xenemu.encoding import decode, encode
from xenemu.hv.frame_table import DOMID_NONE
from xenemu.hv.memory import Memory
from xenemu.hv.state.domain import Backend, Domain
from xenemu.x86.paging import PAGE_SHIFT

PIECE_SIZE: Final = 1 << 20  # memory is kept in pieces of so many bytes, without those of zeroes
MEMORY: Final = ""  # where backends have their names


@dataclass(frozen=True)
class DomainSnapshot:
    """A domain as it was.

    * `plain` is its plain data, encoded.
    * `backends` have what each of its backends saved, by name.
    * `pieces` are where memory can be: machine address, size, bytes; None for zeroes.
    * `page_info` are the records of its memory's frames.
    """

    plain: bytes
    backends: dict[str, object]
    pieces: list[tuple[int, int, bytes | None]]
    nr_frames: int
    page_info: bytes

    @classmethod
    def of(cls, domain: Domain) -> DomainSnapshot:
        """Keep what a domain is now."""
        unwatched = copy.copy(domain)
        unwatched.watch, unwatched.peers = None, {}
        return cls(
            encode(unwatched, {MEMORY: domain.memory, **domain.backends}),
            {name: backend.save() for name, backend in domain.backends.items()},
            _content(domain),
            domain.memory.nr_frames,
            domain.memory.page_info[:],
        )

    def restore(self, now: Domain) -> Domain:
        """The domain as it was, in the memory of the present one, which ends here."""
        domain = self.revive(now.memory, now.backends)
        if now.p2m is not None and domain.p2m is not None:  # the engine looks into it
            now.p2m.become(domain.p2m)
            domain.p2m = now.p2m
        domain.watch, domain.peers = now.watch, now.peers
        domain.peers[domain.domid] = domain
        return domain

    def revive(self, memory: Memory, backends: dict[str, Backend]) -> Domain:
        """The domain as it was, in a memory of the same size, with backends of the same names.

        DecodeError: the snapshot is of another version of the records, or damaged.
        """
        domain = decode(self.plain, {MEMORY: memory, **backends}, Domain)
        for name, state in self.backends.items():
            backends[name].restore(state)
        _put_content(memory, self.pieces)
        memory.page_info[:] = self.page_info
        return domain


def _content(domain: Domain) -> list[tuple[int, int, bytes | None]]:
    ram = domain.memory.bytes
    pieces = []
    for start, end in _used(domain):
        for at in range(start, end, PIECE_SIZE):
            size = min(PIECE_SIZE, end - at)
            data = bytes(ram[at : at + size])  # bytes compare much faster than views do
            pieces.append((at, size, None if data == bytes(size) else data))
    return pieces


def _put_content(memory: Memory, pieces: list[tuple[int, int, bytes | None]]) -> None:
    """Make memory hold these pieces again. Every frame that is ever in use is in one of them."""
    for at, size, data in pieces:
        if data is not None:
            memory.bytes[at : at + size] = data
        elif bytes(memory.bytes[at : at + size]) != bytes(size):
            memory.bytes[at : at + size] = bytes(size)
    memory.stale_code.update(mfn for mfn, was_code in enumerate(memory.code) if was_code)


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
