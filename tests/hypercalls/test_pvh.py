"""What is different about hypercalls for a PVH guest."""

from __future__ import annotations

import pytest

from fakes import FIRST_GUEST_FRAME, FakeNativeCpu, make_pvh_current
from hypercalls import TABLE
from xenemu.abi import grant_table as grants
from xenemu.abi import sched, vcpu
from xenemu.abi.errno import EINVAL, ENOSYS, EPERM, ESRCH
from xenemu.abi.vcpu import VCPUOP_register_vcpu_info, vcpu_register_vcpu_info
from xenemu.abi.xen import DOMID_SELF, Nr
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, PVH
from xenemu.hv.grant_table import GNTPIN_hstr_inc
from xenemu.hv.shared_info import mark_events_pending
from xenemu.pvh.callbacks import set_callback_via
from xenemu.x86.flags import IF
from xenemu.x86.paging import Maddr

ARGUMENT, LIST = 0x20000, 0x21000
PAGE = FIRST_GUEST_FRAME + 8
DOM0 = 0

# The columns of Xen 4.17's table: what only a PV guest has. All else that is there, all have.
ONLY_PV = {
    *("set_trap_table", "mmu_update", "set_gdt", "stack_switch", "set_callbacks"),
    *("fpu_taskswitch", "sched_op_compat", "set_debugreg", "get_debugreg", "update_descriptor"),
    *("update_va_mapping", "event_channel_op_compat", "physdev_op_compat"),
    *("update_va_mapping_otherdomain", "iret", "set_segment_base", "nmi_op", "callback_op"),
    *("xenoprof_op", "kexec_op", "mca"),
}


@pytest.fixture
def current() -> Current:
    current = make_pvh_current()
    current.table = TABLE
    current.domain.frames.add_to_heap(range(6, 16))
    return current


def call(current: Current, number: int, *args: int) -> int:
    return TABLE.call(current, number, [*args, *[0] * (6 - len(args))])


def test_who_may_call_is_as_in_xens_table():
    assert {row.name for row in TABLE.rows.values() if not row.callers & PVH} == ONLY_PV
    assert all(row.callers == ALL for row in TABLE.rows.values() if row.callers & PVH)


def test_a_hypercall_of_pv_guests_is_unknown(current):
    assert call(current, Nr.mmu_update) == -ENOSYS


@pytest.mark.parametrize("command", range(0, 40))
def test_there_are_no_physical_interrupts(current, command):
    assert call(current, Nr.physdev_op, command, ARGUMENT) == -ENOSYS


@pytest.mark.parametrize(("domid", "errno"), [(DOMID_SELF, EINVAL), (DOM0, EPERM), (9, ESRCH)])
def test_page_tables_are_the_guests_own_business(current, domid, errno):
    assert call(current, Nr.mmuext_op, ARGUMENT, 1, 0, domid) == -errno


# Grants.


@pytest.mark.parametrize(
    "command",
    [
        grants.GNTTABOP_transfer,
        grants.GNTTABOP_unmap_and_replace,
        grants.GNTTABOP_get_status_frames,
        grants.GNTTABOP_cache_flush,
        99,
    ],
)
def test_grant_operations_that_it_has_not(current, command):
    assert call(current, Nr.grant_table_op, command, ARGUMENT, 1) == -ENOSYS


def test_the_grant_table_is_listed_by_guest_frame_numbers(current):
    grant_table.grow(current.domain, 2)
    current.domain.p2m.set(0x1234, current.domain.grants.frames[1])
    op = grants.gnttab_setup_table(DOMID_SELF, 2, 0, LIST)
    current.write_struct(ARGUMENT, op)
    assert call(current, Nr.grant_table_op, grants.GNTTABOP_setup_table, ARGUMENT, 1) == 0
    listed = [current.read_uint(LIST + 4 * n, 4) for n in range(2)]
    assert listed == [0xFFFFFFFF, 0x1234], "the first frame is nowhere yet"


def test_a_grant_names_a_guest_frame(current):
    domain = current.domain
    grant_table.grow(domain, 1)
    domain.p2m.set(0x1234, domain.p2m.remove(PAGE))
    entry = grants.grant_entry_v1(grants.GTF_permit_access, domain.domid, 0x1234)
    domain.memory.write(Maddr((domain.grants.frames[0] << 12) + 8 * 8), entry.pack(8))
    assert grant_table.acquire(domain, domain.domid, 8, GNTPIN_hstr_inc, mapping=True).mfn == PAGE


def test_a_copy_names_guest_frames(current):
    domain = current.domain
    domain.memory.write(Maddr(PAGE << 12), b"copied")
    domain.p2m.set(0x1234, domain.p2m.remove(PAGE))
    op = grants.gnttab_copy.unpack(4, bytes(grants.gnttab_copy.sizeof(4)))
    op.source_u, op.source_domid = 0x1234, DOMID_SELF
    op.dest_u, op.dest_domid, op.len = FIRST_GUEST_FRAME + 9, DOMID_SELF, 6
    current.write_struct(ARGUMENT, op)
    assert call(current, Nr.grant_table_op, grants.GNTTABOP_copy, ARGUMENT, 1) == 0
    assert domain.memory.read(Maddr((FIRST_GUEST_FRAME + 9) << 12), 6) == b"copied"


# Waiting.


def make_pending(current: Current, rflags: int) -> None:
    set_callback_via(current, 2 << 56 | 0xF3)
    mark_events_pending(current.domain, current.vcpu)
    current.cpu.rflags = rflags


@pytest.mark.parametrize(("rflags", "blocked"), [(0, True), (IF, False)])
def test_to_block_looks_for_an_interrupt(current, rflags, blocked):
    make_pending(current, rflags)
    assert call(current, Nr.sched_op, sched.SCHEDOP_block, 0) == 0
    assert current.vcpu.blocked == blocked
    assert current.cpu.rflags == rflags


@pytest.mark.parametrize(("rflags", "blocked"), [(0, True), (IF, False)])
def test_to_poll_looks_for_an_interrupt(current, rflags, blocked):
    make_pending(current, rflags)
    current.write_struct(ARGUMENT, sched.sched_poll(LIST, 0, 0))
    assert call(current, Nr.sched_op, sched.SCHEDOP_poll, ARGUMENT) == 0
    assert current.vcpu.blocked == blocked


# Its vcpus.


def test_an_nmi_to_itself(current):
    assert call(current, Nr.vcpu_op, vcpu.VCPUOP_send_nmi, 0, ARGUMENT) == -EINVAL
    assert isinstance(current.cpu, FakeNativeCpu)
    assert not current.cpu.nmi_pending
    assert call(current, Nr.vcpu_op, vcpu.VCPUOP_send_nmi, 0, 0) == 0
    assert current.cpu.nmi_pending


def test_a_vcpu_info_is_laid_out_as_shared_info_is(current):
    current.domain.shared_info_width = 4
    op = vcpu.vcpu_register_vcpu_info(PAGE, 0, 0)
    current.write_struct(ARGUMENT, op)
    assert call(current, Nr.vcpu_op, vcpu.VCPUOP_register_vcpu_info, 0, ARGUMENT) == 0
    info = current.domain.memory.read(Maddr(PAGE << 12), 16)
    assert info == bytes([1, 0, 0, 0]) + b"\xff" * 4 + bytes(8)


def test_a_vcpu_info_that_moved_is_where_the_cpu_looks():
    current = make_pvh_current(vcpus=2)
    current.table = TABLE
    for vcpu_id, upcall in ((1, None), (0, (0x20080, None))):
        current.write_struct(ARGUMENT, vcpu_register_vcpu_info(0x20 + vcpu_id, 0x80, 0))
        assert call(current, Nr.vcpu_op, VCPUOP_register_vcpu_info, vcpu_id, ARGUMENT) == 0
        cpu = current.cpu
        assert isinstance(cpu, FakeNativeCpu) and cpu.upcall == upcall
