"""The frames that nobody owns: a stack, from which any frame may be taken, too.

In Xen: common/page_alloc.c, whose buddy allocator is as quick for a hostile guest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Heap:
    """Free frames, iterated from the bottom of the stack to its top.

    A frame that is taken from the middle stays in `_stack`, but only the frames of `_free` count
    there. A frame may have come back, and be in `_stack` twice. Then only the upper one is ever
    seen.
    """

    def __init__(self, nr_frames: int) -> None:
        self._stack: list[int] = []
        self._free = bytearray(nr_frames)  # a byte per frame
        self._nr_free = 0

    def __len__(self) -> int:
        return self._nr_free

    def __contains__(self, mfn: int) -> bool:
        return 0 <= mfn < len(self._free) and bool(self._free[mfn])

    def __iter__(self) -> Iterator[int]:
        newest_first = dict.fromkeys(mfn for mfn in reversed(self._stack) if self._free[mfn])
        return reversed(newest_first)

    def put(self, mfn: int) -> None:
        """Add a frame on top."""
        self._stack.append(mfn)
        self._free[mfn] = 1
        self._nr_free += 1
        if len(self._stack) > 2 * self._nr_free + 64:
            self._stack = list(self)

    def put_below(self, mfns: Sequence[int]) -> None:
        """Add frames at the bottom, the first of them uppermost."""
        self._stack[:0] = reversed(mfns)
        self._nr_free += len(mfns)
        for mfn in mfns:
            self._free[mfn] = 1

    def pop(self, below: int) -> int | None:
        """Take the top frame, if it is under mfn `below`."""
        stack = self._stack
        while stack and not self._free[stack[-1]]:
            stack.pop()
        if not stack or stack[-1] >= below:
            return None
        mfn = stack.pop()
        self._free[mfn] = 0
        self._nr_free -= 1
        return mfn

    def take(self, first: int, size: int = 1) -> bool:
        """Take `size` certain frames, if all of them are here."""
        if first < 0 or self._free[first : first + size] != b"\1" * size:
            return False
        self._free[first : first + size] = bytes(size)
        self._nr_free -= size
        return True

    def extents(self, order: int) -> bytes:
        """A byte for each aligned 2^`order` frames in a row: 1 if all of them are here."""
        free = bytes(self._free)
        for _ in range(order):
            even, odd = free[::2], free[1::2]
            both = int.from_bytes(even, "little") & int.from_bytes(odd, "little")
            free = both.to_bytes(len(even), "little")
        return free
