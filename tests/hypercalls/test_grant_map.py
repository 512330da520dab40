"""hypercalls/grant_map.py, and where it makes the mappings: grant_map_pv.py, grant_map_pvh.py"""

from __future__ import annotations

import pytest

from fakes import DOMID, L1, READ_ONLY, FakeCpu, make_pv_current, make_pvh_current
from grantfakes import (
    ARGUMENT,
    DOM0,
    OTHER,
    PAGE,
    REF,
    STRANGER,
    TABLE,
    call,
    grant,
    granting,
    granting_current,
    raw_call,
    state,
    status,
)
from xenemu.abi import grant_table as abi
from xenemu.abi.errno import EFAULT
from xenemu.errors import DomainCrash, XenError
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l1_page_table, PGT_writable_page
from xenemu.hv.grant_map import held
from xenemu.hv.grant_table import KINDS, GNTPIN_devw_inc, GNTPIN_hstw_inc
from xenemu.x86.paging import ADDR, RW, US, Mfn, P

HOST = abi.GNTMAP_host_map | abi.GNTMAP_contains_pte
BY_ADDRESS = abi.GNTMAP_host_map
DEVICE = abi.GNTMAP_device_map
READONLY = abi.GNTMAP_readonly
ENTRY = TABLE << 12 | 0x18
FAR = 0x1000  # a guest frame beyond RAM


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    return granting_current(request.param)


@pytest.fixture
def pv() -> Current:
    """On real page tables, which map PAGE and OTHER; grant REF gives itself PAGE."""
    current = make_pv_current()
    current.domain.frames.add_to_heap(range(8, 16))
    grant_table.grow(current.domain, 1)
    grant(current.domain, REF, PAGE)
    return current


@pytest.fixture
def pvh() -> Current:
    return granting(make_pvh_current())


def counts(current: Current) -> tuple[list[int], list[int]]:
    return list(current.domain.frames.count), list(current.domain.frames.type_count)


def map_op(
    flags: int, host_addr: int = ENTRY, dom: int = DOMID, ref: int = REF
) -> abi.gnttab_map_grant_ref:
    return abi.gnttab_map_grant_ref(host_addr, flags, ref, dom, 99, 99, 99)


def mapped(current: Current, flags: int, host_addr: int = ENTRY) -> abi.gnttab_map_grant_ref:
    op = call(current, abi.GNTTABOP_map_grant_ref, map_op(flags, host_addr))[0]
    assert isinstance(op, abi.gnttab_map_grant_ref)
    assert op.status == abi.GNTST_okay
    return op


def entry(current: Current, maddr: int = ENTRY) -> int:
    return current.domain.memory.words[maddr >> 3]


def test_a_grant_is_mapped_by_its_entry(current: Current) -> None:
    op = mapped(current, HOST)
    assert op.dev_bus_addr == PAGE << 12
    assert entry(current) & (ADDR | P | RW) == PAGE << 12 | P | RW
    assert current.domain.frames.type_count[PAGE] == 1


def test_a_read_only_mapping_is_not_writable(current: Current) -> None:
    mapped(current, HOST | abi.GNTMAP_readonly | 5 << abi.GNTMAP_guest_avail0)
    assert entry(current) & (RW | 7 << 9) == 5 << 9
    assert current.domain.frames.type_count[PAGE] == 0


def test_unmapping_gives_everything_back(current: Current) -> None:
    before = counts(current)
    handle = mapped(current, HOST | abi.GNTMAP_device_map).handle
    op = abi.gnttab_unmap_grant_ref(ENTRY, PAGE << 12, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_okay
    assert entry(current) == 0
    assert counts(current) == before
    assert isinstance(current.cpu, FakeCpu) and current.cpu.flushes
    assert not current.domain.grants.maptrack.mappings and not current.domain.grants.active


@pytest.mark.parametrize(
    ("host_addr", "dev_bus_addr", "left", "pin"),
    [
        (0, PAGE << 12, abi.GNTMAP_host_map, GNTPIN_hstw_inc),
        (ENTRY, 0, abi.GNTMAP_device_map, GNTPIN_devw_inc),
    ],
)
def test_each_kind_of_mapping_is_undone_by_its_address(
    current: Current, host_addr: int, dev_bus_addr: int, left: int, pin: int
) -> None:
    before, grants = counts(current), current.domain.grants
    handle = mapped(current, HOST | abi.GNTMAP_device_map).handle
    undo = [
        abi.gnttab_unmap_grant_ref(host_addr, dev_bus_addr, handle, 99),
        abi.gnttab_unmap_grant_ref(ENTRY - host_addr, (PAGE << 12) - dev_bus_addr, handle, 99),
    ]
    assert status(current, abi.GNTTABOP_unmap_grant_ref, undo[0]) == abi.GNTST_okay
    assert grants.maptrack.mappings[handle].flags & KINDS == left
    assert grants.active[REF].pin == pin
    assert bool(entry(current) & P) is (left == abi.GNTMAP_host_map)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, undo[1]) == abi.GNTST_okay
    assert not grants.maptrack.mappings and not grants.active
    assert counts(current) == before


def test_an_entry_that_the_guest_changed_is_not_unmapped(current: Current) -> None:
    handle = mapped(current, HOST).handle
    current.domain.frames.mod_entry(ENTRY, 0, DOMID)
    before = counts(current)
    op = abi.gnttab_unmap_grant_ref(ENTRY, 0, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_general_error
    assert counts(current) == before
    assert handle in current.domain.grants.maptrack.mappings


@pytest.mark.parametrize("host_addr", [ENTRY | 4, PAGE << 12, 5 << 12, 1 << 60])
def test_an_entry_must_be_in_an_l1_table(current: Current, host_addr: int) -> None:
    before = counts(current)
    op = map_op(HOST, host_addr)
    assert status(current, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_general_error
    assert counts(current) == before
    assert not current.domain.grants.maptrack.mappings and not current.domain.grants.active


def test_only_existing_domains_have_granted_something(current: Current) -> None:
    op = map_op(HOST, dom=STRANGER)
    assert status(current, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_bad_domain
    assert entry(current) == 0


def test_a_mapping_named_by_its_entry_cannot_be_replaced(current: Current) -> None:
    handle = mapped(current, HOST).handle
    op = abi.gnttab_unmap_and_replace(ENTRY, ENTRY + 8, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_and_replace, op) == abi.GNTST_general_error
    assert entry(current) & P


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (map_op(abi.GNTMAP_readonly), abi.GNTST_bad_gntref),
        (map_op(DEVICE, ref=512), abi.GNTST_bad_gntref),
        (map_op(DEVICE, dom=DOM0), abi.GNTST_general_error),
        (map_op(DEVICE, dom=DOM0, ref=512), abi.GNTST_bad_gntref),
        (map_op(DEVICE, dom=0x7FF0), abi.GNTST_bad_domain),
        (map_op(DEVICE, dom=STRANGER), abi.GNTST_bad_domain),
        (map_op(DEVICE, ref=10), abi.GNTST_general_error),
    ],
)
def test_a_grant_that_cannot_be_mapped(
    current: Current, op: abi.gnttab_map_grant_ref, expected: int
) -> None:
    before = counts(current)
    assert status(current, abi.GNTTABOP_map_grant_ref, op) == expected
    assert counts(current) == before
    assert not current.domain.grants.maptrack.mappings and not current.domain.grants.active


def test_a_mapping_that_fails_takes_a_handle_to_the_end_of_the_list(current: Current) -> None:
    status(current, abi.GNTTABOP_map_grant_ref, map_op(DEVICE, ref=10))
    assert mapped(current, DEVICE).handle == 1


def test_without_handles_there_is_no_space(current: Current) -> None:
    current.domain.grants.maptrack.max_frames = 0
    assert status(current, abi.GNTTABOP_map_grant_ref, map_op(DEVICE)) == abi.GNTST_no_space
    assert not current.domain.grants.active


def test_a_device_mapping_holds_the_frame_as_writable(current: Current) -> None:
    handle = mapped(current, DEVICE).handle
    frames = current.domain.frames
    assert (frames.count[PAGE], frames.type_count[PAGE]) == (2, 1)
    assert held(current.domain) == [(PAGE, PGT_writable_page)]
    op = abi.gnttab_unmap_grant_ref(0, PAGE << 12, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_okay
    assert (frames.count[PAGE], frames.type_count[PAGE]) == (1, 0)


def test_a_page_table_is_not_mapped_for_a_device_to_write(current: Current) -> None:
    current.domain.frames.get_page_and_type(PAGE, DOMID, PGT_l1_page_table)
    before = counts(current)
    assert status(current, abi.GNTTABOP_map_grant_ref, map_op(DEVICE)) == abi.GNTST_general_error
    assert counts(current) == before
    mapped(current, DEVICE | READONLY)


def test_the_device_mapping_is_undone_where_there_is_no_entry(current: Current) -> None:
    before = counts(current)
    op = map_op(DEVICE | HOST, PAGE << 12)
    assert status(current, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_general_error
    assert counts(current) == before


def test_a_handle_must_be_one(current: Current) -> None:
    op = abi.gnttab_unmap_grant_ref(ENTRY, 0, 0, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_bad_handle


def test_a_handle_is_good_for_one_unmap(current: Current) -> None:
    op = abi.gnttab_unmap_grant_ref(ENTRY, 0, mapped(current, HOST).handle, 99)
    results = call(current, abi.GNTTABOP_unmap_grant_ref, op, op)
    assert [result.status for result in results] == [abi.GNTST_okay, abi.GNTST_bad_handle]


def test_the_bus_address_must_be_the_frames(current: Current) -> None:
    handle = mapped(current, HOST | DEVICE).handle
    before = counts(current)
    op = abi.gnttab_unmap_grant_ref(ENTRY, OTHER << 12, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_bad_dev_addr
    assert (counts(current), entry(current) & P) == (before, P)


def test_a_bus_address_means_nothing_to_a_mapping_for_the_cpu(current: Current) -> None:
    op = abi.gnttab_unmap_grant_ref(ENTRY, OTHER << 12, mapped(current, HOST).handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_okay


def test_an_unmap_without_addresses_undoes_nothing(current: Current) -> None:
    handle = mapped(current, HOST).handle
    before = counts(current)
    op = abi.gnttab_unmap_grant_ref(0, 0, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_okay
    assert counts(current) == before
    assert handle in current.domain.grants.maptrack.mappings


def test_an_entry_that_maps_the_frame_again_is_unmapped(current: Current) -> None:
    before = counts(current)
    handle = mapped(current, HOST).handle
    for value in (0, PAGE << 12 | P | RW | US):
        current.domain.frames.mod_entry(ENTRY, value, DOMID)
    op = abi.gnttab_unmap_grant_ref(ENTRY, 0, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_okay
    assert counts(current) == before


def test_an_entry_with_other_rights_is_not_unmapped(current: Current) -> None:
    handle = mapped(current, HOST).handle
    current.domain.frames.mod_entry(ENTRY, PAGE << 12 | P | US, DOMID)
    op = abi.gnttab_unmap_grant_ref(ENTRY, 0, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_general_error
    assert entry(current) & P


def test_a_fault_ends_the_call_with_what_came_before_done(current: Current) -> None:
    size = map_op(DEVICE).sizeof(current.vcpu.width)
    at = ARGUMENT + 0x1000 - size
    READ_ONLY.add(ARGUMENT + 0x1000)
    try:
        for index in range(3):
            current.domain.memory.write(at + index * size, map_op(DEVICE).pack(8))
        with pytest.raises(XenError) as error:
            raw_call(current, abi.GNTTABOP_map_grant_ref, at, 3)
    finally:
        READ_ONLY.discard(ARGUMENT + 0x1000)
    assert error.value.errno == EFAULT
    # As in Xen, the second is mapped, and the guest does not learn its handle.
    assert list(current.domain.grants.maptrack.mappings) == [0, 1]


# By virtual address, in the page tables in use.


def pte(mfn: int) -> int:
    """Where the entry is that maps a frame at its machine address."""
    return (L1 << 12) + 8 * mfn


def test_a_grant_is_mapped_at_an_address(pv: Current) -> None:
    handle = mapped(pv, BY_ADDRESS | abi.GNTMAP_application_map, OTHER << 12 | 0x123).handle
    assert entry(pv, pte(OTHER)) & (ADDR | P | RW | US) == PAGE << 12 | P | RW | US
    op = abi.gnttab_unmap_grant_ref(OTHER << 12, 0, handle, 99)
    assert status(pv, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_okay
    assert entry(pv, pte(OTHER)) == 0


def test_a_mapping_is_replaced_by_another_entry(pv: Current) -> None:
    handle = mapped(pv, BY_ADDRESS, OTHER << 12).handle
    third = Mfn(OTHER + 1)
    was, before = entry(pv, pte(third)), pv.domain.frames.count[third]
    op = abi.gnttab_unmap_and_replace(OTHER << 12, third << 12, handle, 99)
    assert status(pv, abi.GNTTABOP_unmap_and_replace, op) == abi.GNTST_okay
    assert (entry(pv, pte(OTHER)), entry(pv, pte(third))) == (was, 0)
    assert pv.domain.frames.count[third] == before
    assert not pv.domain.grants.active


def test_the_entry_that_replaces_may_be_the_last_to_hold_its_frame(pv: Current) -> None:
    handle = mapped(pv, BY_ADDRESS, OTHER << 12).handle
    third = Mfn(OTHER + 1)
    pv.domain.frames.release(third)
    op = abi.gnttab_unmap_and_replace(OTHER << 12, third << 12, handle, 99)
    assert status(pv, abi.GNTTABOP_unmap_and_replace, op) == abi.GNTST_okay
    assert pv.domain.frames.owner[third] == DOMID
    assert entry(pv, pte(OTHER)) & ADDR == third << 12


def test_a_replacement_that_fails_loses_the_other_entry(pv: Current) -> None:
    """As Xen does it: first it takes the one, then it looks at the other."""
    handle = mapped(pv, BY_ADDRESS, OTHER << 12).handle
    third = Mfn(OTHER + 1)
    pv.domain.frames.mod_entry(pte(OTHER), 0, DOMID)
    before = pv.domain.frames.count[third]
    op = abi.gnttab_unmap_and_replace(OTHER << 12, third << 12, handle, 99)
    assert status(pv, abi.GNTTABOP_unmap_and_replace, op) == abi.GNTST_general_error
    assert (entry(pv, pte(third)), pv.domain.frames.count[third]) == (0, before - 1)
    assert handle in pv.domain.grants.maptrack.mappings


@pytest.mark.parametrize("host_addr", [1 << 40, 1 << 47, 0xFFFF800000000000])
def test_an_address_must_have_an_l1_table(pv: Current, host_addr: int) -> None:
    before = counts(pv)
    op = map_op(BY_ADDRESS, host_addr)
    assert status(pv, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_general_error
    assert counts(pv) == before


# In a PVH guest's physmap.


def test_a_frame_moves_to_its_mapping_and_has_no_place_afterwards(pvh: Current) -> None:
    p2m, before = pvh.domain.p2m, counts(pvh)
    assert p2m is not None
    op = mapped(pvh, BY_ADDRESS, FAR << 12 | 0x10)
    assert (p2m.get(FAR), p2m.get(PAGE)) == (PAGE, None)
    assert held(pvh.domain) == [(PAGE, PGT_writable_page)]
    unmap = abi.gnttab_unmap_grant_ref(FAR << 12, 0, op.handle, 99)
    assert status(pvh, abi.GNTTABOP_unmap_grant_ref, unmap) == abi.GNTST_okay
    assert (p2m.get(FAR), p2m.get(PAGE), p2m.granted) == (None, None, set())
    assert counts(pvh) == before


def test_a_frame_may_be_mapped_in_two_places(pvh: Current) -> None:
    for gfn in (FAR, FAR + 1):
        mapped(pvh, BY_ADDRESS, gfn << 12)
    assert pvh.domain.p2m is not None
    assert pvh.domain.p2m.elsewhere == {FAR: PAGE, FAR + 1: PAGE}


def test_ram_behind_a_mapping_stays_the_domains(pvh: Current) -> None:
    pages = pvh.domain.pages.tot_pages
    mapped(pvh, BY_ADDRESS | READONLY, OTHER << 12)
    assert pvh.domain.p2m is not None
    assert pvh.domain.p2m.get(OTHER) == PAGE
    assert pvh.domain.frames.owner[OTHER] == DOMID
    assert pvh.domain.pages.tot_pages == pages


def test_a_frame_may_be_mapped_where_it_is(pvh: Current) -> None:
    mapped(pvh, BY_ADDRESS, PAGE << 12)
    assert pvh.domain.p2m is not None
    assert pvh.domain.p2m.get(PAGE) == PAGE
    assert pvh.domain.p2m.granted == {PAGE}


def test_a_mapping_over_another_ends_the_domain(pvh: Current) -> None:
    mapped(pvh, BY_ADDRESS, FAR << 12)
    before = state(pvh.domain)[1:]  # the call's argument is in memory
    with pytest.raises(DomainCrash, match="maps a grant"):
        call(pvh, abi.GNTTABOP_map_grant_ref, map_op(BY_ADDRESS, FAR << 12))
    assert state(pvh.domain)[1:] == before


@pytest.mark.parametrize(
    ("flags", "gfn"),
    [
        (DEVICE, FAR),
        (HOST, FAR),
        (BY_ADDRESS | abi.GNTMAP_application_map, FAR),
        (BY_ADDRESS | 1 << abi.GNTMAP_guest_avail0, FAR),
        (BY_ADDRESS, 1 << 36),
    ],
)
def test_a_mapping_that_a_pvh_guest_cannot_have(pvh: Current, flags: int, gfn: int) -> None:
    pvh.domain.memory.write(ARGUMENT, map_op(flags, gfn << 12).pack(4))
    before = state(pvh.domain)
    assert raw_call(pvh, abi.GNTTABOP_map_grant_ref, ARGUMENT, 1) == 0
    op = pvh.read_struct(abi.gnttab_map_grant_ref, ARGUMENT)
    assert op.status == abi.GNTST_general_error
    pvh.domain.memory.write(ARGUMENT, map_op(flags, gfn << 12).pack(4))
    assert state(pvh.domain) == before


def test_what_is_not_mapped_there_is_not_unmapped(pvh: Current) -> None:
    handle = mapped(pvh, BY_ADDRESS, FAR << 12).handle
    for gfn in (FAR + 1, OTHER):
        op = abi.gnttab_unmap_grant_ref(gfn << 12, 0, handle, 99)
        assert status(pvh, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_general_error
    assert pvh.domain.p2m is not None
    assert (pvh.domain.p2m.get(OTHER), pvh.domain.p2m.get(FAR)) == (OTHER, PAGE)
