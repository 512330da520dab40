"""Two domains on a host: what one grants, or waits for, is for the other, and for nobody else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fakes import DOMID, make_current, make_pvh_current
from grantfakes import (
    ARGUMENT,
    HEAP,
    OTHER,
    PAGE,
    REF,
    STRANGER,
    call,
    grant,
    raw_call,
    state,
    status,
)
from hypercalls.event_channel_op import ops as event_ops
from hypercalls.memory_op import ops as memory_ops
from xenemu.abi import grant_table as abi
from xenemu.abi.errno import EPERM
from xenemu.abi.event_channel import (
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_status,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_unbound,
    evtchn_bind_interdomain,
    evtchn_status,
)
from xenemu.abi.layout import Struct
from xenemu.abi.memory import XENMEM_current_reservation
from xenemu.abi.xen import DOMID_SELF
from xenemu.dom0.grants import map_grant as map_for_dom0
from xenemu.errors import DomainCrash, XenError
from xenemu.hv import event_2l, event_channel, grant_table
from xenemu.hv.audit import audit
from xenemu.hv.current import Current
from xenemu.hv.frame_table import DOMID_NONE, PGT_l1_page_table
from xenemu.hv.observe import mod_entry
from xenemu.hv.p2m import P2m
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.domain import DOM0, Domain, Ring
from xenemu.hv.state.events import EventChannels
from xenemu.hv.state.grants import GrantTable
from xenemu.machine import Host
from xenemu.x86.paging import ADDR, RW, Maddr, Mfn, P

NEIGHBOUR, PAGES = 2, 64
FIRST = Mfn(16 + PAGES)  # of the neighbour's frames
TABLE, THEIRS, CALLS = (Mfn(FIRST + n) for n in range(3))
OWN_TABLE = Mfn(30)  # the first's, of page tables
ENTRY = TABLE << 12 | 0x18
FAR = 0x1000  # a guest frame beyond RAM
IN_USE = abi.GTF_reading | abi.GTF_writing

whos, places, pages = st.integers(0, 1), st.integers(0, 3), st.integers(20, 26)
refs, domids = (
    st.sampled_from([8, REF, 10]),
    st.sampled_from([DOMID, NEIGHBOUR, NEIGHBOUR, DOMID, 0]),
)
kinds = st.sampled_from([*[abi.GTF_permit_access] * 4, abi.GTF_accept_transfer, 0])


def make_neighbour(host: Host, like: Current) -> Current:
    """A vcpu of another domain of the same kind, with half of the frames of the first."""
    first, shared_info = like.domain, Mfn(5)
    vcpu = replace(copy.deepcopy(like.vcpu), info=Maddr(shared_info << 12))
    for mfn in range(FIRST, FIRST + PAGES):
        host.frames.give(Mfn(mfn), NEIGHBOUR)
    domain = Domain(
        width=first.width,
        memory=host.memory,
        frames=host.frames,
        events=EventChannels(),
        grants=GrantTable(),
        console=Ring(Mfn(FIRST + 10)),
        xenstore=Ring(Mfn(FIRST + 11)),
        shared_info=shared_info,
        max_pages=PAGES,
        vcpus=[vcpu],
        domid=NEIGHBOUR,
    )
    if first.p2m is not None:
        domain.p2m = P2m(range(FIRST, FIRST + PAGES))
        domain.p2m.remove(CALLS)
        domain.p2m.set(ARGUMENT >> 12, CALLS)
        for gfn in range(FIRST, FIRST + PAGES):
            first.p2m.remove(gfn)
    host.frames.share_with_guest(domain.shared_info, NEIGHBOUR, writable=True)
    host.admit(domain)
    return replace(like, domain=domain, vcpu=vcpu)


def make_two(make: Callable[..., Current]) -> tuple[Current, Current]:
    """Two domains, each with a heap frame for its grants; REF of the first gives the other PAGE."""
    first = make(pages=2 * PAGES)
    host = Host(first.domain.memory, first.domain.frames)
    host.admit(first.domain)
    second = make_neighbour(host, first)
    host.frames.add_to_heap(HEAP)
    for current in (first, second):
        grant_table.grow(current.domain, 1)
    grant(first.domain, REF, PAGE, to=NEIGHBOUR)
    if first.domain.p2m is None:
        host.frames.get_page_and_type(TABLE, NEIGHBOUR, PGT_l1_page_table)
        host.frames.get_page_and_type(OWN_TABLE, DOMID, PGT_l1_page_table)
    return first, second


@pytest.fixture(params=[make_current, make_pvh_current])
def two(request: pytest.FixtureRequest) -> tuple[Current, Current]:
    return make_two(request.param)


def faults(*currents: Current) -> list[str]:
    tables = [] if currents[0].domain.p2m is not None else [TABLE, OWN_TABLE]
    held = [(mfn, PGT_l1_page_table) for mfn in tables]
    return [fault for one in currents for fault in audit(one.domain, held)]


def map_op(current: Current, dom: int = DOMID, ref: int = REF) -> abi.gnttab_map_grant_ref:
    pv = current.domain.p2m is None
    flags = abi.GNTMAP_host_map | (abi.GNTMAP_contains_pte if pv else 0)
    return abi.gnttab_map_grant_ref(ENTRY if pv else FAR << 12, flags, ref, dom, 99, 99, 99)


def mapped(current: Current) -> Mfn | None:
    """What is where `map_op` maps."""
    if current.domain.p2m is not None:
        return current.domain.p2m.get(FAR)
    entry = current.domain.memory.words[ENTRY >> 3]
    return Mfn(entry >> 12 & ADDR >> 12) if entry & (P | RW) == P | RW else None


def test_a_neighbours_grant_is_mapped_and_given_back(two: tuple[Current, Current]) -> None:
    first, second = two
    before = state(first.domain)[1:], state(second.domain)[1:]
    op = call(second, abi.GNTTABOP_map_grant_ref, map_op(second))[0]
    assert isinstance(op, abi.gnttab_map_grant_ref)
    assert (op.status, mapped(second)) == (abi.GNTST_okay, PAGE)
    assert grant_table.read_entry(first.domain, REF).flags & IN_USE == IN_USE
    assert first.domain.grants.active[REF].domid == NEIGHBOUR
    assert faults(first, second) == []
    undo = abi.gnttab_unmap_grant_ref(op.host_addr, 0, op.handle, 0)
    assert status(second, abi.GNTTABOP_unmap_grant_ref, undo) == abi.GNTST_okay
    assert mapped(second) is None
    assert (state(first.domain)[1:], state(second.domain)[1:]) == before
    assert faults(first, second) == []


def test_a_grant_is_for_its_grantee_alone(two: tuple[Current, Current]) -> None:
    first, second = two
    assert status(first, abi.GNTTABOP_map_grant_ref, map_op(first)) == abi.GNTST_general_error
    op = map_op(second, dom=STRANGER)
    assert status(second, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_bad_domain
    op = map_op(second, dom=NEIGHBOUR)
    assert status(second, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_general_error
    with pytest.raises(grant_table.GrantError):
        map_for_dom0(first.domain, REF)
    op = map_op(second)
    assert status(second, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_okay
    grant(first.domain, REF, PAGE, abi.GTF_permit_access | IN_USE, to=DOM0)
    with pytest.raises(grant_table.GrantError, match="in use by d2"):
        map_for_dom0(first.domain, REF)
    assert faults(first, second) == []


def test_bytes_are_copied_from_a_neighbours_grant(two: tuple[Current, Current]) -> None:
    first, second = two
    memory = first.domain.memory
    memory.write(Maddr(PAGE << 12), b"hello")
    pad = bytes(4 if second.vcpu.width == 8 else 0)
    there = abi.gnttab_copy(
        REF, DOMID, 0, THEIRS, DOMID_SELF, 0, pad, 5, abi.GNTCOPY_source_gref, 0
    )
    assert status(second, abi.GNTTABOP_copy, there) == abi.GNTST_okay
    assert memory.read(Maddr(THEIRS << 12), 5) == b"hello"
    back = abi.gnttab_copy(THEIRS, DOMID_SELF, 1, REF, DOMID, 9, pad, 3, abi.GNTCOPY_dest_gref, 0)
    assert status(second, abi.GNTTABOP_copy, back) == abi.GNTST_okay
    assert memory.read(Maddr((PAGE << 12) + 9), 3) == b"ell"
    assert status(first, abi.GNTTABOP_copy, there) == abi.GNTST_general_error
    assert not first.domain.grants.active
    assert faults(first, second) == []


@pytest.mark.parametrize("two", [make_current], indirect=True)  # a PVH guest transfers nothing
@pytest.mark.parametrize("room", [1, 0])
def test_a_page_goes_to_the_neighbour_that_accepts_one(
    two: tuple[Current, Current], room: int
) -> None:
    first, second = two
    second.domain.pages.max_pages += room
    grant(second.domain, REF, 7, abi.GTF_accept_transfer, to=DOMID)
    counts = first.domain.pages.tot_pages, second.domain.pages.tot_pages
    op = abi.gnttab_transfer(OTHER, NEIGHBOUR, REF, 99)
    expected = abi.GNTST_okay if room else abi.GNTST_general_error
    assert status(first, abi.GNTTABOP_transfer, op) == expected
    assert first.domain.pages.tot_pages == counts[0] - 1
    assert second.domain.pages.tot_pages == counts[1] + room
    assert second.domain.frames.owner[OTHER] == (NEIGHBOUR if room else DOMID_NONE)
    done = abi.GTF_transfer_committed | (abi.GTF_transfer_completed if room else 0)
    entry = grant_table.read_entry(second.domain, REF)
    assert (entry.flags, entry.frame) == (abi.GTF_accept_transfer | done, OTHER if room else 7)
    assert faults(first, second) == []


def connect(one: Current, other: Current) -> tuple[int, int]:
    """A port of each, connected to the other."""
    waits = event_channel.alloc_unbound(one.domain, other.domain.domid)
    op = evtchn_bind_interdomain(one.domain.domid, waits, 0)
    other.write_struct(ARGUMENT, op)
    assert not event_ops(other, EVTCHNOP_bind_interdomain, ARGUMENT)
    return waits, other.read_struct(evtchn_bind_interdomain, ARGUMENT).local_port


def test_an_event_goes_to_the_neighbour_and_wakes_it(two: tuple[Current, Current]) -> None:
    first, second = two
    event_channel.alloc_unbound(second.domain, DOM0)  # so that the ports have two numbers
    ports = connect(first, second)
    assert ports[0] != ports[1]
    first.vcpu.blocked = second.vcpu.blocked = True
    for current in two:  # the binding itself raises an event
        current.domain.memory.write(current.vcpu.info, bytes(16))
    for one, other in ((0, 1), (1, 0)):
        for current, port in zip(two, ports, strict=True):
            event_2l.clear_pending(current.domain, port)
        event_channel.send(two[one].domain, ports[one])
        assert event_channel.is_pending(two[other].domain, ports[other])
        assert not event_channel.is_pending(two[one].domain, ports[one])
        assert not two[other].vcpu.blocked
    assert faults(first, second) == []


def test_a_port_waits_for_its_neighbour_alone(two: tuple[Current, Current]) -> None:
    first, second = two
    for_other = event_channel.alloc_unbound(first.domain, DOM0)
    for_own = event_channel.alloc_unbound(first.domain, DOMID)
    for port in (for_other, for_own, 99):
        with pytest.raises(XenError):
            event_channel.bind_interdomain(second.domain, DOMID, port)
    assert all(channel.state == EVTCHNSTAT_closed for channel in second.domain.events.channels)


def test_a_closed_port_leaves_the_neighbours_unbound(two: tuple[Current, Current]) -> None:
    first, second = two
    ports = connect(first, second)
    event_channel.close(second.domain, ports[1])
    channel = event_channel.status(first.domain, ports[0])
    assert (channel.state, channel.remote_domid) == (EVTCHNSTAT_unbound, NEIGHBOUR)
    assert event_channel.bind_interdomain(second.domain, DOMID, ports[0])
    assert faults(first, second) == []


def test_what_is_the_neighbours_is_not_ones_own(two: tuple[Current, Current]) -> None:
    first, second = two
    port = event_channel.alloc_unbound(second.domain, DOMID)
    first.write_struct(ARGUMENT, evtchn_status(NEIGHBOUR, port, 0, 0, bytes(8)))
    with pytest.raises(XenError) as error:
        event_ops(first, EVTCHNOP_status, ARGUMENT)
    assert error.value.errno == EPERM
    op = abi.gnttab_setup_table(NEIGHBOUR, 2, 0, ARGUMENT + 64)
    expected = abi.GNTST_permission_denied
    assert status(first, abi.GNTTABOP_setup_table, op) == expected
    first.write_uint(ARGUMENT, 2, NEIGHBOUR)
    with pytest.raises(XenError) as error:
        memory_ops(first, XENMEM_current_reservation, ARGUMENT)
    assert error.value.errno == EPERM


def test_a_restored_domain_takes_its_place_among_the_others(two: tuple[Current, Current]) -> None:
    first, second = two
    snapshot = DomainSnapshot.of(first.domain)
    assert status(second, abi.GNTTABOP_map_grant_ref, map_op(second)) == abi.GNTST_okay
    domains = second.domain.peers
    restored = snapshot.restore(first.domain)
    assert restored.peers is domains
    assert domains == {DOMID: restored, NEIGHBOUR: second.domain}
    assert domains[DOMID] is restored


def test_no_two_domains_of_a_host_have_one_id(two: tuple[Current, Current]) -> None:
    first, second = two
    host = Host(first.domain.memory, first.domain.frames, domains=dict(first.domain.peers))
    with pytest.raises(ValueError, match="domain 2"):
        host.admit(second.domain)


class Neighbours(RuleBasedStateMachine):
    """Each does with grants and ports what it likes; the books of both stay true."""

    make = staticmethod(make_current)
    table: tuple[int, int] | None = OWN_TABLE, TABLE

    def __init__(self) -> None:
        super().__init__()
        self.two = make_two(self.make)
        self.domains = [current.domain for current in self.two]
        self.made: dict[tuple[int, int], int] = {}  # where the mapping of a handle was made

    def call(self, who: int, command: int, op: Struct) -> None:
        self.domains[who].frames.calls.own.clear()
        self.two[who].write_struct(ARGUMENT, op)
        with suppress(XenError, DomainCrash):
            raw_call(self.two[who], command, ARGUMENT, 1)

    def place(self, who: int, which: int) -> int:
        return (self.table[who] << 12) + 8 * which if self.table else (FAR + which) << 12

    @rule(who=whos, ref=refs, to=domids, page=pages, flags=kinds)
    def grants(self, who: int, ref: int, to: int, page: int, flags: int) -> None:
        domain = self.domains[who]
        in_use = grant_table.read_status(domain, ref) & IN_USE
        grant(domain, ref, (16, FIRST)[who] + page, flags | in_use, to)

    @rule(who=whos, dom=domids, ref=refs, which=places, readonly=st.booleans())
    def maps(self, who: int, dom: int, ref: int, which: int, readonly: bool) -> None:
        op = map_op(self.two[who], dom, ref)
        op.host_addr = self.place(who, which)
        op.flags |= abi.GNTMAP_readonly if readonly else 0
        p2m = self.domains[who].p2m
        if p2m is None or FAR + which not in p2m.granted:  # else it ends the domain
            self.call(who, abi.GNTTABOP_map_grant_ref, op)
            made = self.two[who].read_struct(abi.gnttab_map_grant_ref, ARGUMENT)
            self.made[who, made.handle] = op.host_addr

    @rule(who=whos, ref=refs, page=pages, which=places, readonly=st.booleans())
    def grants_and_the_other_maps(
        self, who: int, ref: int, page: int, which: int, readonly: bool
    ) -> None:
        self.grants(who, ref, (NEIGHBOUR, DOMID)[who], page, abi.GTF_permit_access)
        self.maps(1 - who, (DOMID, NEIGHBOUR)[who], ref, which, readonly)

    @rule(who=whos, ref=refs, page=pages)
    def gives_and_the_other_accepts(self, who: int, ref: int, page: int) -> None:
        self.grants(1 - who, ref, (DOMID, NEIGHBOUR)[who], page, abi.GTF_accept_transfer)
        self.gives(who, (NEIGHBOUR, DOMID)[who], ref, page)

    @rule(who=whos, number=st.integers(0, 9), which=places)
    def unmaps(self, who: int, number: int, which: int) -> None:
        handles = [*self.domains[who].grants.maptrack.mappings, 999]
        op = abi.gnttab_unmap_grant_ref(
            self.place(who, which), 0, handles[number % len(handles)], 0
        )
        self.call(who, abi.GNTTABOP_unmap_grant_ref, op)

    @rule(who=whos, dom=domids, ref=refs, page=pages, back=st.booleans())
    def copies(self, who: int, dom: int, ref: int, page: int, back: bool) -> None:
        pad, mine = bytes(self.two[who].vcpu.width - 4), ((16, FIRST)[who] + page, DOMID_SELF, 0)
        ends = (*mine, ref, dom, 0) if back else (ref, dom, 0, *mine)
        flags = abi.GNTCOPY_dest_gref if back else abi.GNTCOPY_source_gref
        self.call(who, abi.GNTTABOP_copy, abi.gnttab_copy(*ends, pad, 8, flags, 0))

    @rule(who=whos, dom=domids, ref=refs, page=pages)
    def gives(self, who: int, dom: int, ref: int, page: int) -> None:
        self.domains[1 - who].pages.max_pages += 1
        op = abi.gnttab_transfer((16, FIRST)[who] + page, dom, ref, 0)
        self.call(who, abi.GNTTABOP_transfer, op)

    @rule(who=whos, dom=domids, port=st.integers(0, 6))
    def binds(self, who: int, dom: int, port: int) -> None:
        with suppress(XenError):
            event_channel.bind_interdomain(self.domains[who], dom, port)

    @rule(who=whos, dom=domids)
    def waits(self, who: int, dom: int) -> None:
        event_channel.alloc_unbound(self.domains[who], dom)

    @rule(who=whos, port=st.integers(0, 6), close=st.booleans())
    def sends_or_closes(self, who: int, port: int, close: bool) -> None:
        with suppress(XenError):
            (event_channel.close if close else event_channel.send)(self.domains[who], port)

    @rule(who=whos, which=places)
    def clears_an_entry(self, who: int, which: int) -> None:
        if self.table:
            mod_entry(self.two[who], self.place(who, which), 0, self.domains[who].domid)

    @invariant()
    def the_books_are_true(self) -> None:
        assert faults(*self.two) == []


class PvhNeighbours(Neighbours):
    make = staticmethod(make_pvh_current)
    table = None


for _machine in (Neighbours, PvhNeighbours):
    _machine.TestCase.settings = settings(max_examples=25, stateful_step_count=40)
TestNeighbours = Neighbours.TestCase
TestPvhNeighbours = PvhNeighbours.TestCase
