"""Whatever a guest and dom0 do with grants, pins and references are those of the mappings it has.

Also what it sees: a grant's status tells how it is in use, in either version; and no handle is
ever lost or given twice.
"""

from __future__ import annotations

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fakes import DOMID, make_pvh_current
from grantfakes import ARGUMENT, DOM0, HEAP, PAGE, STRANGER, TABLE, granting, granting_current
from hypercalls.grant_table_op import grant_table_op
from xenemu.abi import grant_table as abi
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF
from xenemu.dom0.grants import map_grant, read_grant, unmap_grant, write_grant
from xenemu.errors import XenError
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.grant_map import held as held_by_mappings
from xenemu.hv.grant_table import KINDS, GNTPIN_writers, GrantError, pin_increment
from xenemu.hv.pagecheck import recount
from xenemu.x86.paging import ADDR, PAGE_SHIFT, RW, US, Maddr, Mfn, P

FAR = 0x1000
IN_USE = abi.GTF_reading | abi.GTF_writing

pages = st.integers(PAGE, PAGE + 4)  # PAGE + 1 is the L1 table
frames = st.one_of(pages, pages, st.sampled_from([2, 6, 0xFFFFFFFF]))
refs = st.sampled_from([1, 8, 9, 10, 255, 256, 511, 512])
good_refs = st.sampled_from([1, 8, 9, 10])
domids = st.sampled_from([DOMID, DOMID, DOMID, DOMID_SELF, DOM0, STRANGER])
entry_flags = st.sampled_from(
    [
        *[abi.GTF_permit_access] * 4,
        abi.GTF_permit_access | abi.GTF_readonly,
        abi.GTF_permit_access | abi.GTF_sub_page,
        abi.GTF_accept_transfer,
        abi.GTF_transitive,
        0,
    ]
)
offsets = st.sampled_from([0, 16, 4095, 4096])
some = st.integers(0, 60)


class Grants(RuleBasedStateMachine):
    """Of a PV guest, whose mappings are entries of an L1 table that it writes as well."""

    held = ((TABLE, PGT_l1_page_table),)
    map_flags = st.sampled_from(
        [
            abi.GNTMAP_host_map | abi.GNTMAP_contains_pte,
            abi.GNTMAP_host_map | abi.GNTMAP_contains_pte,
            abi.GNTMAP_device_map,
            abi.GNTMAP_host_map | abi.GNTMAP_device_map | abi.GNTMAP_contains_pte,
            abi.GNTMAP_readonly,
        ]
    )

    def __init__(self) -> None:
        super().__init__()
        self.current = self.make_current()
        self.domain, self.grants = self.current.domain, self.current.domain.grants
        self.pages = self.domain.pages.tot_pages

    def make_current(self) -> Current:
        return granting_current(8)

    def place(self, which: int) -> int:
        """Where a mapping goes."""
        return (TABLE << PAGE_SHIFT) + 8 * (which % 3)

    def call(self, command: int, op: Struct) -> None:
        self.domain.memory.write(Maddr(ARGUMENT), op.pack(self.domain.width))
        assert grant_table_op.handler is not None
        with suppress(XenError):
            grant_table_op.handler(self.current, command, ARGUMENT, 1)

    @rule(ref=refs, flags=entry_flags, domid=domids, frame=frames, offset=offsets)
    def write_entry(self, ref: int, flags: int, domid: int, frame: int, offset: int) -> None:
        """As a guest does, who leaves the bits that are Xen's."""
        if ref >= grant_table.nr_entries(self.domain):
            return
        if self.grants.version == 1:
            flags |= grant_table.read_entry(self.domain, ref).flags & IN_USE
            entry: abi.grant_entry_v1 | abi.grant_entry_v2 = abi.grant_entry_v1(flags, domid, frame)
        else:
            entry = abi.grant_entry_v2(flags, domid, offset, 32, frame)
        grant_table.write_entry(self.domain, ref, entry)

    @rule(data=st.data(), ref=refs, domid=domids, readonly=st.booleans(), place=some)
    def map(self, data: st.DataObject, ref: int, domid: int, readonly: bool, place: int) -> None:
        flags = data.draw(self.map_flags) | (abi.GNTMAP_readonly if readonly else 0)
        if flags & KINDS and not self.may_map(self.place(place)):
            return
        op = abi.gnttab_map_grant_ref(self.place(place), flags, ref, domid, 0, 0, 0)
        self.call(abi.GNTTABOP_map_grant_ref, op)

    @rule(data=st.data(), ref=good_refs, page=pages, readonly=st.booleans(), place=some)
    def grant_and_map(
        self, data: st.DataObject, ref: int, page: int, readonly: bool, place: int
    ) -> None:
        self.write_entry(ref, abi.GTF_permit_access, DOMID, page, 0)
        self.map(data, ref, DOMID, readonly, place)

    def may_map(self, place: int) -> bool:
        return True

    @rule(ref=good_refs, page=pages, readonly=st.booleans())
    def map_for_dom0(self, ref: int, page: int, readonly: bool) -> None:
        self.write_entry(ref, abi.GTF_permit_access, DOM0, page, 0)
        flags = abi.GNTMAP_host_map | (abi.GNTMAP_readonly if readonly else 0)
        with suppress(GrantError):
            map_grant(self.domain, ref, flags)

    @rule(which=some)
    def unmap_for_dom0(self, which: int) -> None:
        handles = list(self.grants.dom0.mappings)
        if handles:
            unmap_grant(self.domain, handles[which % len(handles)])

    @rule(ref=refs, offset=offsets, writing=st.booleans())
    def copy_for_dom0(self, ref: int, offset: int, writing: bool) -> None:
        with suppress(GrantError):
            if writing:
                write_grant(self.domain, ref, offset, bytes(8))
            else:
                read_grant(self.domain, ref, offset, 8)

    @rule(which=some, place=some, device=frames, kinds=st.integers(0, 5))
    def unmap(self, which: int, place: int, device: int, kinds: int) -> None:
        """Mostly by both addresses; often enough the place is that of the mapping."""
        handles = [*self.grants.maptrack.mappings, 999]
        handle, host, bus = handles[which % len(handles)], kinds != 1, kinds != 2
        mapping = self.grants.maptrack.mappings.get(handle)
        if mapping is not None:
            device = self.grants.active[mapping.ref].mfn
        where = self.place(place) if host else 0
        op = abi.gnttab_unmap_grant_ref(where, device << PAGE_SHIFT if bus else 0, handle, 0)
        self.call(abi.GNTTABOP_unmap_grant_ref, op)

    @rule(source=refs, dest=refs, gmfn=frames, kind=st.integers(0, 3), offset=offsets)
    def copy(self, source: int, dest: int, gmfn: int, kind: int, offset: int) -> None:
        op = abi.gnttab_copy(
            source if kind & 1 else gmfn,
            DOMID_SELF,
            offset,
            dest if kind & 2 else gmfn,
            DOMID_SELF,
            offset,
            bytes(4 if self.domain.width == 8 else 0),
            8,
            kind,
            0,
        )
        self.call(abi.GNTTABOP_copy, op)

    @rule(ref_a=refs, ref_b=refs)
    def swap(self, ref_a: int, ref_b: int) -> None:
        self.call(abi.GNTTABOP_swap_grant_ref, abi.gnttab_swap_grant_ref(ref_a, ref_b, 0))

    @rule(version=st.sampled_from([1, 2]), unlikely=st.integers(0, 3))
    def set_version(self, version: int, unlikely: int) -> None:
        """Now and then: it empties the table."""
        if unlikely:
            return
        self.call(abi.GNTTABOP_set_version, abi.gnttab_set_version(version))

    @rule(nr_frames=st.integers(0, 4))
    def set_up(self, nr_frames: int) -> None:
        op = abi.gnttab_setup_table(DOMID_SELF, nr_frames, 0, ARGUMENT + 64)
        self.call(abi.GNTTABOP_setup_table, op)

    @invariant()
    def references_are_those_of_mappings(self) -> None:
        held = [*self.held, *held_by_mappings(self.domain)]
        assert recount(self.domain.frames, held) == []

    @invariant()
    def pins_are_those_of_mappings(self) -> None:
        pins: dict[tuple[int, int], int] = {}
        for grantee, maptrack in ((DOMID, self.grants.maptrack), (DOM0, self.grants.dom0)):
            for mapping in maptrack.mappings.values():
                key = mapping.ref, grantee
                pins[key] = pins.get(key, 0) + pin_increment(mapping.flags)
        active = self.grants.active
        assert pins == {(ref, one.domid): one.pin for ref, one in active.items()}

    @invariant()
    def the_status_tells_the_use(self) -> None:
        for ref in (1, 8, 9, 10, 255):
            active = self.grants.active.get(ref)
            pin = active.pin if active is not None else 0
            expected = abi.GTF_reading if pin else 0
            expected |= abi.GTF_writing if pin & GNTPIN_writers else 0
            assert grant_table.read_status(self.domain, ref) & IN_USE == expected

    @invariant()
    def each_handle_is_free_or_stands_for_a_mapping(self) -> None:
        for maptrack in (self.grants.maptrack, self.grants.dom0):
            free = [handle for handles in maptrack.free.values() for handle in handles]
            assert sorted([*free, *maptrack.mappings]) == list(range(len(maptrack.home)))

    @invariant()
    def frames_are_the_guests_or_in_the_heap(self) -> None:
        frames, grants = self.domain.frames, self.grants
        shared = len(grants.frames) + len(grants.status_frames)
        lost = self.pages - self.domain.pages.tot_pages
        assert len(frames.heap) + shared == len(HEAP) + lost
        assert len(grants.status_frames) == (grants.version - 1)


class PvGrants(Grants):
    @rule(which=some, page=pages, low=st.sampled_from([0, P | US, P | RW | US]))
    def write_page_table(self, which: int, page: int, low: int) -> None:
        with suppress(XenError):
            self.domain.frames.mod_entry(self.place(which), page << PAGE_SHIFT | low, DOMID)

    @rule(which=some, domid=domids, ref=refs)
    def transfer(self, which: int, domid: int, ref: int) -> None:
        """Only of one page: the others must not run out."""
        del which
        self.call(abi.GNTTABOP_transfer, abi.gnttab_transfer(PAGE + 4, domid, ref, 0))

    @invariant()
    def the_page_table_is_never_mapped_writable(self) -> None:
        for entry in self.domain.memory.table(Mfn(TABLE)).tolist():
            assert entry & (ADDR | P | RW) != TABLE << PAGE_SHIFT | P | RW


class PvhGrants(Grants):
    """Of a PVH guest, whose mappings are places of its physmap."""

    held = ()
    map_flags = st.sampled_from(
        [abi.GNTMAP_host_map, abi.GNTMAP_host_map, abi.GNTMAP_device_map, abi.GNTMAP_readonly]
    )

    def make_current(self) -> Current:
        return granting(make_pvh_current())

    def place(self, which: int) -> int:
        return [FAR, FAR + 1, FAR + 2, PAGE, PAGE + 5, PAGE + 6][which % 6] << PAGE_SHIFT

    def may_map(self, place: int) -> bool:
        assert self.domain.p2m is not None
        return place >> PAGE_SHIFT not in self.domain.p2m.granted

    @invariant()
    def a_mapping_has_a_place_and_a_page_one_of_its_own_at_most(self) -> None:
        p2m = self.domain.p2m
        assert p2m is not None
        mapped = [self.grants.active[m.ref].mfn for m in self.grants.maptrack.mappings.values()]
        assert sorted(p2m.lookup(gfn) for gfn in p2m.granted) == sorted(mapped)


for _machine in (PvGrants, PvhGrants):
    _machine.TestCase.settings = settings(max_examples=60, stateful_step_count=50)
TestPvGrants = PvGrants.TestCase
TestPvhGrants = PvhGrants.TestCase
