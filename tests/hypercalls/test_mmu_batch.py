"""Hypercalls on page tables that are preempted: how they go on, and what they return."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import make_current
from hypercalls.mmu_update import REQUEST_WORK, do_mmu_update
from hypercalls.mmuext_op import do_mmuext_op, mmuext_op
from hypercalls.multicall import multicall
from xenemu.abi import xen as abi
from xenemu.abi.errno import EBUSY, EINVAL
from xenemu.abi.xen import DOMID_SELF, MMU_UPDATE_PREEMPTED, Nr
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue, HypercallTable
from xenemu.hv.frame_table import UNLIMITED
from xenemu.hv.pagecheck import recount
from xenemu.hv.pagetype import (
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l4_page_table,
    PGT_writable_page,
    Restart,
)
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.vcpu import Vcpu
from xenemu.hv.validation import L1_WORK
from xenemu.pv.audit import references
from xenemu.pv.paging import new_guest_cr3
from xenemu.pv.personality import PV64
from xenemu.pv.state import PvVcpu, pv, pv_vcpu
from xenemu.x86.paging import RW, US, Mfn, P

ROOT, NEW_ROOT, L3, L2, DATA, REQUESTS, DONE = range(16, 23)  # frames
L1S = range(24, 32)
UOPS, PDONE = REQUESTS << 12, DONE << 12
TABLE = P | RW | US
WORK = 10  # one L1 table in each call, or one or two higher ones dropped


@pytest.fixture
def current() -> Current:
    """A vcpu that runs on ROOT, and beside it a tree of eight L1 tables below NEW_ROOT."""
    current = make_current()
    domain = current.domain
    domain.frames.get_page_and_type(ROOT, 1, PGT_l4_page_table)
    current.vcpu.arch = PvVcpu(kernel_root=Mfn(ROOT))
    current.cpu.cr3 = ROOT << 12
    for table, child in ((NEW_ROOT, L3), (L3, L2)):
        domain.memory.table(Mfn(table))[0] = child << 12 | TABLE
    for number, l1 in enumerate(L1S):
        domain.memory.table(Mfn(L2))[number] = l1 << 12 | TABLE
        domain.memory.table(Mfn(l1))[0] = DATA << 12 | P
    return current


def issue(
    current: Current, call: Callable[..., int], args: tuple[int, ...], work: int = WORK
) -> tuple[int, int]:
    """Issue a call until it is through, as the guest's stub does: its result, and how often.

    A refusal, too, must be the last of it.
    """
    frames, times = current.domain.frames, 0
    while True:
        times += 1
        frames.work_left = work
        try:
            return call(current, *args), times
        except Continue as again:
            args = again.new_args
            roots = (pv(current).kernel_root, pv(current).user_root)
            assert recount(frames, [(mfn, PGT_l4_page_table) for mfn in roots if mfn]) == []
        except XenError as error:
            current.log(error.reason)
            return -error.errno, times


def mmuext(current: Current, *ops: tuple[int, int]) -> tuple[int, int]:
    for index, (command, mfn) in enumerate(ops):
        current.write_struct(UOPS + 24 * index, abi.mmuext_op(command, mfn, 0))
    args = (UOPS, len(ops), PDONE, DOMID_SELF)
    return issue(current, do_mmuext_op, args)


def done(current: Current) -> int:
    return current.read_uint(PDONE, 4)


def test_a_pin_goes_on_until_all_is_validated(current: Current) -> None:
    assert mmuext(current, (abi.MMUEXT_PIN_L4_TABLE, NEW_ROOT)) == (0, len(L1S))
    assert [current.domain.frames.type[mfn] for mfn in L1S] == [PGT_l1_page_table] * len(L1S)
    assert done(current) == 1


def test_a_refused_pin_returns_its_errno_when_all_is_dropped(current: Current) -> None:
    current.domain.memory.table(Mfn(L1S[6]))[1] = ROOT << 12 | P | RW
    flush = (abi.MMUEXT_TLB_FLUSH_LOCAL, 0)
    result, times = mmuext(current, flush, (abi.MMUEXT_PIN_L4_TABLE, NEW_ROOT), flush)
    assert (result, done(current)) == (-EBUSY, 1)
    assert times > 6
    frames = current.domain.frames
    assert (frames.partial, frames.old_tables) == ({}, [])
    assert [frames.type[mfn] for mfn in L1S] == [PGT_writable_page] * len(L1S)
    assert "maps RW" in current.domain.refusals[-1]


def test_an_unpin_returns_when_all_is_dropped(current: Current) -> None:
    frames = current.domain.frames
    frames.pin(NEW_ROOT, 1, PGT_l4_page_table)
    result, times = mmuext(current, (abi.MMUEXT_UNPIN_TABLE, NEW_ROOT))
    assert (result, done(current)) == (0, 1)
    assert times > 1
    assert not any(frames.type_count[mfn] for mfn in (NEW_ROOT, L3, L2, *L1S))


def test_the_rest_of_a_batch_waits_for_what_is_to_be_dropped(current: Current) -> None:
    current.domain.frames.pin(L2, 1, PGT_l2_page_table)
    result, times = mmuext(current, (abi.MMUEXT_UNPIN_TABLE, L2), (abi.MMUEXT_PIN_L1_TABLE, L2))
    assert (result, done(current), current.domain.frames.type[L2]) == (0, 2, PGT_l1_page_table)
    assert times > 1


def test_a_root_is_switched_when_it_is_validated(current: Current) -> None:
    result, times = mmuext(current, (abi.MMUEXT_NEW_BASEPTR, NEW_ROOT))
    assert (result, done(current)) == (0, 1)
    assert times >= len(L1S)
    assert (pv(current).kernel_root, current.cpu.cr3) == (NEW_ROOT, NEW_ROOT << 12)
    result, times = mmuext(current, (abi.MMUEXT_NEW_BASEPTR, ROOT))
    assert (result, done(current)) == (0, 1)
    assert times > 1
    assert not any(current.domain.frames.type_count[mfn] for mfn in (NEW_ROOT, L3, L2, *L1S))


def test_a_users_root_is_set_and_dropped_in_steps(current: Current) -> None:
    assert mmuext(current, (abi.MMUEXT_NEW_USER_BASEPTR, NEW_ROOT)) == (0, len(L1S))
    assert pv(current).user_root == NEW_ROOT
    result, times = mmuext(current, (abi.MMUEXT_NEW_USER_BASEPTR, 0))
    assert (result, pv(current).user_root) == (0, 0)
    assert times > 1
    assert not any(current.domain.frames.type_count[mfn] for mfn in L1S)


def update(current: Current, *requests: tuple[int, int]) -> tuple[int, int]:
    for index, (ptr, value) in enumerate(requests):
        current.write(UOPS + 16 * index, abi.mmu_update(ptr, value).pack(8))
    args = (UOPS, len(requests), PDONE, DOMID_SELF)
    return issue(current, do_mmu_update, args)


def test_an_entry_is_set_when_its_tree_is_validated(current: Current) -> None:
    word = (ROOT << 9) + 3
    assert update(current, (word << 3, L3 << 12 | TABLE)) == (0, len(L1S))
    assert current.domain.memory.words[word] == L3 << 12 | TABLE
    result, times = update(current, (word << 3, 0), (word + 1 << 3, 0))
    assert (result, done(current)) == (0, 2)
    assert times > 1
    assert not any(current.domain.frames.type_count[mfn] for mfn in L1S)


def test_a_refused_entry_returns_its_errno_when_all_is_dropped(current: Current) -> None:
    current.domain.memory.table(Mfn(L1S[6]))[1] = ROOT << 12 | P | RW
    result, _ = update(current, (ROOT << 12, 0), (ROOT << 12 | 24, L3 << 12 | TABLE))
    assert (result, done(current)) == (-EBUSY, 1)
    assert not current.domain.memory.words[(ROOT << 9) + 3]
    assert (current.domain.frames.partial, current.domain.frames.old_tables) == ({}, [])


def test_many_requests_are_done_in_several_calls(current: Current) -> None:
    result, times = update(current, *[(DATA << 12 | 8 * index, index) for index in range(100)])
    assert (result, done(current)) == (0, 100)
    assert times == 100 * REQUEST_WORK // WORK


def test_a_call_without_requests_returns_what_it_is_told(current: Current) -> None:
    for call in (do_mmu_update, do_mmuext_op):
        args = (0, MMU_UPDATE_PREEMPTED, 0)
        assert call(current, *args, 7) == 7
        assert issue(current, call, (*args, -EINVAL & 0xFFFFFFFF)) == (-EINVAL, 1)


def test_mov_to_cr3_goes_on_where_it_was(current: Current) -> None:
    """The instruction is executed again."""
    for _ in range(len(L1S) - 1):
        current.domain.frames.work_left = WORK
        with pytest.raises(Restart):
            new_guest_cr3(current, NEW_ROOT)
        assert pv(current).kernel_root == ROOT
    current.domain.frames.work_left = UNLIMITED
    new_guest_cr3(current, NEW_ROOT)
    assert pv(current).kernel_root == NEW_ROOT


def test_a_multicall_stops_when_its_entries_were_work_enough(current: Current) -> None:
    table = current.table = HypercallTable([multicall, mmuext_op])
    pin, unpin = UOPS + 512, UOPS + 600
    current.write_struct(pin, abi.mmuext_op(abi.MMUEXT_PIN_L4_TABLE, NEW_ROOT, 0))
    current.write_struct(unpin, abi.mmuext_op(abi.MMUEXT_UNPIN_TABLE, NEW_ROOT, 0))
    for index in range(6):
        args = (pin if index % 2 == 0 else unpin, 1, 0, DOMID_SELF)
        packed = b"".join(arg.to_bytes(8, "little") for arg in (*args, 0, 0))
        entry = abi.multicall_entry(Nr.mmuext_op, 0, packed)
        current.write_struct(UOPS + 64 * index, entry)
    current.domain.frames.work_left = 2 * len(L1S) * L1_WORK
    with pytest.raises(Continue) as again:
        table.call(current, Nr.multicall, (UOPS, 6))
    assert again.value.new_args == (UOPS + 2 * 64, 4)


def test_each_vcpu_goes_on_with_its_own_old_tables(current: Current) -> None:
    """What one has still to drop is no business of another's, and the audit counts it."""
    domain, frames, first = current.domain, current.domain.frames, current.vcpu
    second = Vcpu(1, first.info, arch=PvVcpu(kernel_root=Mfn(0)))
    domain.vcpus.append(second)
    PV64.enter(current)
    frames.work_left = UNLIMITED
    frames.pin(NEW_ROOT, 1, PGT_l4_page_table)
    frames.work_left = WORK
    with pytest.raises(Continue):
        do_mmuext_op(current, *_unpin(current, NEW_ROOT))
    left = list(frames.old_tables)
    assert left

    current.vcpu = second
    PV64.enter(current)
    frames.work_left = UNLIMITED
    assert frames.put_old_tables() and pv_vcpu(first).old_tables == left
    assert recount(frames, references(domain)) == []

    current.vcpu = first
    PV64.enter(current)
    frames.work_left = UNLIMITED
    assert frames.old_tables == left and frames.put_old_tables()
    assert not any(frames.type_count[mfn] for mfn in L1S)
    assert recount(frames, references(domain)) == []


def _unpin(current: Current, mfn: int) -> tuple[int, int, int, int]:
    current.write_struct(UOPS, abi.mmuext_op(abi.MMUEXT_UNPIN_TABLE, mfn, 0))
    return UOPS, 1, 0, DOMID_SELF


def test_a_restored_vcpu_has_its_own_old_tables_still(current: Current) -> None:
    PV64.enter(current)
    snapshot = DomainSnapshot.of(current.domain)
    restored = snapshot.restore(current.domain)
    assert restored.frames.old_tables is pv_vcpu(restored.vcpus[0]).old_tables
