"""pvh/exits: what a guest's exits lead to."""

from __future__ import annotations

import pytest

from fakes import FakeNativeCpu, enter_long_mode, make_pvh_current
from hypercalls import TABLE
from xenemu.abi.errno import ENOSYS, EPERM
from xenemu.abi.version import XEN_VERSION
from xenemu.hv import scheduler
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue, Hypercall, HypercallTable
from xenemu.hv.state.domain import OUTPUT_LIMIT
from xenemu.pvh.callbacks import set_callback_via
from xenemu.pvh.exits import PvhExits, TripleFault
from xenemu.pvh.personality import PVH
from xenemu.pvh.state import pvh
from xenemu.x86.flags import IF, VM

VERSION = 17  # __HYPERVISOR_xen_version; command 0 is XENVER_version
MASK = (1 << 64) - 1
RING = [0x00C09300 | ring << 13 for ring in range(4)]


@pytest.fixture
def exits() -> PvhExits:
    current = make_pvh_current()
    current.table = TABLE
    return PvhExits(current)


def cpu_of(exits: PvhExits) -> FakeNativeCpu:
    assert isinstance(exits.current.cpu, FakeNativeCpu)
    return exits.current.cpu


def call(exits: PvhExits, number: int = VERSION) -> int:
    regs = exits.current.cpu.regs
    regs[Reg.RAX] = number
    exits.vmcall()
    return regs[Reg.RAX]


def set_ring(current: Current, ring: int) -> None:
    current.cpu.set_segment(Seg.SS, Segment(0, 0, 0xFFFFFFFF, RING[ring]))


@pytest.mark.parametrize("ring", [1, 2, 3])
def test_only_ring_0_has_hypercalls(exits, ring):
    set_ring(exits.current, ring)
    assert call(exits) == MASK - EPERM + 1
    assert not exits.current.domain.calls


def test_virtual_8086_mode_has_none(exits):
    exits.current.cpu.rflags |= VM
    assert call(exits) == MASK - EPERM + 1


def test_real_mode_has_them(exits):
    cpu_of(exits).cr0 = 0x10
    set_ring(exits.current, 3)  # of no meaning there
    assert call(exits) == XEN_VERSION


def test_a_code_segments_privilege_is_not_the_callers(exits):
    exits.current.cpu.set_segment(Seg.CS, Segment(0, 0, 0xFFFFFFFF, 0x00C0FF00))  # conforming
    assert call(exits) == XEN_VERSION


@pytest.mark.parametrize(("number", "wide"), [(63, False), (63, True), (VERSION | 1 << 32, True)])
def test_no_such_hypercall(exits, number, wide):
    if wide:
        enter_long_mode(exits.current, 0)
    assert call(exits, number) == (-ENOSYS & (MASK if wide else 0xFFFFFFFF))


def test_32_bit_code_does_not_look_at_the_upper_half(exits):
    exits.current.cpu.regs[Reg.RBX] = 0xFFFFFFFF_00000000
    assert call(exits, VERSION | 1 << 32) == XEN_VERSION
    assert exits.current.vcpu.environment == "pvh32"


def test_the_code_segment_chooses_the_registers(exits):
    seen = []
    exits.current.table = HypercallTable(
        [Hypercall(1, "probe", frozenset({"pvh64"}), (), lambda current: seen.append("64"))]
    )
    assert call(exits, 1) == -ENOSYS & 0xFFFFFFFF
    enter_long_mode(exits.current, 0)
    assert call(exits, 1) == 0
    assert exits.current.vcpu.width == 8
    cpu = exits.current.cpu
    cpu.set_segment(Seg.CS, Segment(0x10, 0, 0xFFFFFFFF, 0x00C09B00))  # compatibility mode
    assert call(exits, 1) == -ENOSYS & 0xFFFFFFFF
    assert seen == ["64"]


def test_each_vcpu_has_the_width_of_its_own_code():
    current = make_pvh_current(vcpus=2)
    current.table = TABLE
    exits, (first, second) = PvhExits(current), current.domain.vcpus
    call(exits)
    current.vcpu = second
    enter_long_mode(current, 0)
    call(exits)
    assert (first.width, first.environment) == (4, "pvh32")
    assert (second.width, second.environment) == (8, "pvh64")


def test_debug_xen_spoils_the_arguments(exits):
    exits.current.domain.debug_xen = True
    exits.current.cpu.regs[Reg.RDX] = 9
    call(exits)
    registers = (Reg.RBX, Reg.RCX, Reg.RDX)
    assert [exits.current.cpu.regs[one] for one in registers] == [0xDEADF00D] * 2 + [9]


def test_a_64_bit_segment_means_nothing_outside_long_mode(exits):
    exits.current.cpu.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, 0x00A09B00))
    call(exits)
    assert exits.current.vcpu.environment == "pvh32"


def test_a_long_hypercall_is_issued_again(exits):
    def again(current: Current) -> None:
        raise Continue

    exits.current.table = HypercallTable([Hypercall(1, "probe", frozenset({"pvh32"}), (), again)])
    exits.current.cpu.rip = 0x1003
    assert call(exits, 1) == 1
    assert exits.current.cpu.rip == 0x1000


def test_a_triple_fault_names_the_idt(exits):
    cpu_of(exits).triple_fault = True
    exits.current.cpu.rip = 0x1234
    exits.current.cpu.set_segment(Seg.IDTR, Segment(0, 0x5000, 0x7FF))
    with pytest.raises(TripleFault, match=r"0x1234; its IDT is at 0x5000, with the limit 0x7ff"):
        exits.stopped()


def halt(exits: PvhExits, rflags: int) -> None:
    cpu_of(exits).halted = True
    cpu_of(exits).rflags = rflags
    exits.stopped()


def test_hlt_waits(exits):
    halt(exits, IF)
    assert exits.current.vcpu.blocked
    assert exits.current.domain.shutdown_code is None


def test_hlt_with_interrupts_off_ends_the_domain(exits):
    halt(exits, 0)
    assert not exits.current.vcpu.online
    assert exits.current.domain.shutdown_code == 0
    why = "the guest powered off: its last vcpu halted with interrupts off"
    assert exits.current.domain.shutdown_why == why


def test_hlt_with_an_interrupt_due_does_not_wait(exits):
    set_callback_via(exits.current, 2 << 56 | 0xF3)
    exits.current.domain.memory.bytes[exits.current.vcpu.info] = 1
    halt(exits, IF)
    assert not exits.current.vcpu.blocked


def test_hlt_with_an_nmi_due_does_not_end_the_domain(exits):
    cpu_of(exits).nmi_pending = True
    halt(exits, 0)
    assert exits.current.vcpu.online


def test_hlt_waits_though_events_that_interrupt_nobody_are_pending(exits):
    exits.current.domain.memory.bytes[exits.current.vcpu.info] = 1
    halt(exits, IF)
    assert exits.current.vcpu.blocked


def test_cpuid_faults_in_user_mode_if_the_kernel_wants_it(exits):
    set_ring(exits.current, 3)
    assert exits.cpuid()
    assert exits.write_msr(0x140, 1) is None
    assert not exits.cpuid()
    set_ring(exits.current, 0)
    assert exits.cpuid()


def test_the_debug_console_is_emptied_before_it_grows_without_bound(exits):
    exits.current.domain.output += bytes(OUTPUT_LIMIT - 1)
    exits.write_port(0xE9, 1, 65)
    assert cpu_of(exits).stopped


def test_the_debug_console_shows_bytes(exits):
    for byte in b"ok":
        exits.write_port(0xE9, 1, byte)
    exits.write_port(0xE9, 2, 0x4142)
    assert bytes(exits.current.domain.output) == b"ok"
    assert (exits.read_port(0xE9, 1), exits.read_port(0xE9, 2)) == (0xE9, 0xFFFF)


def test_the_local_apics_timers_are_the_personalitys(exits):
    current = exits.current
    assert current is not None and PVH.timers.keys().isdisjoint(scheduler.TIMERS)
    PVH.timers["lapic"](current, 0)
    assert pvh(exits.current).lapic.irr == 0
