"""hypercalls/grant_table_op.py and hypercalls/grant_map.py"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fakes import FIRST_GUEST_FRAME, FakeCpu, make_current
from hypercalls.grant_table_op import BATCH, grant_table_op
from xenemu.abi import grant_table as abi
from xenemu.abi.errno import EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv.dispatch import Continue
from xenemu.hv.domain import DOMID, Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.x86.paging import ADDR, RW, Maddr, Mfn, P

HEAP = range(6, 16)  # frames below the guest's
ARGUMENT = 0x20000
LIST = 0x21000
PAGE, TABLE = Mfn(FIRST_GUEST_FRAME + 20), Mfn(FIRST_GUEST_FRAME + 21)
DOM0 = 0
STRANGER = 7
REF = 8
HOST = abi.GNTMAP_host_map | abi.GNTMAP_contains_pte
ENTRY = TABLE << 12 | 0x18


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    """A domain whose grant 8 gives itself a page, with an empty L1 table."""
    current = make_current(request.param)
    domain = current.domain
    domain.frames.add_to_heap(HEAP)
    domain.grants.grow(domain, 1)
    entry = abi.grant_entry_v1(abi.GTF_permit_access, DOMID, PAGE)
    domain.memory.write(Maddr((domain.grants.frames[0] << 12) + 8 * REF), entry.pack(8))
    domain.frames.get_page_and_type(TABLE, DOMID, PGT_l1_page_table)
    return current


def raw_call(current: Current, command: int, pointer: int, count: int) -> int:
    assert grant_table_op.handler is not None
    return grant_table_op.handler(current, command, pointer, count) or 0


def call(current: Current, command: int, *ops: Struct) -> list[Struct]:
    """Call with an array, and read it back."""
    kind, size = type(ops[0]), ops[0].sizeof(current.domain.width)
    places = [ARGUMENT + index * size for index in range(len(ops))]
    for place, op in zip(places, ops, strict=True):
        current.write_struct(place, op)
    assert raw_call(current, command, ARGUMENT, len(ops)) == 0
    return [current.read_struct(kind, place) for place in places]


def status(current: Current, command: int, op: Struct) -> int:
    return call(current, command, op)[0].status


def refused(current: Current, errno: int, command: int, pointer: int, count: int) -> None:
    frames, active = list(current.domain.grants.frames), dict(current.domain.grants.active)
    with pytest.raises(XenError) as error:
        raw_call(current, command, pointer, count)
    assert error.value.errno == errno
    assert (current.domain.grants.frames, current.domain.grants.active) == (frames, active)


def counts(current: Current) -> tuple[list[int], list[int]]:
    return list(current.domain.frames.count), list(current.domain.frames.type_count)


# The table.


def test_the_frames_of_the_table_are_listed(current: Current) -> None:
    op = abi.gnttab_setup_table(DOMID_SELF, 3, 99, LIST)
    assert status(current, abi.GNTTABOP_setup_table, op) == abi.GNTST_okay
    width = current.domain.width
    listed = [current.read_ulong(LIST + n * width) for n in range(3)]
    assert listed == current.domain.grants.frames


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (abi.gnttab_setup_table(STRANGER, 1, 0, LIST), abi.GNTST_bad_domain),
        (abi.gnttab_setup_table(DOM0, 1, 0, LIST), abi.GNTST_permission_denied),
        (abi.gnttab_setup_table(DOMID, 65, 0, LIST), abi.GNTST_general_error),
        (abi.gnttab_setup_table(DOMID, 1, 0, 1 << 30), abi.GNTST_bad_virt_addr),
    ],
)
def test_a_table_that_cannot_be_set_up(
    current: Current, op: abi.gnttab_setup_table, expected: int
) -> None:
    assert status(current, abi.GNTTABOP_setup_table, op) == expected
    assert len(current.domain.grants.frames) == 1


def test_the_size_of_the_table_is_told(current: Current) -> None:
    op = call(current, abi.GNTTABOP_query_size, abi.gnttab_query_size(DOMID_SELF, 0, 0, 99))[0]
    assert op == abi.gnttab_query_size(DOMID_SELF, 1, 64, abi.GNTST_okay)


def test_the_version_is_1(current: Current) -> None:
    op = call(current, abi.GNTTABOP_get_version, abi.gnttab_get_version(DOMID_SELF, 0, 99))[0]
    assert op == abi.gnttab_get_version(DOMID_SELF, 0, 1)
    call(current, abi.GNTTABOP_set_version, abi.gnttab_set_version(1))


@pytest.mark.parametrize(("version", "errno"), [(2, ENOSYS), (3, EINVAL), (0, EINVAL)])
def test_no_other_version_can_be_had(current: Current, version: int, errno: int) -> None:
    current.write_struct(ARGUMENT, abi.gnttab_set_version(version))
    refused(current, errno, abi.GNTTABOP_set_version, ARGUMENT, 1)
    assert current.read_uint(ARGUMENT, 4) == 1


@pytest.mark.parametrize(("domid", "errno"), [(DOM0, EPERM), (STRANGER, ESRCH)])
def test_only_its_own_version_is_a_domains_business(
    current: Current, domid: int, errno: int
) -> None:
    current.write_struct(ARGUMENT, abi.gnttab_get_version(domid, 0, 99))
    refused(current, errno, abi.GNTTABOP_get_version, ARGUMENT, 1)


@pytest.mark.parametrize(("nr", "expected"), [(0, abi.GNTST_okay), (1, abi.GNTST_general_error)])
def test_version_1_has_no_status_frames(current: Current, nr: int, expected: int) -> None:
    op = abi.gnttab_get_status_frames(nr, DOMID_SELF, 99, LIST)
    assert status(current, abi.GNTTABOP_get_status_frames, op) == expected


def test_entries_are_swapped(current: Current) -> None:
    op = abi.gnttab_swap_grant_ref(REF, 9, 99)
    assert status(current, abi.GNTTABOP_swap_grant_ref, op) == abi.GNTST_okay
    assert current.domain.grants.entry(current.domain, 9).frame == PAGE


# Arrays.


def swaps(count: int) -> Sequence[Struct]:
    return [abi.gnttab_swap_grant_ref(REF, REF, 99)] * count


def test_each_element_has_its_own_status(current: Current) -> None:
    bad = abi.gnttab_swap_grant_ref(512, 0, 99)
    results = call(current, abi.GNTTABOP_swap_grant_ref, *swaps(1), bad, *swaps(1))
    assert [op.status for op in results] == [0, abi.GNTST_bad_gntref, 0]


def test_an_empty_array_is_nothing(current: Current) -> None:
    assert raw_call(current, abi.GNTTABOP_swap_grant_ref, 0, 0) == 0


def test_a_long_array_is_done_in_pieces(current: Current) -> None:
    call(current, abi.GNTTABOP_swap_grant_ref, *swaps(BATCH))
    with pytest.raises(Continue) as again:
        raw_call(current, abi.GNTTABOP_swap_grant_ref, ARGUMENT, BATCH + 3)
    expected = (abi.GNTTABOP_swap_grant_ref, ARGUMENT + 12 * BATCH, 3)
    assert again.value.new_args == expected


@pytest.mark.parametrize(
    ("command", "pointer", "count", "errno"),
    [
        (abi.GNTTABOP_copy, ARGUMENT, 1 << 31, EINVAL),
        (abi.GNTTABOP_copy | 1 << 12, ARGUMENT, 1, EINVAL),
        (abi.GNTTABOP_setup_table, ARGUMENT, 2, EINVAL),
        (abi.GNTTABOP_query_size, ARGUMENT, 0, EINVAL),
        (abi.GNTTABOP_copy, 1 << 30, 1, EFAULT),
        (abi.GNTTABOP_transfer, ARGUMENT, 1, EOPNOTSUPP),
        (abi.GNTTABOP_dump_table, ARGUMENT, 1, ENOSYS),
        (13, ARGUMENT, 1, ENOSYS),
    ],
)
def test_a_call_that_is_refused(
    current: Current, command: int, pointer: int, count: int, errno: int
) -> None:
    refused(current, errno, command, pointer, count)


# Copying.


def test_a_copy_between_a_frame_and_a_grant(current: Current) -> None:
    current.write(0x22000, b"hello")
    op = abi.gnttab_copy(
        source_u=0x22,
        source_domid=DOMID_SELF,
        source_offset=0,
        dest_u=REF,
        dest_domid=DOMID,
        dest_offset=7,
        dest_pad=bytes(4 if current.domain.width == 8 else 0),
        len=5,
        flags=abi.GNTCOPY_dest_gref,
        status=99,
    )
    assert status(current, abi.GNTTABOP_copy, op) == abi.GNTST_okay
    assert current.read((PAGE << 12) + 7, 5) == b"hello"


# Mapping.


def map_op(flags: int, host_addr: int = ENTRY, dom: int = DOMID) -> abi.gnttab_map_grant_ref:
    return abi.gnttab_map_grant_ref(host_addr, flags, REF, dom, 99, 99, 99)


def mapped(current: Current, flags: int) -> abi.gnttab_map_grant_ref:
    op = call(current, abi.GNTTABOP_map_grant_ref, map_op(flags))[0]
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
    assert not current.domain.grants.mappings and not current.domain.grants.active


def test_each_kind_of_mapping_is_undone_by_its_address(current: Current) -> None:
    handle = mapped(current, HOST | abi.GNTMAP_device_map).handle
    op = abi.gnttab_unmap_grant_ref(0, PAGE << 12, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_okay
    assert current.domain.grants.mapping(handle).flags & abi.GNTMAP_host_map
    assert entry(current) & P


def test_an_entry_that_the_guest_changed_is_not_unmapped(current: Current) -> None:
    handle = mapped(current, HOST).handle
    current.domain.frames.mod_entry(ENTRY, 0, DOMID)
    before = counts(current)
    op = abi.gnttab_unmap_grant_ref(ENTRY, 0, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_grant_ref, op) == abi.GNTST_general_error
    assert counts(current) == before
    assert current.domain.grants.mapping(handle)


@pytest.mark.parametrize("host_addr", [ENTRY | 4, PAGE << 12, 5 << 12, 1 << 60])
def test_an_entry_must_be_in_an_l1_table(current: Current, host_addr: int) -> None:
    before = counts(current)
    op = map_op(HOST, host_addr)
    assert status(current, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_general_error
    assert counts(current) == before
    assert not current.domain.grants.mappings and not current.domain.grants.active


def test_only_existing_domains_have_granted_something(current: Current) -> None:
    op = map_op(HOST, dom=STRANGER)
    assert status(current, abi.GNTTABOP_map_grant_ref, op) == abi.GNTST_bad_domain
    assert entry(current) == 0


def test_the_log_has_why_an_operation_failed(current: Current) -> None:
    status(current, abi.GNTTABOP_map_grant_ref, map_op(HOST, dom=STRANGER))
    (sentence,) = current.domain.refusals
    assert sentence == f"grant_table_op: GNTST_bad_domain: there is no domain {STRANGER}"


def test_a_mapping_named_by_its_entry_cannot_be_replaced(current: Current) -> None:
    handle = mapped(current, HOST).handle
    op = abi.gnttab_unmap_and_replace(ENTRY, ENTRY + 8, handle, 99)
    assert status(current, abi.GNTTABOP_unmap_and_replace, op) == abi.GNTST_general_error
    assert entry(current) & P


# The cache.


@pytest.mark.parametrize(
    ("maddr", "offset", "length", "op", "errno"),
    [
        (PAGE << 12, 4000, 97, abi.GNTTAB_CACHE_CLEAN, EINVAL),
        (PAGE << 12, 4096, 0, abi.GNTTAB_CACHE_CLEAN, EINVAL),
        (PAGE << 12, 0, 8, 1 << 31, EINVAL),
        (1 << 50, 0, 8, abi.GNTTAB_CACHE_CLEAN, EINVAL),
        (0, 0, 8, abi.GNTTAB_CACHE_CLEAN, EPERM),
        (PAGE << 12, 0, 8, abi.GNTTAB_CACHE_INVAL, EOPNOTSUPP),
    ],
)
def test_a_cache_flush_that_is_refused(
    current: Current, maddr: int, offset: int, length: int, op: int, errno: int
) -> None:
    current.write_struct(ARGUMENT, abi.gnttab_cache_flush(maddr, offset, length, op))
    refused(current, errno, abi.GNTTABOP_cache_flush, ARGUMENT, 1)


def test_a_cache_flush_of_the_guests_own_frame_is_accepted(current: Current) -> None:
    both = abi.GNTTAB_CACHE_CLEAN | abi.GNTTAB_CACHE_INVAL
    call(current, abi.GNTTABOP_cache_flush, abi.gnttab_cache_flush(PAGE << 12, 0, 64, both))
