"""memory_op: reservations grow and shrink, pages are exchanged, and maps are told."""

from __future__ import annotations

import struct

import pytest

from fakes import FIRST_GUEST_FRAME, SHARED_INFO, make_current
from hypercalls.memory_op import PAGES_PER_CALL, ops
from xenemu.abi import memory as abi
from xenemu.abi.arch_x86.xen import HYPERVISOR_VIRT_START
from xenemu.abi.errno import (
    EACCES,
    EDOM,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv import shared_info
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.frame_table import DOMID_NONE, INVALID_M2P_ENTRY
from xenemu.hv.pagecheck import recount
from xenemu.hv.pagetype import PGT_l1_page_table
from xenemu.x86.paging import RW, Maddr, Mfn, P

L1, DATA, ARG, LIST = 16, 18, 20, 21  # frames
POINTER, EXTENTS = ARG << 12, LIST << 12
PAGES = 64
HEAP = range(FIRST_GUEST_FRAME + PAGES, FIRST_GUEST_FRAME + PAGES + 16)
UNREADABLE = 1 << 40


def make(width: int = 8) -> Current:
    """A domain that may have 8 pages more than it has, of the 16 in the heap."""
    current = make_current(width, PAGES + len(HEAP))
    frames = current.domain.frames
    for mfn in reversed(HEAP):
        frames.release(Mfn(mfn))
    frames.m2p_base = Maddr(8 << 12)
    current.domain.pages.max_pages = PAGES + 8
    return current


@pytest.fixture
def current() -> Current:
    return make()


def call(current: Current, command: int, argument: Struct | None = None) -> int | None:
    if argument is not None:
        current.write_struct(POINTER, argument)
    return ops(current, command, POINTER)


def refused(current: Current, errno: int, command: int, argument: Struct | None = None) -> None:
    with pytest.raises(XenError) as refusal:
        call(current, command, argument)
    assert refusal.value.errno == errno, refusal.value.reason


def extents(current: Current, *numbers: int, order: int = 0, **more: int) -> Struct:
    width = current.vcpu.width
    for index, number in enumerate(numbers):
        current.write_ulong(EXTENTS + index * width, number)
    reservation = abi.xen_memory_reservation(EXTENTS, len(numbers), order, 0, DOMID_SELF)
    for name, value in more.items():
        setattr(reservation, name, value)
    return reservation


def listed(current: Current, count: int, at: int = EXTENTS) -> list[int]:
    width = current.vcpu.width
    return [current.read_ulong(at + index * width) for index in range(count)]


def total(current: Current) -> int:
    return current.domain.pages.tot_pages


# Reservations.


@pytest.mark.parametrize("width", [8, 4])
def test_populated_pages_are_the_domains_zeroed_and_in_the_m2p(width: int) -> None:
    current = make(width)
    frames = current.domain.frames
    frames.memory.table(Mfn(HEAP[0]))[3] = 1
    assert call(current, abi.XENMEM_populate_physmap, extents(current, 100, 101)) == 2
    assert listed(current, 2) == [HEAP[0], HEAP[1]]
    assert frames.owner[HEAP[0]] == 1
    assert frames.get_m2p(HEAP[1]) == 101
    assert not any(frames.memory.table(Mfn(HEAP[0])))


def test_an_extent_of_an_order_is_contiguous(current: Current) -> None:
    assert call(current, abi.XENMEM_populate_physmap, extents(current, 100, order=2)) == 1
    (first,) = listed(current, 1)
    assert [current.domain.frames.get_m2p(first + page) for page in range(4)] == [
        100,
        101,
        102,
        103,
    ]
    assert (first % 4, total(current)) == (0, PAGES + 4)


def test_a_domain_gets_no_more_than_its_maximum(current: Current) -> None:
    assert call(current, abi.XENMEM_populate_physmap, extents(current, *range(12))) == 8
    assert total(current) == current.domain.pages.max_pages
    assert listed(current, 9)[8] == 8


def test_increase_lists_the_frames_without_pfns(current: Current) -> None:
    assert call(current, abi.XENMEM_increase_reservation, extents(current, 0, 0)) == 2
    assert listed(current, 2) == [HEAP[0], HEAP[1]]


def test_increase_needs_no_list(current: Current) -> None:
    op = extents(current, 0, 0, extent_start=0)
    assert call(current, abi.XENMEM_increase_reservation, op) == 2
    assert total(current) == PAGES + 2


def test_decreased_pages_are_nobodys(current: Current) -> None:
    frames = current.domain.frames
    frames.set_m2p(DATA, 77)
    assert call(current, abi.XENMEM_decrease_reservation, extents(current, DATA)) == 1
    assert (frames.owner[DATA], frames.get_m2p(DATA)) == (DOMID_NONE, INVALID_M2P_ENTRY)
    assert (list(frames.heap)[-1], total(current)) == (DATA, PAGES - 1)


def test_a_mapped_page_is_decreased_when_its_mapping_goes(current: Current) -> None:
    frames = current.domain.frames
    frames.memory.table(Mfn(L1))[0] = DATA << 12 | P | RW
    frames.pin(L1, 1, PGT_l1_page_table)
    for _ in range(2):
        assert call(current, abi.XENMEM_decrease_reservation, extents(current, DATA)) == 1
    assert frames.owner[DATA] == 1
    frames.mod_entry(L1 << 12, 0, 1)
    assert frames.owner[DATA] == DOMID_NONE
    assert recount(frames) == []


@pytest.mark.parametrize("mfn", [9, HEAP[0], 1 << 40])
def test_decreasing_stops_at_a_frame_that_is_not_the_domains(current: Current, mfn: int) -> None:
    op = extents(current, DATA, mfn, DATA + 1)
    assert call(current, abi.XENMEM_decrease_reservation, op) == 1
    assert current.domain.frames.owner[DATA + 1] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"domid": 0},
        {"domid": 9},
        {"extent_order": 10},
        {"mem_flags": 12},
        {"nr_extents": 1 << 26},
        {"nr_extents": 0},
        {"extent_start": UNREADABLE},
    ],
)
@pytest.mark.parametrize("command", [abi.XENMEM_populate_physmap, abi.XENMEM_decrease_reservation])
def test_a_reservation_that_cannot_be_gets_nothing(
    current: Current, command: int, wrong: dict[str, int]
) -> None:
    assert call(current, command, extents(current, DATA, **wrong)) == 0
    assert total(current) == PAGES


def test_no_domain_populates_itself_on_demand(current: Current) -> None:
    op = extents(current, 1, mem_flags=abi.XENMEMF_populate_on_demand)
    assert call(current, abi.XENMEM_populate_physmap, op) == 0


def test_address_bits_are_honoured(current: Current) -> None:
    current.domain.frames.add_to_heap([5])
    op = extents(current, 1, mem_flags=16)
    assert call(current, abi.XENMEM_populate_physmap, op) == 1
    assert listed(current, 1) == [5]


def test_a_continuation_begins_at_its_extent(current: Current) -> None:
    command = abi.XENMEM_populate_physmap | 2 << abi.MEMOP_EXTENT_SHIFT
    assert call(current, command, extents(current, 1, 2, 3)) == 3
    assert listed(current, 3) == [1, 2, HEAP[0]]


def test_a_long_reservation_is_continued() -> None:
    current = make_current(pages=PAGES_PER_CALL + 64)
    first = FIRST_GUEST_FRAME + 32
    op = extents(current, *range(first, first + PAGES_PER_CALL + 3))
    with pytest.raises(Continue) as again:
        call(current, abi.XENMEM_decrease_reservation, op)
    assert total(current) == 64
    command, pointer = again.value.new_args
    assert ops(current, command, pointer) == PAGES_PER_CALL + 3
    assert total(current) == 61


def test_what_cannot_be_read_is_no_reservation(current: Current) -> None:
    assert ops(current, abi.XENMEM_populate_physmap, UNREADABLE) == 0


# Exchange.


def exchange(
    current: Current,
    give: list[int],
    get: list[int],
    give_order: int = 0,
    get_order: int = 0,
    **more: int,
) -> abi.xen_memory_exchange:
    """Lists at EXTENTS and one page after."""
    width = current.vcpu.width
    halves = []
    for at, numbers, order in ((EXTENTS, give, give_order), (EXTENTS + 4096, get, get_order)):
        for index, number in enumerate(numbers):
            current.write_ulong(at + index * width, number)
        half = abi.xen_memory_reservation(at, len(numbers), order, 0, DOMID_SELF)
        for name, value in more.items():
            setattr(half, name, value)
        halves.append(half.pack(width))
    return abi.xen_memory_exchange(halves[0], halves[1], 0)


def exchanged(current: Current) -> int:
    return current.read_struct(abi.xen_memory_exchange, POINTER).nr_exchanged


@pytest.mark.parametrize("width", [8, 4])
def test_single_pages_are_exchanged_for_an_extent(width: int) -> None:
    current = make(width)
    give = list(range(40, 44))
    assert call(current, abi.XENMEM_exchange, exchange(current, give, [500], get_order=2)) == 0
    (first,) = listed(current, 1, EXTENTS + 4096)
    frames = current.domain.frames
    assert (first, frames.get_m2p(first + 3), frames.owner[40]) == (HEAP[0], 503, DOMID_NONE)
    assert (exchanged(current), total(current)) == (4, PAGES)


def test_an_extent_is_exchanged_for_single_pages_within_address_bits(current: Current) -> None:
    current.domain.frames.add_to_heap([5, 6])
    op = exchange(current, [40], [500, 501], give_order=1, mem_flags=16)
    assert call(current, abi.XENMEM_exchange, op) == 0
    assert listed(current, 2, EXTENTS + 4096) == [5, 6]
    assert exchanged(current) == 1


@pytest.mark.parametrize("mfn", [L1, SHARED_INFO, 9, 1 << 40])
def test_a_page_in_use_is_not_exchanged(current: Current, mfn: int) -> None:
    current.domain.frames.pin(L1, 1, PGT_l1_page_table)
    refused(current, EINVAL, abi.XENMEM_exchange, exchange(current, [40, mfn, 41], [1, 2, 3]))
    assert exchanged(current) == 1  # the chunk before it
    assert (current.domain.frames.owner[41], total(current)) == (1, PAGES)


def test_pages_whose_place_cannot_be_read_are_the_domains_all_the_same(current: Current) -> None:
    end = len(current.domain.memory.bytes)
    op = exchange(current, [40], [], give_order=1)
    op.out = abi.xen_memory_reservation(end - 8, 2, 0, 0, DOMID_SELF).pack(8)
    current.write_ulong(end - 8, 500)
    refused(current, EFAULT, abi.XENMEM_exchange, op)
    first = current.read_ulong(end - 8)
    assert (current.domain.frames.get_m2p(first), exchanged(current)) == (500, 0)
    assert total(current) == PAGES


def test_a_page_is_not_exchanged_twice(current: Current) -> None:
    op = exchange(current, [40, 40], [1], get_order=1)
    refused(current, EINVAL, abi.XENMEM_exchange, op)
    assert (current.domain.frames.owner[40], exchanged(current)) == (1, 0)


def test_without_memory_nothing_is_exchanged(current: Current) -> None:
    assert all(current.domain.frames.heap.take(mfn) for mfn in HEAP)
    refused(current, ENOMEM, abi.XENMEM_exchange, exchange(current, [40], [1]))
    assert (current.domain.frames.owner[40], exchanged(current)) == (1, 0)


@pytest.mark.parametrize(
    ("orders", "more", "errno"),
    [
        ((0, 1), {}, EINVAL),
        ((10, 10), {}, EPERM),
        ((0, 0), {"domid": 0}, EPERM),
        ((0, 0), {"domid": 9}, ESRCH),
        ((0, 0), {"nr_extents": 1 << 63}, EINVAL),
    ],
)
def test_halves_that_do_not_fit_are_refused(
    current: Current, orders: tuple[int, int], more: dict[str, int], errno: int
) -> None:
    op = exchange(current, [40], [1], *orders, **more)
    if "nr_extents" in more:
        op.nr_exchanged = (1 << 64) - 1
    refused(current, errno, abi.XENMEM_exchange, op)
    assert total(current) == PAGES


@pytest.mark.parametrize("half", ["in_", "out"])
def test_an_exchange_does_not_go_on_in_xens_addresses(current: Current, half: str) -> None:
    """XSA-212: where a list begins was checked, and not where it goes on."""
    op = exchange(current, [40, 41], [1, 2])
    reservation = abi.xen_memory_reservation.unpack(8, getattr(op, half))
    reservation.extent_start = HYPERVISOR_VIRT_START - 8
    setattr(op, half, reservation.pack(8))
    op.nr_exchanged = 1
    refused(current, EFAULT, abi.XENMEM_exchange, op)
    assert (total(current), exchanged(current)) == (PAGES, 1)


# What there is.


def test_the_reservations_are_told(current: Current) -> None:
    current.write_uint(POINTER, 2, DOMID_SELF)
    assert call(current, abi.XENMEM_current_reservation) == PAGES
    assert call(current, abi.XENMEM_maximum_reservation) == PAGES + 8
    assert call(current, abi.XENMEM_maximum_ram_page) == HEAP.stop


@pytest.mark.parametrize(("domid", "errno"), [(0, EPERM), (9, ESRCH)])
def test_those_of_other_domains_are_not(current: Current, domid: int, errno: int) -> None:
    current.write_uint(POINTER, 2, domid)
    refused(current, errno, abi.XENMEM_current_reservation)


def test_the_highest_pfn_is_what_the_guest_said(current: Current) -> None:
    domain = current.domain
    domain.memory.write_uint(shared_info.field(domain, "arch"), 8, 300)
    current.write_uint(POINTER, 2, DOMID_SELF)
    assert call(current, abi.XENMEM_maximum_gpfn) == 299


def test_without_a_memory_map_the_call_is_unknown(current: Current) -> None:
    refused(current, ENOSYS, abi.XENMEM_memory_map, abi.xen_memory_map(9, EXTENTS))


def test_the_memory_map_is_copied_as_far_as_there_is_room(current: Current) -> None:
    current.domain.e820 = [(0, 0x1000, 1), (0x1000, 0x1000, 2)]
    call(current, abi.XENMEM_memory_map, abi.xen_memory_map(1, EXTENTS))
    assert current.read_struct(abi.xen_memory_map, POINTER).nr_entries == 1
    assert current.read(EXTENTS, 40) == struct.pack("<QQI", 0, 0x1000, 1) + bytes(20)


def test_the_memory_map_is_counted_without_a_buffer(current: Current) -> None:
    current.domain.e820 = [(0, 0x1000, 1)]
    call(current, abi.XENMEM_memory_map, abi.xen_memory_map(0, 0))
    assert current.read_struct(abi.xen_memory_map, POINTER).nr_entries == 1


def test_a_domain_may_set_its_own_memory_map(current: Current) -> None:
    current.write(EXTENTS, struct.pack("<QQI", 0, 0x5000, 1))
    inner = abi.xen_memory_map(1, EXTENTS).pack(8)
    call(current, abi.XENMEM_set_memory_map, abi.xen_foreign_memory_map(DOMID_SELF, inner))
    assert current.domain.e820 == [(0, 0x5000, 1)]


@pytest.mark.parametrize(
    ("domid", "count", "buffer", "errno"),
    [(0, 1, EXTENTS, EPERM), (DOMID_SELF, 1025, EXTENTS, EINVAL), (1, 1, UNREADABLE, EFAULT)],
)
def test_a_bad_memory_map_is_not_set(
    current: Current, domid: int, count: int, buffer: int, errno: int
) -> None:
    inner = abi.xen_memory_map(count, buffer).pack(8)
    op = abi.xen_foreign_memory_map(domid, inner)
    refused(current, errno, abi.XENMEM_set_memory_map, op)
    assert current.domain.e820 == []


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (8, (0xFFFF_8000_0000_0000, 0xFFFF_8040_0000_0000, (1 << 35) - 1)),
        (4, (0xF580_0000, 0xFFE0_0000, 0xA60_0000 // 4 - 1)),
    ],
)
def test_where_the_m2p_is(width: int, expected: tuple[int, int, int]) -> None:
    current = make(width)
    call(current, abi.XENMEM_machphys_mapping)
    assert current.read_struct(abi.xen_machphys_mapping, POINTER) == abi.xen_machphys_mapping(
        *expected
    )


def test_the_m2ps_frames_are_listed(current: Current) -> None:
    call(current, abi.XENMEM_machphys_mfn_list, abi.xen_machphys_mfn_list(4, EXTENTS, 0))
    assert current.read_struct(abi.xen_machphys_mfn_list, POINTER).nr_extents == 1
    assert listed(current, 2) == [8, 0]


# Refusals.

SELF = DOMID_SELF
REFUSALS: dict[str, tuple[int, int, Struct | None]] = {
    "machine_memory_map": (EPERM, abi.XENMEM_machine_memory_map, None),
    "physmap of a PV guest": (
        EACCES,
        abi.XENMEM_add_to_physmap,
        abi.xen_add_to_physmap(SELF, 0, 0, 0, 0),
    ),
    "physmap, foreign": (
        ENOSYS,
        abi.XENMEM_add_to_physmap,
        abi.xen_add_to_physmap(SELF, 0, abi.XENMAPSPACE_gmfn_foreign, 0, 0),
    ),
    "physmap, start too large": (
        EDOM,
        abi.XENMEM_add_to_physmap | 0x10000 << abi.MEMOP_EXTENT_SHIFT,
        abi.xen_add_to_physmap(SELF, 0, 0, 0, 0),
    ),
    "physmap batch": (
        EACCES,
        abi.XENMEM_add_to_physmap_batch,
        abi.xen_add_to_physmap_batch(SELF, 0, 0, 0, 0, 0, 0),
    ),
    "physmap batch, range": (
        EOPNOTSUPP,
        abi.XENMEM_add_to_physmap_batch,
        abi.xen_add_to_physmap_batch(SELF, abi.XENMAPSPACE_gmfn_range, 0, 0, 0, 0, 0),
    ),
    "removing another's frame": (
        ENOENT,
        abi.XENMEM_remove_from_physmap,
        abi.xen_remove_from_physmap(SELF, 9),
    ),
    "removing from dom0": (
        EPERM,
        abi.XENMEM_remove_from_physmap,
        abi.xen_remove_from_physmap(0, 9),
    ),
    "setting a PoD target": (
        EPERM,
        abi.XENMEM_set_pod_target,
        abi.xen_pod_target(0, 0, 0, 0, SELF),
    ),
    "a PoD target of nobody": (
        ESRCH,
        abi.XENMEM_get_pod_target,
        abi.xen_pod_target(0, 0, 0, 0, 9),
    ),
    "claiming": (
        EPERM,
        abi.XENMEM_claim_pages,
        abi.xen_memory_reservation(0, 1, 0, 0, 1),
    ),
    "claiming for DOMID_SELF": (
        EINVAL,
        abi.XENMEM_claim_pages,
        abi.xen_memory_reservation(0, 1, 0, 0, SELF),
    ),
    "vnuma": (
        EOPNOTSUPP,
        abi.XENMEM_get_vnumainfo,
        abi.xen_vnuma_topology_info(SELF, 0, 0, 0, 0, 0, 0, 0),
    ),
    "its own resource": (
        EPERM,
        abi.XENMEM_acquire_resource,
        abi.xen_mem_acquire_resource(1, 0, 0, 0, 0, 0, 0),
    ),
    "dom0's resource": (
        EPERM,
        abi.XENMEM_acquire_resource,
        abi.xen_mem_acquire_resource(0, 0, 0, 0, 0, 0, 0),
    ),
    "nobody's resource": (
        ESRCH,
        abi.XENMEM_acquire_resource,
        abi.xen_mem_acquire_resource(9, 0, 0, 0, 0, 0, 0),
    ),
    "its own access rights": (
        EPERM,
        abi.XENMEM_access_op,
        abi.xen_mem_access_op(0, 0, 1, 0, 0, 0, 0),
    ),
    "paging": (ENOSYS, abi.XENMEM_paging_op, None),
    "sharing": (ENOSYS, abi.XENMEM_sharing_op, None),
    "unknown": (ENOSYS, 8, None),
    "exchange from an extent": (EINVAL, abi.XENMEM_exchange | 1 << 6, None),
    "memory map from an extent": (ENOSYS, abi.XENMEM_memory_map | 1 << 6, None),
}


@pytest.mark.parametrize(("errno", "command", "argument"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(current: Current, errno: int, command: int, argument: Struct | None) -> None:
    refused(current, errno, command, argument)
    assert recount(current.domain.frames) == []


def test_removing_an_own_frame_from_the_physmap_does_nothing(current: Current) -> None:
    call(current, abi.XENMEM_remove_from_physmap, abi.xen_remove_from_physmap(SELF, DATA))
    assert current.domain.frames.owner[DATA] == 1


def test_no_memory_is_reserved_for_devices(current: Current) -> None:
    op = abi.xen_reserved_device_memory_map(0, 5, EXTENTS, 0)
    call(current, abi.XENMEM_reserved_device_memory_map, op)
    assert current.read_struct(abi.xen_reserved_device_memory_map, POINTER).nr_entries == 0
