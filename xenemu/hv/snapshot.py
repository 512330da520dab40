"""A domain as it was at one instant: its plain data, and what its memory held.

A snapshot lives in the process that took it, and is of one domain. The watchers are not part of it.
The restored domain has the watchers of the domain that it replaces.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Final

from xenemu.hv.frame_table import DOMID_NONE
from xenemu.hv.memory import Memory
from xenemu.hv.state.domain import Domain
from xenemu.x86.paging import PAGE_SHIFT

PIECE_SIZE: Final = 1 << 20  # memory is kept in pieces of so many bytes, without those of zeroes
MEMORY: Final = ""  # where backends have their names


class DomainSnapshot:
    """A domain as it is when this is made."""

    def __init__(self, domain: Domain) -> None:
        buffer, unwatched = io.BytesIO(), copy.copy(domain)
        unwatched.watch, unwatched.peers = None, {}
        _Pickler(buffer, domain).dump(unwatched)
        self._plain = buffer.getvalue()  # a pickle that never leaves the process
        self._backends = {name: backend.save() for name, backend in domain.backends.items()}
        self._pieces = _content(domain)
        self._page_info = domain.memory.page_info[:]

    def restore(self, now: Domain) -> Domain:
        """The domain as it was, in the memory of the present one, which ends here."""
        domain = _Unpickler(self._plain, now).load()
        assert isinstance(domain, Domain)
        for name, state in self._backends.items():
            domain.backends[name].restore(state)
        _put_content(now.memory, self._pieces)
        now.memory.page_info[:] = self._page_info
        if now.p2m is not None and domain.p2m is not None:  # the engine looks into it
            now.p2m.become(domain.p2m)
            domain.p2m = now.p2m
        domain.watch, domain.peers = now.watch, now.peers
        domain.peers[domain.domid] = domain
        return domain


class _Pickler(pickle.Pickler):
    """Leaves out the memory, and the backends, which save themselves."""

    def __init__(self, buffer: io.BytesIO, domain: Domain) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self._names = {id(backend): name for name, backend in domain.backends.items()}
        self._names[id(domain.memory)] = MEMORY

    def persistent_id(self, value: object) -> str | None:
        return self._names.get(id(value))


class _Unpickler(pickle.Unpickler):
    """Puts the memory and the backends of the present domain in their places."""

    def __init__(self, data: bytes, now: Domain) -> None:
        super().__init__(io.BytesIO(data))
        self._parts = {MEMORY: now.memory, **now.backends}

    def persistent_load(self, name: object) -> object:
        assert isinstance(name, str)
        return self._parts[name]


def _content(domain: Domain) -> list[tuple[int, int, bytes | None]]:
    """Where memory can be, piece by piece: machine address, size, bytes; None for zeroes."""
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
