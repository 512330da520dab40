"""The physmap of a guest whose frame numbers Xen translates: guest frame to machine frame.

RAM lies at its own number: guest frame n is machine frame n, as long as it is populated. Special
pages, frames of Xen's own that the guest asked for (shared_info, grant tables), and memory in other
places are listed.

In Xen: arch/x86/mm/p2m.c
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from xenemu.abi.errno import EINVAL
from xenemu.errors import DomainCrash, XenError
from xenemu.x86.paging import Mfn

MAX_GFN: Final = (1 << 36) - 1  # as far as four levels of tables reach


@dataclass
class P2m:
    """`populated` has a byte per machine frame; `elsewhere` has what is not at its own number.

    `granted` are the guest frames where a grant is mapped. `changed` tells the engine to look at
    `elsewhere` again.
    """

    populated: bytearray
    elsewhere: dict[int, Mfn] = field(default_factory=dict)
    granted: set[int] = field(default_factory=set)
    changed: bool = False

    def become(self, other: P2m) -> None:
        """Have what `other` has, at the same place in the host's memory: the engine looks there."""
        self.populated[:] = other.populated
        self.elsewhere, self.granted, self.changed = other.elsewhere, other.granted, True

    def get(self, gfn: int) -> Mfn | None:
        """The machine frame behind a guest frame, or None for a hole."""
        if 0 <= gfn < len(self.populated) and self.populated[gfn]:
            return Mfn(gfn)
        return self.elsewhere.get(gfn)

    def lookup(self, gfn: int) -> Mfn:
        """The machine frame behind a guest frame; EINVAL for a hole."""
        mfn = self.get(gfn)
        if mfn is None:
            raise XenError(EINVAL, f"there is no memory at guest frame {gfn:#x}")
        return mfn

    @property
    def highest(self) -> int:
        """The highest guest frame that has memory; -1 if none has."""
        return max(self.populated.rfind(1), max(self.elsewhere, default=-1))

    def find(self, mfn: Mfn) -> int | None:
        """The guest frame where a machine frame is, its grants' mappings not counted."""
        if self.populated[mfn] and mfn not in self.granted:
            return mfn
        places = (gfn for gfn, there in self.elsewhere.items() if there == mfn)
        return next((gfn for gfn in places if gfn not in self.granted), None)

    def set(self, gfn: int, mfn: Mfn) -> None:
        """Put a machine frame at a guest frame that is a hole."""
        if gfn == mfn:
            self.populated[gfn] = 1
        else:
            self.elsewhere[gfn] = mfn
        self.changed = True

    def map_grant(self, gfn: int, mfn: Mfn) -> None:
        """Map a grant of the guest's own frame: it leaves its place, as does what was at `gfn`.

        Another mapping of a grant there crashes the domain, as in Xen: it could not be undone.
        """
        self.check_no_grant(gfn)
        for place in (gfn, self.find(mfn)):
            if place is not None:
                self.remove(place)
        self.set(gfn, mfn)
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
        if mfn == gfn:
            self.populated[gfn] = 0
        else:
            del self.elsewhere[gfn]
        self.granted.discard(gfn)
        self.changed = True
        return mfn
