"""pv/paging: translation, roots, modes."""

from __future__ import annotations

import pytest

from fakes import (
    KERNEL_ONLY,
    L1,
    L2,
    L3,
    ROOT,
    USER_ROOT,
    FakeCpu,
    make_pv_current,
    protect,
)
from xenemu.abi.arch_x86.xen import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START
from xenemu.abi.errno import EFAULT, EINVAL
from xenemu.abi.vcpu import vcpu_runstate_info
from xenemu.abi.xen import VMASST_TYPE_m2p_strict, vcpu_time_info
from xenemu.errors import XenError
from xenemu.hv.clock import EPOCH_NS, refresh_time
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l4_page_table
from xenemu.hv.pagecheck import recount
from xenemu.hv.scheduler import set_runstate, update_runstate_area
from xenemu.hv.state.vcpu import RunState
from xenemu.pv.descriptors import map_ldt_page, set_ldt
from xenemu.pv.paging import (
    M2P_L4_SLOT,
    first_fault,
    in_guest_range,
    new_guest_cr3,
    new_user_baseptr,
    toggle_guest_mode,
    translate,
)
from xenemu.pv.state import pv
from xenemu.x86.paging import PSE, RW, A, D, Maddr, Mfn, P

DATA = 0x22000
NEW_ROOT = Mfn(40)


@pytest.fixture
def current() -> Current:
    return make_pv_current()


def refuses(current: Current, vaddr: int, writing: bool = False) -> None:
    before = bytes(current.domain.memory.bytes)
    with pytest.raises(XenError) as refusal:
        translate(current, vaddr, writing)
    assert refusal.value.errno == EFAULT
    assert bytes(current.domain.memory.bytes) == before


@pytest.mark.parametrize(
    ("vaddr", "inside"),
    [
        (0, True),
        ((1 << 47) - 1, True),
        (1 << 47, False),
        (HYPERVISOR_VIRT_START - 1, False),
        (HYPERVISOR_VIRT_START, False),
        (HYPERVISOR_VIRT_END - 1, False),
        (HYPERVISOR_VIRT_END, True),
        ((1 << 64) - 1, True),
        (1 << 64, False),
        (-1, False),
    ],
)
def test_the_guests_addresses(vaddr: int, inside: bool) -> None:
    assert in_guest_range(vaddr) is inside


def test_an_address_is_found_and_marked_as_a_cpu_would(current: Current) -> None:
    words, entry = current.domain.memory.words, (L1 << 9) + (DATA >> 12)
    assert translate(current, DATA + 5, False) == DATA + 5
    assert words[entry] & (A | D) == A
    assert translate(current, KERNEL_ONLY + DATA, True) == DATA
    assert words[entry] & (A | D) == A | D


@pytest.mark.parametrize("table", [ROOT, L3, L2])
def test_an_absent_table_faults(current: Current, table: int) -> None:
    current.domain.memory.words[table << 9] &= ~P
    refuses(current, DATA)


@pytest.mark.parametrize("table", [ROOT, L3, L2])
def test_a_table_without_rw_refuses_writes_only(current: Current, table: int) -> None:
    current.domain.memory.words[table << 9] &= ~RW
    refuses(current, DATA, writing=True)
    assert translate(current, DATA, False) == DATA


def test_a_leaf_without_rw_refuses_writes_only(current: Current) -> None:
    refuses(current, ROOT << 12, writing=True)
    assert translate(current, ROOT << 12, False) == ROOT << 12


def test_a_large_page_faults(current: Current) -> None:
    current.domain.memory.words[L2 << 9] |= PSE
    refuses(current, DATA)


@pytest.mark.parametrize("vaddr", [1 << 47, HYPERVISOR_VIRT_START, 1 << 64, -1])
def test_xens_and_impossible_addresses_fault(current: Current, vaddr: int) -> None:
    refuses(current, vaddr)


def test_a_fault_is_at_the_start_or_a_page_on(current: Current) -> None:
    last = 79 << 12
    assert first_fault(current, last + 0xFFE, False) == last + 0x1000
    assert first_fault(current, last + 0x1234, False) == last + 0x1234


# Roots.


def test_the_same_root_again_only_flushes(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    before = current.cpu.flushes
    new_guest_cr3(current, ROOT)
    assert current.cpu.flushes == before + 1
    assert current.domain.frames.type_count[ROOT] == 1


def test_a_new_root_is_loaded_and_the_old_one_let_go(current: Current) -> None:
    frames = current.domain.frames
    frames.pin(ROOT, current.domain.domid, 4)
    new_guest_cr3(current, USER_ROOT)
    assert (pv(current).kernel_root, current.cpu.cr3) == (USER_ROOT, USER_ROOT << 12)
    assert (frames.type_count[ROOT], frames.type_count[USER_ROOT]) == (1, 2)


@pytest.mark.parametrize("mfn", [9, L3, L1, 1 << 60])
def test_what_cannot_be_a_root_changes_nothing(current: Current, mfn: int) -> None:
    state, counts = repr(pv(current)), list(current.domain.frames.type_count)
    for change in (new_guest_cr3, new_user_baseptr):
        with pytest.raises(XenError) as refusal:
            change(current, mfn)
        assert refusal.value.errno == EINVAL
    assert repr(pv(current)) == state
    assert list(current.domain.frames.type_count) == counts
    assert current.cpu.cr3 == ROOT << 12


def test_a_new_root_takes_the_ldts_mappings_with_it(current: Current) -> None:
    protect(current, DATA >> 12)
    set_ldt(current, DATA, 1)
    map_ldt_page(current, 0)
    new_guest_cr3(current, USER_ROOT)
    assert not pv(current).ldt_frames
    assert current.domain.frames.type_count[DATA >> 12] == 0


def test_a_users_root_can_be_taken_away(current: Current) -> None:
    new_user_baseptr(current, 0)
    assert pv(current).user_root == 0
    assert current.domain.frames.type_count[USER_ROOT] == 0


def test_one_table_can_be_both_roots(current: Current) -> None:
    new_user_baseptr(current, ROOT)
    assert current.domain.frames.type_count[ROOT] == 2
    new_user_baseptr(current, ROOT)
    assert current.domain.frames.type_count[ROOT] == 2
    new_user_baseptr(current, 0)
    assert (pv(current).kernel_root, current.domain.frames.type_count[ROOT]) == (ROOT, 1)


def test_the_m2p_is_the_kernels_and_not_the_users(current: Current) -> None:
    frames, memory = current.domain.frames, current.domain.memory
    frames.xen_slots = [(M2P_L4_SLOT, 0x9067)]
    protect(current, NEW_ROOT)
    new_user_baseptr(current, NEW_ROOT)
    assert memory.table(NEW_ROOT)[M2P_L4_SLOT] == 0
    new_guest_cr3(current, NEW_ROOT)
    assert memory.table(NEW_ROOT)[M2P_L4_SLOT] == 0x9067
    new_guest_cr3(current, ROOT)  # then it is the user's alone, and keeps it, as on Xen
    assert memory.table(NEW_ROOT)[M2P_L4_SLOT] == 0x9067


def test_a_strict_guest_sees_the_m2p_as_it_is(current: Current) -> None:
    current.domain.vm_assist = 1 << VMASST_TYPE_m2p_strict
    current.domain.frames.xen_slots = [(M2P_L4_SLOT, 0x9067)]
    new_guest_cr3(current, USER_ROOT)
    assert current.domain.memory.table(USER_ROOT)[M2P_L4_SLOT] == 0
    protect(current, NEW_ROOT)
    current.domain.frames.pin(NEW_ROOT, 1, PGT_l4_page_table)
    assert current.domain.memory.table(NEW_ROOT)[M2P_L4_SLOT] == 0x9067
    new_user_baseptr(current, NEW_ROOT)
    assert current.domain.memory.table(NEW_ROOT)[M2P_L4_SLOT] == 0


def test_the_mode_changes_the_root_and_gs(current: Current) -> None:
    current.cpu.set_segment(Seg.GS, Segment(0x2B, 0x111))
    pv(current).inactive_gs = 0x222
    toggle_guest_mode(current)
    assert (pv(current).kernel_mode, current.cpu.cr3) == (False, USER_ROOT << 12)
    assert current.cpu.segment(Seg.GS) == Segment(0x2B, 0x222)
    toggle_guest_mode(current)
    assert (current.cpu.cr3, current.cpu.segment(Seg.GS).base) == (ROOT << 12, 0x111)


def test_areas_of_the_kernels_are_written_when_it_is_entered(current: Current) -> None:
    vcpu, areas = current.vcpu, KERNEL_ONLY + DATA
    vcpu.runstate_area, vcpu.time_area = areas, areas + 0x100
    toggle_guest_mode(current)
    current.cpu.now_ns = EPOCH_NS
    set_runstate(current.domain, vcpu, RunState.RUNNING, current.cpu.now_ns)
    update_runstate_area(current)
    refresh_time(current)
    assert current.domain.memory.read(Maddr(DATA), 0x200) == bytes(0x200)
    toggle_guest_mode(current)
    assert current.read_struct(vcpu_runstate_info, areas).state_entry_time == EPOCH_NS
    assert current.read_struct(vcpu_time_info, areas + 0x100).system_time == EPOCH_NS
    assert not vcpu.areas_stale


def test_areas_that_the_kernel_itself_does_not_map_are_given_up(current: Current) -> None:
    current.vcpu.time_area = KERNEL_ONLY - 0x1000
    refresh_time(current)
    toggle_guest_mode(current)
    assert not current.vcpu.areas_stale


def test_the_fixtures_tables_are_valid(current: Current) -> None:
    held = [(ROOT, PGT_l4_page_table), (USER_ROOT, PGT_l4_page_table)]
    assert recount(current.domain.frames, held) == []
