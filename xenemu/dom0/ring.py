"""Pages that a frontend shares, and the backend's end of a ring of requests in them.

The frontend may store anything in the pages at any time, and even into the backend's index. So a
backend reads each thing once, and keeps its own indices.

Header: public/io/ring.h
In Xen: the macros of that header; xenbus_map_ring_valloc in Linux's drivers/xen/xenbus
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import field
from typing import Final

from xenemu.abi.errno import EINVAL, EIO
from xenemu.abi.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SLOTS
from xenemu.dom0 import grants
from xenemu.errors import XenError
from xenemu.hv.grant_table import GrantError
from xenemu.hv.memory import Memory
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Maddr, Mfn

INDEX_MASK: Final = 0xFFFF_FFFF


class RingError(Exception):
    """The frontend has broken the ring: `str()` says how."""


@dataclass(frozen=True)
class Pages:
    """Granted pages that are mapped one after the other, as if they were contiguous."""

    mfns: tuple[Mfn, ...]
    handles: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes in all of them."""
        return len(self.mfns) << PAGE_SHIFT

    def read(self, memory: Memory, offset: int, size: int) -> bytes:
        """Copy bytes out, which may lie in several pages."""
        if (offset & PAGE_MASK) + size <= PAGE_SIZE:
            return memory.read(self._maddr(offset), size)
        return b"".join(memory.read(maddr, n) for maddr, n in self._pieces(offset, size))

    def write(self, memory: Memory, offset: int, data: bytes) -> None:
        """Copy bytes in."""
        if (offset & PAGE_MASK) + len(data) <= PAGE_SIZE:
            memory.write(self._maddr(offset), data)
            return
        done = 0
        for maddr, n in self._pieces(offset, len(data)):
            memory.write(maddr, data[done : done + n])
            done += n

    def read_uint(self, memory: Memory, offset: int) -> int:
        """Read 32 bits, which lie in one page."""
        return memory.read_uint(self._maddr(offset), 4)

    def write_uint(self, memory: Memory, offset: int, value: int) -> None:
        """Write 32 bits, which lie in one page."""
        memory.write_uint(self._maddr(offset), 4, value)

    def _maddr(self, offset: int) -> Maddr:
        return Maddr((self.mfns[offset >> PAGE_SHIFT] << PAGE_SHIFT) + (offset & PAGE_MASK))

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[Maddr, int]]:
        """Addresses and sizes of what lies in one page each."""
        while size > 0:
            n = min(size, PAGE_SIZE - (offset & PAGE_MASK))
            yield self._maddr(offset), n
            offset, size = offset + n, size - n


def map_pages(domain: Domain, refs: Sequence[int]) -> Pages:
    """Map what a domain has granted, for reading and writing; EINVAL, and nothing is mapped."""
    handles: list[int] = []
    mfns: list[Mfn] = []
    for ref in refs:
        try:
            handle, mfn = grants.map_grant(domain, ref)
        except GrantError as error:
            for done in handles:
                grants.unmap_grant(domain, done)
            raise XenError(EINVAL, f"mapping in shared page {ref}: {error.reason}") from None
        handles.append(handle)
        mfns.append(mfn)
    return Pages(tuple(mfns), tuple(handles))


def unmap_pages(domain: Domain, pages: Pages) -> None:
    """Undo `map_pages`."""
    for handle in pages.handles:
        with suppress(GrantError):
            grants.unmap_grant(domain, handle)


@dataclass
class BackRing:
    """A backend's end of a ring, whose slots have `slot_size` bytes.

    `req_cons` requests were taken, and `rsp_prod` responses were put, of which the frontend has
    been shown those up to the last `push`. A response takes the slot of a request that was taken.
    """

    pages: Pages
    slot_size: int
    req_cons: int = 0
    rsp_prod: int = 0
    slots: int = field(init=False)  # the largest power of two for which there is room

    def __post_init__(self) -> None:
        self.slots = 1 << ((self.pages.size - SLOTS) // self.slot_size).bit_length() - 1

    @classmethod
    def attach(cls, memory: Memory, pages: Pages, slot_size: int) -> BackRing:
        """The end of a ring that is as its frontend made it, or as an earlier backend left it.

        EIO: more requests wait than the ring has slots.
        """
        done = pages.read_uint(memory, RSP_PROD)
        ring = cls(pages, slot_size, done, done)
        waiting = (pages.read_uint(memory, REQ_PROD) - done) & INDEX_MASK
        if waiting > ring.slots:
            raise XenError(EIO, f"{waiting} requests wait in a ring of {ring.slots}")
        return ring

    def take(self, memory: Memory) -> bytes | None:
        """Take the next request, or None if all are taken.

        RingError: the frontend claims to have put more than there is room for.
        """
        req_prod = self.pages.read_uint(memory, REQ_PROD)
        unanswered = (req_prod - self.rsp_prod) & INDEX_MASK
        if unanswered > self.slots:
            raise RingError(
                f"bogus requests in the ring: {req_prod} put, {self.rsp_prod} answered,"
                f" {self.slots} slots"
            )
        under_way = (self.req_cons - self.rsp_prod) & INDEX_MASK
        if unanswered <= under_way:
            return None
        request = self.pages.read(memory, self._slot(self.req_cons), self.slot_size)
        self.skip()
        return request

    def skip(self) -> None:
        """Take a request that was looked at in the ring."""
        self.req_cons = (self.req_cons + 1) & INDEX_MASK

    def put(self, memory: Memory, response: bytes) -> None:
        """Put a response, which the frontend does not see before the next `push`."""
        self.pages.write(memory, self._slot(self.rsp_prod), response)
        self.answered()

    def answered(self) -> None:
        """Somebody has put a response into the ring."""
        self.rsp_prod = (self.rsp_prod + 1) & INDEX_MASK

    def push(self, memory: Memory, upto: int | None = None) -> bool:
        """Show the frontend the responses, or those before `upto`; whether it wants an event.

        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY. The old index is the one in the page, as in the macro.
        """
        new = self.rsp_prod if upto is None else upto
        old = self.pages.read_uint(memory, RSP_PROD)
        self.pages.write_uint(memory, RSP_PROD, new)
        wanted = self.pages.read_uint(memory, RSP_EVENT)
        return (new - wanted) & INDEX_MASK < (new - old) & INDEX_MASK

    def final_check(self, memory: Memory) -> bool:
        """Ask for an event at the next request, unless there is one; whether there is.

        RING_FINAL_CHECK_FOR_REQUESTS; without it, the frontend sends no event.
        """
        if self.has_requests(memory):
            return True
        self.pages.write_uint(memory, REQ_EVENT, self.req_cons + 1)
        return False  # the macro looks again, but here no frontend runs meanwhile

    def has_requests(self, memory: Memory) -> bool:
        """Whether there is a request to take: RING_HAS_UNCONSUMED_REQUESTS."""
        waiting = (self.pages.read_uint(memory, REQ_PROD) - self.req_cons) & INDEX_MASK
        under_way = (self.req_cons - self.rsp_prod) & INDEX_MASK
        return min(waiting, self.slots - under_way) > 0

    def _slot(self, index: int) -> int:
        return SLOTS + (index & self.slots - 1) * self.slot_size
