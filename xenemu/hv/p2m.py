"""The physmap of a guest whose frame numbers Xen translates: guest frame to machine frame.

RAM lies at its own number: guest frame n is machine frame n. Other frames lie elsewhere: special
pages, frames of Xen's own that the guest asked for (shared_info, grant tables), and memory that was
moved.

`P2m.table` is a flat array, indexed by guest frame. The engine reads it, too, when it fills the
TLB. It reaches as far as an address of the guest's. A hypercall may put a frame further out, where
no access gets. Such frames are in a dict.

In Xen: arch/x86/mm/p2m.c
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from typing import Any, Final

from xenemu.abi.errno import EINVAL
from xenemu.errors import DomainCrash, XenError
from xenemu.mapping import sparse
from xenemu.x86.cpuid import PHYSICAL_ADDRESS_BITS
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Mfn

MAX_GFN: Final = (1 << 36) - 1  # as far as four levels of tables reach
NR_GFNS: Final = 1 << PHYSICAL_ADDRESS_BITS - PAGE_SHIFT  # as far as an address does
ENTRY_SIZE: Final = 4
PER_PAGE: Final = PAGE_SIZE // ENTRY_SIZE


class P2m:
    """At first, the guest frames of `ram` are the machine frames of the same numbers.

    `table` has a machine frame's number plus one, or 0 for a hole. A page of the table without an
    entry costs the host no memory. `granted` are the guest frames where a grant is mapped.
    `changed` tells the engine to forget what it has translated.
    """

    def __init__(self, *ram: range) -> None:
        self._mapping = sparse(NR_GFNS * ENTRY_SIZE)
        self.table = memoryview(self._mapping).cast("I")
        self._entries: dict[int, int] = {}  # by number of a page of the table, if it has any
        self._far: dict[int, Mfn] = {}  # what is beyond the table
        self._moved: dict[Mfn, int] = {}  # the way back, for frames that are not at their number
        self.granted: set[int] = set()
        self.changed = False
        for frames in ram:
            for start in range(frames.start, frames.stop, PER_PAGE):
                stop = min(start + PER_PAGE, frames.stop)
                self.table[start:stop] = array("I", range(start + 1, stop + 1))
            for page in range(frames.start // PER_PAGE, -(-frames.stop // PER_PAGE)):
                here = range(page * PER_PAGE, (page + 1) * PER_PAGE)
                found = min(here.stop, frames.stop) - max(here.start, frames.start)
                self._entries[page] = self._entries.get(page, 0) + found

    def _page(self, page: int) -> list[int]:
        return self.table[page * PER_PAGE : (page + 1) * PER_PAGE].tolist()

    # Looking.

    def get(self, gfn: int) -> Mfn | None:
        """The machine frame of a guest frame, or None for a hole."""
        if 0 <= gfn < NR_GFNS:
            entry = self.table[gfn]
            return Mfn(entry - 1) if entry else None
        return self._far.get(gfn)

    def lookup(self, gfn: int) -> Mfn:
        """The machine frame of a guest frame; EINVAL for a hole."""
        mfn = self.get(gfn)
        if mfn is None:
            raise XenError(EINVAL, f"there is no memory at guest frame {gfn:#x}")
        return mfn

    def find(self, mfn: Mfn) -> int | None:
        """The guest frame where a machine frame is, its grants' mappings not counted."""
        if self.get(mfn) == mfn and mfn not in self.granted:
            return mfn
        return self._moved.get(mfn)

    def places(self) -> Iterator[tuple[int, Mfn]]:
        """All guest frames that have memory, from the lowest, each with its machine frame."""
        for page in sorted(self._entries):
            for gfn, entry in enumerate(self._page(page), page * PER_PAGE):
                if entry:
                    yield gfn, Mfn(entry - 1)
        yield from sorted(self._far.items())

    @property
    def elsewhere(self) -> dict[int, Mfn]:
        """The guest frames that are not the machine frame of the same number."""
        return {gfn: mfn for gfn, mfn in self.places() if gfn != mfn}

    @property
    def highest(self) -> int:
        """The highest guest frame that has memory; -1 if none has."""
        if self._far or not self._entries:
            return max(self._far, default=-1)
        page = max(self._entries)
        return max(gfn for gfn, entry in enumerate(self._page(page), page * PER_PAGE) if entry)

    # Changing.

    def set(self, gfn: int, mfn: Mfn) -> None:
        """Put a machine frame at a guest frame that is a hole."""
        self._put(gfn, mfn)
        if gfn != mfn:
            self._moved[mfn] = gfn

    def map_grant(self, gfn: int, mfn: Mfn) -> None:
        """Map a grant of the guest's own frame, which leaves its place, as does what was at `gfn`.

        If a grant is mapped at `gfn` already, the domain is crashed, as in Xen: that mapping could
        not be undone any more.
        """
        self.check_no_grant(gfn)
        for place in (gfn, self.find(mfn)):
            if place is not None:
                self.remove(place)
        self._put(gfn, mfn)
        self.granted.add(gfn)

    def check_no_grant(self, gfn: int) -> None:
        """Crash the domain that puts memory where a grant is mapped."""
        if gfn in self.granted:
            raise DomainCrash(f"guest frame {gfn:#x} is replaced while it maps a grant")

    def remove(self, gfn: int) -> Mfn | None:
        """Make a hole; return what was there."""
        mfn = self.get(gfn)
        if mfn is None:
            return None
        if gfn < NR_GFNS:
            self.table[gfn] = 0
            self._count(gfn // PER_PAGE, -1)
        else:
            del self._far[gfn]
        if self._moved.get(mfn) == gfn:
            del self._moved[mfn]
        self.granted.discard(gfn)
        self.changed = True
        return mfn

    def _put(self, gfn: int, mfn: Mfn) -> None:
        if gfn < NR_GFNS:
            self.table[gfn] = mfn + 1
            self._count(gfn // PER_PAGE, 1)
        else:
            self._far[gfn] = mfn
        self.changed = True

    def _count(self, page: int, change: int) -> None:
        """Count the entries of a page of the table; one without any goes back to the host."""
        self._entries[page] = self._entries.get(page, 0) + change
        if not self._entries[page]:
            del self._entries[page]
            self._mapping.madvise(mmap.MADV_DONTNEED, page * PAGE_SIZE, PAGE_SIZE)

    # Snapshots.

    def become(self, other: P2m) -> None:
        """Take over what `other` has. This table stays in place: the engine looks there."""
        for page in [*self._entries]:
            self._count(page, -self._entries[page])
        self._load(other.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        """Plain data: the pages of the table that have entries, and what else there is."""
        starts = {page: page * PAGE_SIZE for page in sorted(self._entries)}
        pages = {page: self._mapping[at : at + PAGE_SIZE] for page, at in starts.items()}
        return {
            "pages": pages,
            "far": self._far.copy(),
            "moved": self._moved.copy(),
            "granted": self.granted.copy(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, which is given away; the table must be empty."""
        P2m.__init__(self)
        self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        for page, entries in state["pages"].items():
            self._mapping[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = entries
            self._entries[page] = PER_PAGE - self._page(page).count(0)
        self._far, self._moved = state["far"], state["moved"]
        self.granted = state["granted"]
        self.changed = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, P2m) and self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        raise TypeError("a P2m changes: it has no hash")
