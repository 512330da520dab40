"""Whatever a guest does to page tables, the counts are what memory says, and refusals are total.

Also the point of it all: no page table and no page of descriptors is ever mapped writable, which
`recount` sees as a frame used as writable_page and as something else at once.
"""

from __future__ import annotations

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from xenemu.errors import XenError
from xenemu.hv.frame_table import LEVELS, PGC_allocated
from xenemu.hv.memory import Memory
from xenemu.hv.pagecheck import recount
from xenemu.hv.pagetype import (
    PV32,
    PV64,
    Frames,
    PGT_l1_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.x86.paging import PSE, RW, US, A, D, G, Mfn, P

GUEST, OTHER = 1, 2
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
entries = st.builds(lambda mfn, low: mfn << 12 | low, mfns, bits)


class PageTables(RuleBasedStateMachine):
    paging = PV64
    xen_slots = ((256, 0x1063),)

    def __init__(self) -> None:
        super().__init__()
        self.frames = Frames(Memory(NR_FRAMES), self.paging)
        self.frames.assign(Mfn(GUEST_FRAMES[0]), GUEST, len(GUEST_FRAMES))
        self.frames.assign(Mfn(12), OTHER)
        self.frames.share_with_guest(Mfn(2), GUEST, writable=True)
        self.frames.share_with_guest(Mfn(3), GUEST, writable=False)
        self.frames.xen_slots = list(self.xen_slots)
        self.held: list[tuple[int, int]] = []
        self.make_first_tables()
        self.frames.pin(4, GUEST, self.paging.root_type)

    def make_first_tables(self) -> None:
        for table in range(4, 7):
            self.frames.memory.table(Mfn(table))[0] = table + 1 << 12 | P | RW | US

    def tables(self, level: int | None = None) -> list[int]:
        levels = [LEVELS.get(used_as) for used_as in self.frames.type]
        return [mfn for mfn in range(NR_FRAMES) if levels[mfn] and level in (None, levels[mfn])]

    def snapshot(self) -> object:
        plain = {name: value for name, value in vars(self.frames).items() if name != "memory"}
        return bytes(self.frames.memory.bytes), copy.deepcopy(plain)

    def attempt(self, operation: object, *args: object) -> bool:
        before = self.snapshot()
        try:
            operation(*args)  # type: ignore[operator]
        except XenError:
            assert self.snapshot() == before
            return False
        return True

    @rule(mfn=mfns, contents=st.dictionaries(indices, entries, max_size=4), level=levels)
    def write_ordinary_memory_and_pin(self, mfn: int, contents: dict[int, int], level: int) -> None:
        if mfn < NR_FRAMES and self.frames.type[mfn] == PGT_writable_page:
            for index, entry in contents.items():
                self.frames.memory.table(Mfn(mfn))[index] = entry
        self.attempt(self.frames.pin, mfn, GUEST, min(level, self.paging.root_type))

    @rule(mfn=mfns)
    def unpin(self, mfn: int) -> None:
        self.attempt(self.frames.unpin, mfn, GUEST)

    @rule(which=some, index=indices, entry=entries, preserve=st.booleans())
    def update(self, which: int, index: int, entry: int, preserve: bool) -> None:
        tables = self.tables()
        if tables:
            maddr = tables[which % len(tables)] << 12 | index << 3
            self.attempt(self.frames.mod_entry, maddr, entry, GUEST, preserve)

    @rule(which=some, index=indices, child=some, low=st.sampled_from([P | RW | US, P | US]))
    def link(self, which: int, index: int, child: int, low: int) -> None:
        """Point a table to one of the level below, or to one of its own, or to what may be one."""
        tables = self.tables()
        if not tables:
            return
        table = tables[which % len(tables)]
        level = LEVELS[self.frames.type[table]]
        fit = [mfn for mfn in GUEST_FRAMES if not self.frames.type_count[mfn]]
        fit += self.tables(level - 1) + self.tables(level)
        maddr = table << 12 | index << 3
        self.attempt(self.frames.mod_entry, maddr, fit[child % len(fit)] << 12 | low, GUEST)

    @rule(mfn=mfns, use=uses)
    def hold(self, mfn: int, use: int) -> None:
        if use == PGT_l4_page_table:
            use = self.paging.root_type
        if use == PGT_none:
            taken = self.attempt(self.frames.get_page, mfn, GUEST)
        else:
            taken = self.attempt(self.frames.get_page_and_type, mfn, GUEST, use)
        if taken:
            self.held.append((mfn, use))

    @rule(which=some)
    def let_go(self, which: int) -> None:
        if self.held:
            mfn, use = self.held.pop(which % len(self.held))
            if use != PGT_none:
                self.frames.put_page_type(mfn)
            self.frames.put_page(mfn)

    @rule(mfn=st.sampled_from(GUEST_FRAMES))
    def release(self, mfn: int) -> None:
        self.frames.release(Mfn(mfn))

    @rule()
    def populate(self) -> None:
        self.attempt(self.frames.alloc_frames, GUEST)

    @invariant()
    def counts_are_what_memory_says(self) -> None:
        assert recount(self.frames, self.held) == []

    @invariant()
    def every_frame_is_somewhere(self) -> None:
        frames = self.frames
        owned = sum(bool(count) for count in frames.count[4:12])
        assert owned + len(frames.heap) == len(GUEST_FRAMES)
        assert frames.tot_pages[GUEST] == owned
        assert all(frames.flags[mfn] & PGC_allocated == 0 for mfn in frames.heap)


PageTables.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
TestPageTables = PageTables.TestCase


class PaeTables(PageTables):
    """Those of a 32-bit guest."""

    paging = PV32
    xen_slots = ((510, 0x1063),)

    def make_first_tables(self) -> None:
        for table, index, child in ((4, 0, 5), (5, 0, 6), (4, 3, 7)):
            self.frames.memory.table(Mfn(table))[index] = child << 12 | P


PaeTables.TestCase.settings = PageTables.TestCase.settings
TestPaeTables = PaeTables.TestCase
