"""mmuext_op: pins, roots, flushes, and pages cleared and copied."""

from __future__ import annotations

from typing import Any

import pytest

from fakes import FakeCpu, make_current
from hypercalls.mmuext_op import BATCH, do_mmuext_op
from xenemu.abi import xen as abi
from xenemu.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from xenemu.abi.xen import DOMID_IO, DOMID_SELF, MMU_UPDATE_PREEMPTED, mmuext_op
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.pagecheck import recount
from xenemu.hv.pagetype import PGT_l1_page_table, PGT_l4_page_table
from xenemu.pv.state import PvVcpu, pv
from xenemu.x86.paging import Mfn

ROOT, ROOT2, TABLE, DATA, OPS, DONE, MASK = 16, 17, 18, 19, 20, 30, 31  # frames
UOPS, PDONE = OPS << 12, DONE << 12
NOBODYS = 9


def make(width: int = 8, vcpus: int = 1) -> Current:
    """A vcpu that runs on the root ROOT, which is held by it alone."""
    current = make_current(width, vcpus=vcpus)
    current.domain.frames.get_page_and_type(ROOT, 1, PGT_l4_page_table)
    current.vcpu.arch = PvVcpu(kernel_root=Mfn(ROOT))
    current.cpu.cr3 = ROOT << 12
    return current


@pytest.fixture
def current() -> Current:
    return make()


def do(current: Current, *ops: tuple[int, int, int], foreigndom: int = DOMID_SELF) -> int:
    size = mmuext_op.sizeof(current.vcpu.width)
    for index, op in enumerate(ops):
        current.write_struct(UOPS + index * size, mmuext_op(*op))
    return do_mmuext_op(current, UOPS, len(ops), PDONE, foreigndom)


def refused(current: Current, errno: int, *ops: tuple[int, int, int], **more: Any) -> None:
    with pytest.raises(XenError) as refusal:
        do(current, *ops, **more)
    assert refusal.value.errno == errno, refusal.value.reason


def flushed(current: Current) -> tuple[int, list[int]]:
    assert isinstance(current.cpu, FakeCpu)
    return current.cpu.flushes, current.cpu.page_flushes


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_table_is_pinned_and_unpinned(current: Current, level: int) -> None:
    assert do(current, (abi.MMUEXT_PIN_L1_TABLE + level - 1, TABLE, 0)) == 0
    assert current.domain.frames.type[TABLE] == level
    do(current, (abi.MMUEXT_UNPIN_TABLE, TABLE, 0))
    assert (current.domain.frames.type_count[TABLE], current.domain.frames.count[TABLE]) == (0, 1)


@pytest.mark.parametrize("mfn", [NOBODYS, 1 << 50])
def test_what_is_not_the_domains_is_not_pinned(current: Current, mfn: int) -> None:
    refused(current, EINVAL, (abi.MMUEXT_PIN_L1_TABLE, mfn, 0))
    refused(current, EINVAL, (abi.MMUEXT_UNPIN_TABLE, mfn, 0))


def test_the_kernels_root_is_switched(current: Current) -> None:
    do(current, (abi.MMUEXT_NEW_BASEPTR, ROOT2, 0))
    assert (pv(current).kernel_root, current.cpu.cr3) == (ROOT2, ROOT2 << 12)
    assert recount(current.domain.frames, [(ROOT2, PGT_l4_page_table)]) == []


def test_a_bad_root_leaves_the_old_one(current: Current) -> None:
    current.domain.frames.pin(TABLE, 1, PGT_l1_page_table)
    refused(current, EINVAL, (abi.MMUEXT_NEW_BASEPTR, TABLE, 0))
    assert (pv(current).kernel_root, current.cpu.cr3) == (ROOT, ROOT << 12)
    assert recount(current.domain.frames, [(ROOT, PGT_l4_page_table)]) == []


def test_the_users_root_is_set_and_taken_away(current: Current) -> None:
    do(current, (abi.MMUEXT_NEW_USER_BASEPTR, ROOT2, 0))
    assert (pv(current).user_root, current.domain.frames.type_count[ROOT2]) == (ROOT2, 1)
    do(current, (abi.MMUEXT_NEW_USER_BASEPTR, 0, 0))
    assert (pv(current).user_root, current.domain.frames.type_count[ROOT2]) == (0, 0)


def test_a_32_bit_guest_has_no_user_root() -> None:
    refused(make(width=4), EINVAL, (abi.MMUEXT_NEW_USER_BASEPTR, ROOT2, 0))


def test_local_and_global_flushes(current: Current) -> None:
    do(current, (abi.MMUEXT_TLB_FLUSH_LOCAL, 0, 0), (abi.MMUEXT_TLB_FLUSH_ALL, 0, 0))
    do(current, (abi.MMUEXT_INVLPG_LOCAL, 0x5000, 0), (abi.MMUEXT_INVLPG_ALL, 0x6000, 0))
    assert flushed(current) == (2, [0x5000, 0x6000])


def test_no_page_is_flushed_outside_the_guests_addresses(current: Current) -> None:
    do(current, (abi.MMUEXT_INVLPG_LOCAL, 1 << 50, 0), (abi.MMUEXT_INVLPG_ALL, 1 << 50, 0))
    assert flushed(current) == (0, [])


def test_flushes_of_some_vcpus() -> None:
    current = make(vcpus=2)
    flush = (abi.MMUEXT_TLB_FLUSH_MULTI, 0, MASK << 12)
    do(current, flush)
    current.write_ulong(MASK << 12, 0b100)  # no such vcpu
    do(current, flush)
    assert flushed(current) == (0, [])
    current.write_ulong(MASK << 12, 0b10)
    do(current, flush, (abi.MMUEXT_INVLPG_MULTI, 0x5000, MASK << 12))
    assert flushed(current) == (1, [0x5000])


def test_a_mask_that_cannot_be_read_is_invalid(current: Current) -> None:
    refused(current, EINVAL, (abi.MMUEXT_TLB_FLUSH_MULTI, 0, 1 << 40))
    assert flushed(current) == (0, [])


def test_a_page_is_cleared(current: Current) -> None:
    current.domain.memory.table(Mfn(DATA))[7] = 1
    do(current, (abi.MMUEXT_CLEAR_PAGE, DATA, 0))
    assert not any(current.domain.memory.table(Mfn(DATA)))
    assert current.domain.frames.count[DATA] == 1


def test_a_page_is_copied_from_any_own_frame(current: Current) -> None:
    current.domain.memory.table(Mfn(ROOT))[300] = 1 << 9
    do(current, (abi.MMUEXT_COPY_PAGE, DATA, ROOT))
    assert current.domain.memory.table(Mfn(DATA))[300] == 1 << 9
    assert recount(current.domain.frames, [(ROOT, PGT_l4_page_table)]) == []


@pytest.mark.parametrize(
    "op",
    [
        (abi.MMUEXT_CLEAR_PAGE, ROOT, 0),
        (abi.MMUEXT_CLEAR_PAGE, NOBODYS, 0),
        (abi.MMUEXT_COPY_PAGE, ROOT, DATA),
        (abi.MMUEXT_COPY_PAGE, DATA, NOBODYS),
    ],
)
def test_tables_and_foreign_frames_are_neither_cleared_nor_copied(
    current: Current, op: tuple[int, int, int]
) -> None:
    current.domain.memory.table(Mfn(ROOT))[300] = current.domain.memory.table(Mfn(DATA))[7] = 2
    before = bytes(current.domain.memory.bytes[: OPS << 12])
    refused(current, EINVAL, op)
    assert bytes(current.domain.memory.bytes[: OPS << 12]) == before
    assert recount(current.domain.frames, [(ROOT, PGT_l4_page_table)]) == []


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (abi.MMUEXT_FLUSH_CACHE, EACCES),
        (abi.MMUEXT_FLUSH_CACHE_GLOBAL, EINVAL),
        (abi.MMUEXT_MARK_SUPER, EOPNOTSUPP),
        (abi.MMUEXT_UNMARK_SUPER, EOPNOTSUPP),
        (14, ENOSYS),
        (1000, ENOSYS),
    ],
)
def test_what_a_domu_is_refused(current: Current, command: int, errno: int) -> None:
    refused(current, errno, (command, 0, 0))


@pytest.mark.parametrize(
    ("foreigndom", "errno"), [(0, EPERM), (DOMID_IO, EPERM), (1, ESRCH), (5, ESRCH)]
)
def test_only_its_own_tables_are_a_domus_business(
    current: Current, foreigndom: int, errno: int
) -> None:
    refused(current, errno, (abi.MMUEXT_PIN_L1_TABLE, TABLE, 0), foreigndom=foreigndom)
    assert current.domain.frames.type_count[TABLE] == 0


def test_the_operations_done_before_a_refusal_are_counted(current: Current) -> None:
    good, bad = (abi.MMUEXT_TLB_FLUSH_LOCAL, 0, 0), (14, 0, 0)
    refused(current, ENOSYS, good, good, bad, good)
    assert (current.read_uint(PDONE, 4), flushed(current)[0]) == (2, 2)


def test_an_operation_that_cannot_be_read_faults(current: Current) -> None:
    with pytest.raises(XenError) as refusal:
        do_mmuext_op(current, 1 << 40, 1, PDONE, DOMID_SELF)
    assert refusal.value.errno == EFAULT


def test_a_long_batch_is_preempted_and_the_counts_add_up(current: Current) -> None:
    with pytest.raises(Continue) as again:
        do(current, *[(abi.MMUEXT_TLB_FLUSH_LOCAL, 0, 0)] * (BATCH + 3))
    uops, count, pdone, foreigndom = again.value.new_args
    assert (uops, count) == (UOPS + BATCH * 24, 3 | MMU_UPDATE_PREEMPTED)
    assert do_mmuext_op(current, uops, count, pdone, foreigndom) == 0
    assert current.read_uint(PDONE, 4) == BATCH + 3


def test_a_32_bit_guests_operations_are_smaller() -> None:
    current = make(width=4)
    do(current, *[(abi.MMUEXT_INVLPG_LOCAL, page << 12, 0) for page in range(3)])
    assert flushed(current) == (0, [0, 0x1000, 0x2000])


def test_an_ldt_is_set_and_taken_away(current: Current) -> None:
    do(current, (abi.MMUEXT_SET_LDT, 0x40000, 16))
    assert (pv(current).ldt_base, pv(current).ldt_entries) == (0x40000, 16)
    do(current, (abi.MMUEXT_SET_LDT, 0x1234, 0))
    assert (pv(current).ldt_base, pv(current).ldt_entries) == (0, 0)


@pytest.mark.parametrize(("base", "entries"), [(0x40001, 1), (0x40000, 8193), (1 << 50, 1)])
def test_an_impossible_ldt_is_refused(current: Current, base: int, entries: int) -> None:
    refused(current, EINVAL, (abi.MMUEXT_SET_LDT, base, entries))
    assert pv(current).ldt_entries == 0
