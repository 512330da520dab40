"""A byte stream through a shared page: the rings of the PV console and of xenstore.

Both sides count bytes with free-running 32-bit indices. The size of a ring is a power of two. The
other side is the guest, which may store anything in the page, even to our index.
"""

from __future__ import annotations

from typing import Final

from xenemu.hv.memory import Memory
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT, Maddr, Mfn

INDEX_MASK: Final = 0xFFFF_FFFF


@dataclass(frozen=True)
class ByteRing:
    """One direction: offsets in the page of the data and the two indices, and the size."""

    data: int
    size: int
    cons: int
    prod: int

    def used(self, memory: Memory, mfn: Mfn) -> int:
        """Bytes between the indices; more than `size` when they are nonsense."""
        page, dwords = mfn << PAGE_SHIFT, memory.dwords  # it is asked at each turn
        return (dwords[page + self.prod >> 2] - dwords[page + self.cons >> 2]) & INDEX_MASK

    def room(self, memory: Memory, mfn: Mfn) -> int:
        """Bytes that can be put; 0 when the indices are nonsense."""
        return max(0, self.size - self.used(memory, mfn))

    def take(self, memory: Memory, mfn: Mfn, limit: int) -> bytes:
        """Consume up to `limit` bytes; none when the indices are nonsense."""
        used = self.used(memory, mfn)
        if not used or used > self.size:
            return b""
        page = mfn << PAGE_SHIFT
        cons = memory.read_uint(Maddr(page + self.cons), 4)
        data = b"".join(
            memory.read(Maddr(page + start), n) for start, n in self._pieces(cons, min(used, limit))
        )
        memory.write_uint(Maddr(page + self.cons), 4, cons + len(data))
        return data

    def put(self, memory: Memory, mfn: Mfn, data: bytes | bytearray | memoryview) -> int:
        """Produce as much of `data` as there is room for; return the number of bytes."""
        if not data:
            return 0
        count = min(len(data), self.room(memory, mfn))
        page = mfn << PAGE_SHIFT
        prod = memory.read_uint(Maddr(page + self.prod), 4)
        done = 0
        for start, n in self._pieces(prod, count):
            memory.write(Maddr(page + start), data[done : done + n])
            done += n
        memory.write_uint(Maddr(page + self.prod), 4, prod + count)
        return count

    def _pieces(self, index: int, count: int) -> list[tuple[int, int]]:
        """Offsets in the page and sizes of the one or two runs from `index` on."""
        start = index & (self.size - 1)
        first = min(count, self.size - start)
        return [(self.data + start, first), (self.data, count - first)]
