"""The frame table: who owns each machine frame, and how often it is referenced.

A frame has two counts. `count` is the number of its general references: one because it is allocated
to its owner, and one for each mapping, pin, root pointer or use by the hypervisor. `type_count` is
how many of those rely on what the frame is used as, its `type`. `xenemu.hv.pagetype` has the rules
of the types.

For example, a page table that is pinned, and that one entry of a higher table points to, has a
`type_count` of 2. Its `count` is 3: these two, and the one for its owner.

In Xen: include/asm-x86/mm.h (struct page_info), common/page_alloc.c, arch/x86/mm.c.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from xenemu.abi.errno import EINVAL, ENOMEM
from xenemu.errors import XenError
from xenemu.hv.calls import CallLog, CallRecord
from xenemu.hv.heap import Heap
from xenemu.hv.memory import Memory
from xenemu.hv.page_info import FIELDS, RECORD, fill, pieces, view
from xenemu.x86.paging import Maddr, Mfn

PGT_none: Final = 0
PGT_l1_page_table: Final = 1
PGT_l2_page_table: Final = 2
PGT_l3_page_table: Final = 3
PGT_l4_page_table: Final = 4
PGT_seg_desc_page: Final = 5
PGT_pae_xen_l2: Final = 6  # the L2 of a PAE guest's fourth L3 entry, with Xen's slots
PGT_writable_page: Final = 7

TYPE_NAMES: Final = {
    PGT_none: "none",
    PGT_l1_page_table: "l1_page_table",
    PGT_l2_page_table: "l2_page_table",
    PGT_l3_page_table: "l3_page_table",
    PGT_l4_page_table: "l4_page_table",
    PGT_seg_desc_page: "seg_desc_page",
    PGT_pae_xen_l2: "l2_page_table with Xen's slots",
    PGT_writable_page: "writable_page",
}

# The level of the types that are page tables.
LEVELS: Final = {
    PGT_l1_page_table: 1,
    PGT_l2_page_table: 2,
    PGT_l3_page_table: 3,
    PGT_l4_page_table: 4,
    PGT_pae_xen_l2: 2,
}

DESCRIBED: Final = re.compile(r"\bmfn (0x[0-9a-f]+) \(")  # as `FrameTable.describe` begins

PGC_allocated: Final = 1 << 0  # holds a general reference
PGC_xen_heap: Final = 1 << 1  # Xen's own, shared with the owner
PGT_pinned: Final = 1 << 2  # holds a general and a type reference

UNLIMITED: Final = sys.maxsize  # of `work_left`, where no guest waits
FRAMES_PER_WORK_SHIFT: Final = 9  # how many frames a search of the heap gets through
REQUEST_WORK: Final = 2  # of `work_left`: a request of mmu_update,
OPERATION_WORK: Final = 4  # and an operation of mmuext_op
WORK_PER_CALL: Final = 1 << 15  # of `work_left`: about a tenth of a second at the worst
DOMID_NONE: Final = 0xFFFF  # owner of a frame that no domain has
INVALID_M2P_ENTRY: Final = (1 << 64) - 1

NOBODYS: Final = RECORD.pack(0, 0, DOMID_NONE, PGT_none, 0)


class L1ByCpu(Protocol):
    """A CPU that does the plain work on L1 tables: see `hv.cpu.Cpu`."""

    def take_l1(self, mfn: int) -> bytes | None: ...
    def drop_l1(self, mfn: int) -> bool: ...


@dataclass(slots=True)
class PageCounts:
    """How many pages a domain has and may have; Xen's own pages that it shares do not count."""

    tot_pages: int = 0
    max_pages: int = 0


class FrameTable:
    """What the records of `memory.page_info` say, a view of each field, indexed by mfn.

    An owned frame has `count` > 0. While its `type_count` is 0, its `type` is writable_page.
    Anything may be made of it then, and most often the first use is a writable mapping.
    """

    count: memoryview
    type_count: memoryview
    owner: memoryview
    type: memoryview
    flags: memoryview

    def __init__(self, memory: Memory) -> None:
        nr_frames = memory.nr_frames
        self.memory = memory
        fill(memory.page_info, range(nr_frames), NOBODYS)
        self._view_records()
        # Tables that are not validated wholly (PGT_partial): how many of their entries are. Each
        # holds one type reference, its only one, and a general one.
        self.partial: dict[int, int] = {}
        # What this hypercall may still do before it is continued: units of about 2 us.
        self.work_left = UNLIMITED
        # Each domain's own: `Domain.pages` is the record that is here under its id.
        self.pages: defaultdict[int, PageCounts] = defaultdict(PageCounts)
        self.heap = Heap(nr_frames)  # frames that a domain may be given
        self.m2p_base: Maddr | None = None  # the machine-to-physical table,
        self.m2p_width = 8  # and the bytes of an entry
        self.calls = CallLog()  # the domain's, whose last own one may be under way
        self.by_cpu: L1ByCpu | None = None  # once the CPU knows the domain
        # By mfn, of frames that were typed since the domain was built: the hypercall that did it,
        # or None if it was an exit of another kind (a move to CR3, a fault on the LDT).
        self._typed_by: dict[int, CallRecord | None] = {}

    def _view_records(self) -> None:
        self.count, self.type_count, self.owner, self.type, self.flags = (
            view(self.memory.page_info, field) for field in FIELDS
        )

    def __getstate__(self) -> dict[str, object]:
        """All but the records, which are kept with the memory, and the CPU."""
        return {name: value for name, value in vars(self).items() if name not in FIELDS} | {
            "by_cpu": None
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._view_records()

    def describe(self, mfn: int) -> str:
        """Say what a frame is, for a person."""
        if not self.memory.contains(mfn):
            return f"mfn {mfn:#x} (not RAM)"
        owner = self.owner[mfn]
        return (
            f"mfn {mfn:#x} ({'nobody' if owner == DOMID_NONE else f'd{owner}'}'s, "
            f"type {TYPE_NAMES[self.type[mfn]]} x{self.type_count[mfn]}"
            f"{' in part' if mfn in self.partial else ''}, "
            f"{self.count[mfn]} references{', pinned' if self.flags[mfn] & PGT_pinned else ''})"
        )

    def note_typed(self, mfn: int) -> None:
        """Remember who gives a frame the type that it has from now on."""
        if self.calls.own:
            call = self.calls.own[-1]
            self.typed_by[mfn] = call if call.result is None else None

    @property
    def typed_by(self) -> dict[int, CallRecord | None]:
        """What `note_typed` has, and what the CPU noted."""
        self._typed_by.update(self.calls.take_typed())
        return self._typed_by

    # Owners.

    def assign(self, first: Mfn, domid: int, nr_frames: int = 1) -> None:
        """Give a domain frames that nobody has; this is their first reference."""
        frames = range(first, first + nr_frames)
        owners = (self.owner[piece.start : piece.stop].tolist() for piece in pieces(frames))
        if any(some.count(DOMID_NONE) < len(some) for some in owners):
            raise ValueError(f"{nr_frames} frames from {first:#x} are not all free")
        record = RECORD.pack(1, 0, domid, PGT_writable_page, PGC_allocated)
        fill(self.memory.page_info, frames, record)
        self.pages[domid].tot_pages += nr_frames

    def give(self, mfn: Mfn, domid: int) -> None:
        """Make another domain the owner of a frame to which nothing but its allocation refers."""
        self.pages[self.owner[mfn]].tot_pages -= 1
        self.owner[mfn] = domid
        self.pages[domid].tot_pages += 1

    def release(self, mfn: Mfn) -> None:
        """Drop the reference that `assign` took, if not yet done: the last one frees the frame.

        In Xen: put_page_alloc_ref.
        """
        if self.flags[mfn] & PGC_allocated:
            self.flags[mfn] &= ~PGC_allocated
            self.put_page(mfn)

    def share_with_guest(self, mfn: Mfn, domid: int, writable: bool) -> None:
        """Let a domain map one of Xen's own frames (shared_info, grant table frames).

        The type reference that this takes is never dropped, so the frame cannot become a page
        table. In Xen: share_xen_page_with_guest.
        """
        if self.owner[mfn] != DOMID_NONE:
            raise ValueError(f"cannot share {self.describe(mfn)} with d{domid}")
        self.owner[mfn] = domid
        self.count[mfn] = 1
        self.type[mfn] = PGT_writable_page if writable else PGT_none
        self.type_count[mfn] = 1
        self.flags[mfn] = PGC_allocated | PGC_xen_heap

    def is_xen_heap(self, mfn: Mfn) -> bool:
        """Whether a frame is one of Xen's own, shared with its owner."""
        return bool(self.flags[mfn] & PGC_xen_heap)

    # General references.

    def get_page(self, mfn: int, domid: int) -> None:
        """Take a reference to a domain's frame; EINVAL if the frame is not the domain's."""
        if not (0 <= mfn < len(self.owner) and self.owner[mfn] == domid):
            raise XenError(EINVAL, f"{self.describe(mfn)} does not belong to d{domid}")
        self.count[mfn] += 1

    def put_page(self, mfn: int) -> None:
        """Drop a reference; without any, the frame goes back to the heap, or to Xen."""
        self.count[mfn] -= 1
        if self.count[mfn]:
            return
        if not self.flags[mfn] & PGC_xen_heap:
            self.pages[self.owner[mfn]].tot_pages -= 1
            self.heap.put(mfn)
        self.owner[mfn] = DOMID_NONE
        self.type[mfn] = PGT_none
        self.type_count[mfn] = 0  # that of share_with_guest is not dropped before
        self.flags[mfn] = 0
        self.set_m2p(mfn, INVALID_M2P_ENTRY)

    # The heap.

    def add_to_heap(self, mfns: Sequence[int]) -> None:
        """Let domains and Xen be given these frames, which nobody has, in this order."""
        self.heap.put_below(mfns)

    def alloc_xen_frame(self) -> Mfn:
        """Take a zeroed frame for Xen itself, to `share_with_guest`; ENOMEM if there is none."""
        (mfn,) = self._take(1, 0, self.memory.nr_frames)
        return mfn

    def free_xen_frame(self, mfn: Mfn) -> None:
        """Give back a frame of `alloc_xen_frame`, to which only its sharing may refer."""
        self.release(mfn)
        self.heap.put(mfn)

    def alloc_frames(
        self, domid: int, order: int = 0, below: int | None = None, nr_extents: int = 1
    ) -> list[Mfn]:
        """Give extents of 2^`order` contiguous, aligned, zeroed frames to a domain.

        Returns the first frame of each extent. If `below` is given, all frames are under that mfn.
        ENOMEM if the heap does not have that many; then nothing is taken.
        """
        firsts = self._take(nr_extents, order, self.memory.nr_frames if below is None else below)
        for first in firsts:
            self.assign(first, domid, 1 << order)
        return firsts

    def alloc_frame_at(self, mfn: int, domid: int) -> bool:
        """Give a domain one certain frame, zeroed, if the heap has it."""
        if not self.heap.take(mfn):
            return False
        self.memory.clear_frame(Mfn(mfn))
        self.assign(Mfn(mfn), domid)
        return True

    def _take(self, nr_extents: int, order: int, below: int) -> list[Mfn]:
        size = 1 << order
        top = self.heap.pop(below) if nr_extents == size == 1 else None
        firsts = self._find_extents(nr_extents, size, below) if top is None else [top]
        for first in firsts:
            if top is None:
                self.heap.take(first, size)
            for mfn in range(first, first + size):
                self.memory.clear_frame(Mfn(mfn))
        return [Mfn(first) for first in firsts]

    def _find_extents(self, nr_extents: int, size: int, below: int) -> list[int]:
        self.work_left -= self.memory.nr_frames >> FRAMES_PER_WORK_SHIFT
        free = self.heap.extents(size.bit_length() - 1)
        found: list[int] = []
        at = -1
        while len(found) < nr_extents:
            at = free.find(1, at + 1, below // size)
            if at < 0:
                raise XenError(
                    ENOMEM, f"below mfn {below:#x}, {nr_extents} x {size} frames are not free"
                )
            found.append(at * size)
        return found

    # The machine-to-physical table.

    def set_m2p(self, mfn: int, pfn: int) -> None:
        """Record the pfn under which its owner knows a frame."""
        if self.m2p_base is not None:
            where = Maddr(self.m2p_base + mfn * self.m2p_width)
            self.memory.write_uint(where, self.m2p_width, pfn)

    def get_m2p(self, mfn: int) -> int:
        """The pfn that was recorded for a frame; INVALID_M2P_ENTRY without a table."""
        if self.m2p_base is None:
            return INVALID_M2P_ENTRY
        where = Maddr(self.m2p_base + mfn * self.m2p_width)
        return self.memory.read_uint(where, self.m2p_width)
