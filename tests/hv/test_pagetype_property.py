"""Whatever a guest does to page tables, the counts are what memory says, and refusals are total.

Also the point of it all: no page table and no page of descriptors is ever mapped writable, which
`recount` sees as a frame used as writable_page and as something else at once, and
`writable_tables` as the CPU would. Each operation may be preempted at any point, and go on or not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xenemu.errors import XenError
from xenemu.hv.frame_table import INVALID_M2P_ENTRY, LEVELS, UNLIMITED, PGC_allocated
from xenemu.hv.memory import Memory
from xenemu.hv.page_info import FIELDS
from xenemu.hv.pagecheck import recount, writable_tables
from xenemu.hv.pagetype import (
    PV32,
    PV64,
    Frames,
    PGT_l1_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_seg_desc_page,
    PGT_writable_page,
    Restart,
)
from xenemu.x86.paging import PSE, RW, US, A, D, G, Maddr, Mfn, P

GUEST, OTHER = 1, 2
M2P = 1  # the frame of the table
NR_FRAMES = 14
GUEST_FRAMES = range(4, 12)

mfns = st.sampled_from([*GUEST_FRAMES, *GUEST_FRAMES, 2, 3, 12, NR_FRAMES])
indices = st.sampled_from([0, 1, 3, 255, 256, 300, 510, 511])
levels = st.integers(PGT_l1_page_table, PGT_l4_page_table)
uses = st.sampled_from(
    [PGT_none, PGT_l4_page_table, PGT_l1_page_table, PGT_seg_desc_page, PGT_writable_page]
)
bits = st.sampled_from(
    [0, 0, P | US, P | RW, P | RW | US, P | RW | US, P | US | A, P | RW | D, P | PSE, P | US | G]
)
some = st.integers(0, 60)
works = st.sampled_from([UNLIMITED, UNLIMITED, UNLIMITED, 1, 9, 18, 40, 100])
entries = st.builds(lambda mfn, low: mfn << 12 | low, mfns, bits)


class PageTables(RuleBasedStateMachine):
    paging = PV64
    xen_slots = ((256, 0x1063), (260, 0x1063))

    def __init__(self) -> None:
        super().__init__()
        self.frames = Frames(Memory(NR_FRAMES), self.paging)
        self.frames.assign(Mfn(GUEST_FRAMES[0]), GUEST, len(GUEST_FRAMES))
        self.frames.assign(Mfn(12), OTHER)
        self.frames.share_with_guest(Mfn(2), GUEST, writable=True)
        self.frames.share_with_guest(Mfn(3), GUEST, writable=False)
        self.frames.xen_slots = list(self.xen_slots)
        self.frames.m2p_base = Maddr(M2P << 12)
        self.pfns = {mfn: 100 + mfn for mfn in GUEST_FRAMES}
        for mfn, pfn in self.pfns.items():
            self.frames.set_m2p(mfn, pfn)
        self.held: list[tuple[int, int]] = []
        self.preempted: list[tuple[Callable[..., object], tuple[object, ...], int]] = []
        self.make_first_tables()
        self.frames.pin(4, GUEST, self.paging.root_type)

    def make_first_tables(self) -> None:
        for table in range(4, 7):
            self.frames.memory.table(Mfn(table))[0] = table + 1 << 12 | P | RW | US

    def tables(self, level: int | None = None) -> list[int]:
        levels = [LEVELS.get(used_as) for used_as in self.frames.type]
        return [mfn for mfn in range(NR_FRAMES) if levels[mfn] and level in (None, levels[mfn])]

    def snapshot(self) -> object:
        not_plain = ("memory", "heap", *FIELDS)
        plain = {name: value for name, value in vars(self.frames).items() if name not in not_plain}
        heap = list(self.frames.heap)
        records = bytes(self.frames.memory.page_info)
        return self.contents(), heap, records, copy.deepcopy(plain)

    def contents(self) -> list[int]:
        return self.frames.memory.words.tolist()

    def attempt(self, work: int, operation: Callable[..., object], *args: object) -> bool:
        frames = self.frames
        frames.work_left = UNLIMITED
        before = self.snapshot()
        left = bool(frames.partial or frames.old_tables)
        frames.work_left = work
        try:
            operation(*args)
        except XenError:
            if not (left or frames.old_tables):
                frames.work_left = UNLIMITED
                assert self.snapshot() == before
            return False
        except Restart:
            self.preempted.append((operation, args, work))
            return False
        return True

    @rule(
        mfn=mfns, contents=st.dictionaries(indices, entries, max_size=4), level=levels, work=works
    )
    def write_ordinary_memory_and_pin(
        self, mfn: int, contents: dict[int, int], level: int, work: int
    ) -> None:
        if mfn < NR_FRAMES and self.frames.type[mfn] == PGT_writable_page:
            for index, entry in contents.items():
                self.frames.memory.table(Mfn(mfn))[index] = entry
        self.attempt(work, self.frames.pin, mfn, GUEST, min(level, self.paging.root_type))

    @rule(mfn=mfns, work=works)
    def unpin(self, mfn: int, work: int) -> None:
        self.attempt(work, self.frames.unpin, mfn, GUEST)

    @rule(which=some, work=works)
    def go_on(self, which: int, work: int) -> None:
        """Issue a preempted call again, whatever has happened meanwhile."""
        if self.preempted:
            operation, args, _ = self.preempted.pop(which % len(self.preempted))
            if operation == self.frames.mod_entry:
                assert isinstance(args[0], int)
                if args[0] >> 12 not in self.tables():
                    return
            taken = self.attempt(work, operation, *args)
            if taken and operation == self.frames.get_page_and_type:
                mfn, _, use = args
                assert isinstance(mfn, int) and isinstance(use, int)
                self.held.append((mfn, use))

    @rule(work=works)
    def put_old_tables(self, work: int) -> None:
        self.frames.work_left = work
        assert self.frames.put_old_tables() == (not self.frames.old_tables)

    @rule(which=some, index=indices, entry=entries, preserve=st.booleans(), work=works)
    def update(self, which: int, index: int, entry: int, preserve: bool, work: int) -> None:
        tables = self.tables()
        if tables:
            maddr = tables[which % len(tables)] << 12 | index << 3
            self.attempt(work, self.frames.mod_entry, maddr, entry, GUEST, preserve)

    @rule(
        which=some,
        index=indices,
        child=some,
        low=st.sampled_from([P | RW | US, P | US]),
        work=works,
    )
    def link(self, which: int, index: int, child: int, low: int, work: int) -> None:
        """Point a table to one of the level below, or to one of its own, or to what may be one."""
        tables = self.tables()
        if not tables:
            return
        table = tables[which % len(tables)]
        level = LEVELS[self.frames.type[table]]
        fit = [mfn for mfn in GUEST_FRAMES if not self.frames.type_count[mfn]]
        fit += self.tables(level - 1) + self.tables(level)
        maddr = table << 12 | index << 3
        self.attempt(work, self.frames.mod_entry, maddr, fit[child % len(fit)] << 12 | low, GUEST)

    @rule(mfn=mfns, use=uses, work=works)
    def hold(self, mfn: int, use: int, work: int) -> None:
        if use == PGT_l4_page_table:
            use = self.paging.root_type
        if use == PGT_none:
            taken = self.attempt(work, self.frames.get_page, mfn, GUEST)
        else:
            taken = self.attempt(work, self.frames.get_page_and_type, mfn, GUEST, use)
        if taken:
            self.held.append((mfn, use))

    @rule(which=some, work=works)
    def let_go(self, which: int, work: int) -> None:
        self.frames.work_left = work
        if self.held:
            mfn, use = self.held.pop(which % len(self.held))
            if use != PGT_none:
                self.frames.put_page_type(mfn)
            self.frames.put_page(mfn)

    @rule(mfn=st.sampled_from(GUEST_FRAMES))
    def decrease_reservation(self, mfn: int) -> None:
        self.frames.release(Mfn(mfn))

    @rule(order=st.integers(0, 2), pfn=st.integers(0, 1000))
    def populate_physmap(self, order: int, pfn: int) -> None:
        try:
            (first,) = self.frames.alloc_frames(GUEST, order)
        except XenError:
            return
        for page in range(1 << order):
            assert not any(self.frames.memory.table(Mfn(first + page)))  # nothing of its past
            self.pfns[first + page] = pfn + page
            self.frames.set_m2p(first + page, pfn + page)

    @rule(mfn=st.sampled_from(GUEST_FRAMES), pfn=st.integers(0, 1000))
    def exchange(self, mfn: int, pfn: int) -> None:
        if self.frames.count[mfn] == 1 and self.frames.flags[mfn] == PGC_allocated:
            self.frames.release(Mfn(mfn))
            self.populate_physmap(0, pfn)

    @precondition(lambda self: not self.held)
    @rule()
    def relinquish(self) -> None:
        """The domain ends: every count is 0 then. Another has its frames after it."""
        assert self.frames.relinquish(GUEST) == []
        assert len(self.frames.heap) == len(GUEST_FRAMES)
        assert not (self.frames.partial or self.frames.linear_pt_count)
        assert not any(self.frames.type_count)
        self.preempted.clear()
        while self.frames.heap:
            self.populate_physmap(0, 7)

    @invariant()
    def counts_are_what_memory_says(self) -> None:
        assert recount(self.frames, self.held) == []

    @invariant()
    def every_frame_is_somewhere(self) -> None:
        frames = self.frames
        owned = sum(bool(count) for count in frames.count[4:12])
        assert owned + len(frames.heap) == len(GUEST_FRAMES)
        assert frames.pages[GUEST].tot_pages == owned
        assert all(frames.flags[mfn] & PGC_allocated == 0 for mfn in frames.heap)

    @invariant()
    def the_m2p_knows_only_owned_frames(self) -> None:
        for mfn in GUEST_FRAMES:
            expected = self.pfns[mfn] if self.frames.count[mfn] else INVALID_M2P_ENTRY
            assert self.frames.get_m2p(mfn) == expected

    @invariant()
    def the_cpu_cannot_write_a_table(self) -> None:
        roots = [mfn for mfn in self.tables(LEVELS[self.paging.root_type])]
        whole = [mfn for mfn in roots if mfn not in self.frames.partial]
        assert writable_tables(self.frames, whole) == []


PageTables.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestPageTables = PageTables.TestCase


class PaeTables(PageTables):
    """Those of a 32-bit guest."""

    paging = PV32
    xen_slots = ((510, 0x1063),)

    def contents(self) -> list[int]:
        """Without what Xen clears in the entries of a root that it refuses."""
        return [word & ~(US | RW | A) for word in super().contents()]

    def make_first_tables(self) -> None:
        for table, index, child in ((4, 0, 5), (5, 0, 6), (4, 3, 7)):
            self.frames.memory.table(Mfn(table))[index] = child << 12 | P


PaeTables.TestCase.settings = PageTables.TestCase.settings
TestPaeTables = PaeTables.TestCase
