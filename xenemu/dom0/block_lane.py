"""The lane: ordinary requests to a disk, which C takes out of the ring and carries out.

A request is ordinary if it reads or writes as much as one may, of a part of the disk that lies in a
file, and if its grants are of version 1, in no other use, and for frames of plain RAM without code.
C finds that out, and otherwise leaves the request in the ring for `xenemu.dom0.block`, whose rules
these are. Without the library all requests go there.

native/blkif.c is the library.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_int, c_int64, c_uint32, c_uint64, c_void_p
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Final

from xenemu.dom0.block_request import MAX_INDIRECT_SEGMENTS
from xenemu.dom0.ring import BackRing
from xenemu.hv.state.domain import Domain

LIBRARY: Final = Path(__file__).with_name("_blkif.so")
NOTHING, ORDINARY = 0, 1  # what `blkif_next` may find; otherwise, a request that is not ordinary


class _Row(ctypes.Structure):
    """A row of the library's table of its struct."""

    name: bytes
    type: bytes
    offset: int
    count: int
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_char_p),
        ("offset", c_uint32),
        ("count", c_uint32),
    )


class _Library:
    def __init__(self) -> None:
        library = ctypes.PyDLL(str(LIBRARY))
        library.blkif_rows.restype = ctypes.POINTER(_Row)
        rows: Any = library.blkif_rows()
        known = {b"uint32_t": c_uint32, b"uint64_t": c_uint64}
        fields: list[tuple[str, Any]] = []
        for row in takewhile(lambda row: row.name, (rows[n] for n in count())):
            kind: Any = known.get(row.type, c_void_p)
            fields.append((row.name.decode(), kind * row.count if row.count > 1 else kind))
        self.struct: Any = type("lane", (ctypes.Structure,), {"_fields_": tuple(fields)})
        assert ctypes.sizeof(self.struct) == rows[len(fields)].offset
        self.next = library.blkif_next
        self.next.restype, self.next.argtypes = c_int, (c_void_p, c_int)
        self.move = library.blkif_move
        self.move.restype, self.move.argtypes = c_int64, (c_void_p, c_int)
        self.answer = library.blkif_answer
        self.answer.restype, self.answer.argtypes = None, (c_void_p, c_int)
        self.push = library.blkif_push
        self.push.restype, self.push.argtypes = c_int, (c_void_p, c_uint32)


# Now: while a guest runs, no file can be opened.
_LIBRARY: Final = _Library() if LIBRARY.exists() else None


class Lane:
    """The lane of a ring of a domain's."""

    def __init__(self, library: _Library, domain: Domain, ring: BackRing) -> None:
        self.domain, self.ring = domain, ring
        self._memory, self._p2m = domain.memory, domain.p2m
        self._library = library
        self._grant_frames: list[int] = []
        self._active: list[int] = []
        self.request: Any = library.struct()
        self._place = ctypes.addressof(self.request)
        told, memory, p2m = self.request, domain.memory, domain.p2m
        self._ram = told.ram = _address(memory.mapping)
        told.frames, told.domid = memory.nr_frames, domain.domid
        told.page_info, told.code = _address(memory.page_info), _address(memory.code)
        if p2m is not None:
            told.p2m, told.gfns = _address(p2m.table), len(p2m.table)
        told.ring[: len(ring.pages.mfns)] = ring.pages.mfns
        told.ring_pages = len(ring.pages.mfns)
        told.slots, told.most_segments = ring.slots, MAX_INDIRECT_SEGMENTS

    def fits(self, domain: Domain, ring: BackRing) -> bool:
        """Whether it is still the lane of this ring."""
        same_memory = self._memory is domain.memory and self._p2m is domain.p2m
        return same_memory and self.ring is ring and self.domain is domain

    def opens(self, disk_size: int, read_only: bool) -> bool:
        """Tell C of the disk, and of grants as they are now; False if C does not know such."""
        table, told = self.domain.grants, self.request
        if table.version != 1 or len(table.active) > len(told.active):
            return False
        told.disk_size, told.read_only = disk_size, read_only
        if table.frames != self._grant_frames:
            self._grant_frames = [*table.frames]
            told.grant_frame_count = min(len(table.frames), len(told.grant_frames))
            told.grant_frames[: told.grant_frame_count] = table.frames[: told.grant_frame_count]
        if (active := [*table.active]) != self._active:
            self._active = active
            told.active_count = len(active)
            told.active[: len(active)] = active
        return True

    def next(self, idle: bool) -> int:
        """Take the next request if it is ordinary: NOTHING, ORDINARY, or something else.

        If there is none, and the backend is `idle`, ask for an event, as `BackRing.final_check`.
        """
        told, ring = self.request, self.ring
        told.req_cons, told.rsp_prod = ring.req_cons, ring.rsp_prod
        found: int = self._library.next(self._place, idle)
        if found == ORDINARY:
            ring.skip()
        return found

    def answer(self, status: int) -> None:
        """Put a response to the request, as `BackRing.put` does."""
        self._library.answer(self._place, status)
        self.ring.answered()

    def push(self, upto: int) -> bool:
        """Show the responses, as `BackRing.push` does."""
        wanted: int = self._library.push(self._place, upto)
        return self.ring.push(self._memory, upto) if wanted < 0 else bool(wanted)

    def move(self, descriptor: int) -> None:
        """Move the bytes of the request between memory and a file, where they are; OSError."""
        moved = self._library.move(self._place, descriptor)
        if moved != self.request.size:
            if moved < 0:
                raise OSError(-moved, os.strerror(-moved))
            raise OSError(f"{moved} bytes of {self.request.size}: the file is shorter than it was")

    def views(self) -> list[memoryview]:
        """The memory that the request is about."""
        told, views = self.request, []
        places = told.pieces[: 2 * told.piece_count]
        for address, size in zip(places[::2], places[1::2], strict=True):
            views.append(self.domain.memory.bytes[address - self._ram : address - self._ram + size])
        return views


def lane_of(domain: Domain, ring: BackRing) -> Lane | None:
    """A lane for a ring whose slots have the layout of 64 bits; None without the library."""
    return Lane(_LIBRARY, domain, ring) if _LIBRARY is not None else None


def _address(buffer: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
