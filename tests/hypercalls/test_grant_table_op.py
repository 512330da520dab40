"""hypercalls/grant_table_op.py"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fakes import DOMID, READ_ONLY
from grantfakes import (
    ARGUMENT,
    DOM0,
    PAGE,
    REF,
    STRANGER,
    call,
    granting_current,
    raw_call,
    state,
    status,
)
from hypercalls.grant_table_op import BATCH, grant_table_op
from xenemu.abi import grant_table as abi
from xenemu.abi.errno import EFAULT, EILSEQ, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue, HypercallTable

LIST = 0x21000
XENS = 0xFFFF800000000000  # in the range of Xen's, in either width


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    return granting_current(request.param)


def refused(current: Current, errno: int, command: int, pointer: int, count: int) -> None:
    before = state(current.domain)
    with pytest.raises(XenError) as error:
        raw_call(current, command, pointer, count)
    assert error.value.errno == errno
    assert state(current.domain) == before


# The table.


def test_the_frames_of_the_table_are_listed(current: Current) -> None:
    op = abi.gnttab_setup_table(DOMID_SELF, 3, 99, LIST)
    assert status(current, abi.GNTTABOP_setup_table, op) == abi.GNTST_okay
    width = current.vcpu.width
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


def version(current: Current) -> int:
    op = call(current, abi.GNTTABOP_get_version, abi.gnttab_get_version(DOMID_SELF, 0, 99))[0]
    assert isinstance(op, abi.gnttab_get_version)
    return op.version


def test_the_version_is_1_until_the_guest_sets_it(current: Current) -> None:
    assert version(current) == 1
    assert call(current, abi.GNTTABOP_set_version, abi.gnttab_set_version(2)) == [
        abi.gnttab_set_version(2)
    ]
    assert version(current) == 2


@pytest.mark.parametrize("wanted", [3, 0])
def test_without_another_version_the_guest_is_told_its_own(current: Current, wanted: int) -> None:
    current.write_struct(ARGUMENT, abi.gnttab_set_version(wanted))
    with pytest.raises(XenError) as error:
        raw_call(current, abi.GNTTABOP_set_version, ARGUMENT, 1)
    assert error.value.errno == EINVAL
    assert (current.read_uint(ARGUMENT, 4), version(current)) == (1, 1)


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


def test_status_frames_are_listed_in_64_bits(current: Current) -> None:
    call(current, abi.GNTTABOP_set_version, abi.gnttab_set_version(2))
    op = abi.gnttab_get_status_frames(1, DOMID_SELF, 99, LIST)
    assert status(current, abi.GNTTABOP_get_status_frames, op) == abi.GNTST_okay
    assert current.read_uint(LIST, 8) == current.domain.grants.status_frames[0]


def test_a_list_goes_on_behind_a_fault(current: Current) -> None:
    """The second item lies across a page that cannot be written."""
    width = current.vcpu.width
    READ_ONLY.add(0x22000)
    try:
        op = abi.gnttab_setup_table(DOMID_SELF, 3, 99, 0x22000 + 4096 - 2 * width)
        assert status(current, abi.GNTTABOP_setup_table, op) == abi.GNTST_bad_virt_addr
    finally:
        READ_ONLY.discard(0x22000)
    assert current.read_ulong(0x23000) == current.domain.grants.frames[2]


def test_entries_are_swapped(current: Current) -> None:
    op = abi.gnttab_swap_grant_ref(REF, 10, 99)
    assert status(current, abi.GNTTABOP_swap_grant_ref, op) == abi.GNTST_okay
    assert grant_table.read_entry(current.domain, 10).frame == PAGE


# Arrays.


def swaps(count: int) -> Sequence[Struct]:
    return [abi.gnttab_swap_grant_ref(REF, REF, 99)] * count


def test_each_element_has_its_own_status(current: Current) -> None:
    bad = abi.gnttab_swap_grant_ref(512, 0, 99)
    results = call(current, abi.GNTTABOP_swap_grant_ref, *swaps(1), bad, *swaps(1))
    assert [op.status for op in results] == [0, abi.GNTST_bad_gntref, 0]


def test_an_empty_array_is_nothing(current: Current) -> None:
    assert raw_call(current, abi.GNTTABOP_swap_grant_ref, 0, 0) == 0


def test_a_refusal_is_explained_in_the_log(current: Current) -> None:
    """The call succeeds: what each of its elements was refused for is in its record."""
    bad = abi.gnttab_swap_grant_ref(512, 0, 99)
    for index, op in enumerate([bad, *swaps(1)]):
        current.write_struct(ARGUMENT + 12 * index, op)
    registers = [abi.GNTTABOP_swap_grant_ref, ARGUMENT, 2, 0, 0]
    assert HypercallTable([grant_table_op]).call(current, grant_table_op.number, registers) == 0
    reason = current.domain.calls[-1].reason
    assert reason == "swap_grant_ref: GNTST_bad_gntref: there is no grant 512: the table has 512"


def test_only_the_status_is_written_behind_an_operation(current: Current) -> None:
    """The rest may be what the copy itself has put there."""
    width = current.vcpu.width
    op = copy_op(width, source=PAGE, dest=ARGUMENT >> 12, length=8)
    current.write(PAGE << 12, b"newbytes")
    assert status(current, abi.GNTTABOP_copy, op) == abi.GNTST_okay
    assert current.read(ARGUMENT, 8) == b"newbytes"


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
        (abi.GNTTABOP_transfer, 1 << 30, 1, EFAULT),
        (abi.GNTTABOP_swap_grant_ref, XENS, 0, EFAULT),
        (abi.GNTTABOP_dump_table, ARGUMENT, 1, ENOSYS),
        (13, ARGUMENT, 1, ENOSYS),
    ],
)
def test_a_call_that_is_refused(
    current: Current, command: int, pointer: int, count: int, errno: int
) -> None:
    refused(current, errno, command, pointer, count)


# Copying.


def copy_op(
    width: int, source: int, dest: int, length: int, flags: int = 0, dest_offset: int = 0
) -> abi.gnttab_copy:
    return abi.gnttab_copy(
        source_u=source,
        source_domid=DOMID_SELF,
        source_offset=0,
        dest_u=dest,
        dest_domid=DOMID_SELF,
        dest_offset=dest_offset,
        dest_pad=bytes(4 if width == 8 else 0),
        len=length,
        flags=flags,
        status=99,
    )


def test_a_copy_between_a_frame_and_a_grant(current: Current) -> None:
    current.write(0x22000, b"hello")
    op = copy_op(current.vcpu.width, 0x22, REF, 5, abi.GNTCOPY_dest_gref, 7)
    assert status(current, abi.GNTTABOP_copy, op) == abi.GNTST_okay
    assert current.read((PAGE << 12) + 7, 5) == b"hello"


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


def test_a_cache_flush_may_go_on_but_not_with_nothing(current: Current) -> None:
    command = abi.GNTTABOP_cache_flush | 1 << 12
    clean = abi.gnttab_cache_flush(PAGE << 12, 0, 64, abi.GNTTAB_CACHE_CLEAN)
    current.write_struct(ARGUMENT, clean)
    assert raw_call(current, command, ARGUMENT, 1) == 0
    current.write_struct(ARGUMENT, abi.gnttab_cache_flush(PAGE << 12, 0, 0, 0))
    refused(current, EILSEQ, command, ARGUMENT, 1)


def test_only_the_32_bit_interface_sets_up_nothing(current: Current) -> None:
    if current.vcpu.width == 4:
        assert raw_call(current, abi.GNTTABOP_setup_table, 0, 0) == 0
    else:
        refused(current, EINVAL, abi.GNTTABOP_setup_table, 0, 0)


def test_a_cache_flush_of_the_guests_own_frame_is_accepted(current: Current) -> None:
    both = abi.GNTTAB_CACHE_CLEAN | abi.GNTTAB_CACHE_INVAL
    call(current, abi.GNTTABOP_cache_flush, abi.gnttab_cache_flush(PAGE << 12, 0, 64, both))
