"""pvh/lapic_glue: what one vcpu does to others by interrupts of its local APIC.

In Xen: arch/x86/hvm/vlapic.c (vlapic_ipi, vlapic_init_sipi_one)
"""

from __future__ import annotations

import pytest

from fakes import FakeNativeCpu, make_pvh_current
from xenemu.abi.sched import SHUTDOWN_poweroff
from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.scheduler import block, take_down
from xenemu.hv.state.vcpu import RunState
from xenemu.pvh import lapic_glue
from xenemu.pvh.context import RESET_FPU
from xenemu.pvh.personality import PVH
from xenemu.pvh.state import pvh_domain, pvh_vcpu

SPURIOUS, TPR, LDR, ICR, ICR2, LVTT, TMICT = 0xF0, 0x80, 0xD0, 0x300, 0x310, 0x320, 0x380
LOWEST, NMI, INIT, STARTUP = (kind << 8 for kind in (1, 4, 5, 6))
LOGICAL, ASSERT = 1 << 11, 1 << 14
SELF, ALL, OTHERS = (shorthand << 18 for shorthand in (1, 2, 3))
VECTOR = 0x60


@pytest.fixture
def current() -> Current:
    """Vcpu 0 of four; all of them are up, with their local APICs on."""
    current = make_pvh_current(vcpus=4)
    for vcpu in current.domain.vcpus:
        vcpu.online = vcpu.initialised = True
        vcpu.runstate = RunState.RUNNABLE
        lapic_glue.lapic_of(vcpu).write(SPURIOUS, 0x1FF, 0)
        lapic_glue.lapic_of(vcpu).write(LDR, 1 << 24 + vcpu.vcpu_id, 0)
    return current


def native(current: Current) -> FakeNativeCpu:
    assert isinstance(current.cpu, FakeNativeCpu)
    return current.cpu


def send(current: Current, command: int, destination: int = 0) -> None:
    lapic_glue.write(current, ICR2, 4, destination << 24)
    lapic_glue.write(current, ICR, 4, command | ASSERT)


def switch_to(current: Current, vcpu_id: int) -> None:
    """Put another vcpu into the CPU, as the machine does but for the registers."""
    cpu = native(current)
    PVH.leave(current)
    current.vcpu = current.domain.vcpus[vcpu_id]
    cpu.nmi_pending, cpu.apic_vector = False, None
    PVH.enter(current)


def requested(current: Current) -> list[int]:
    """The vcpus whose APICs have VECTOR to deliver."""
    vcpus = current.domain.vcpus
    return [v.vcpu_id for v in vcpus if lapic_glue.lapic_of(v).irr >> VECTOR & 1]


@pytest.mark.parametrize(
    ("command", "destination", "reached"),
    [
        (0, 2, [1]),
        (0, 6, [3]),
        (0, 7, []),
        (0, 0xFF, [0, 1, 2, 3]),
        (LOGICAL, 0b1010, [1, 3]),
        (LOGICAL, 0, []),
        (SELF, 2, [0]),
        (ALL, 2, [0, 1, 2, 3]),
        (OTHERS, 2, [1, 2, 3]),
    ],
)
def test_whom_an_interrupt_reaches(current, command, destination, reached):
    send(current, command | VECTOR, destination)
    assert requested(current) == reached


def test_a_vcpu_that_enters_the_cpu_finds_what_was_sent_to_it(current):
    send(current, VECTOR, 2)
    assert native(current).apic_vector is None
    switch_to(current, 1)
    assert native(current).apic_vector == VECTOR


def test_an_interrupt_wakes_a_blocked_vcpu_and_the_sender_gives_way(current):
    target = current.domain.vcpus[1]
    target.blocked = True
    send(current, VECTOR, 2)
    assert target.runnable
    assert native(current).stopped


def test_an_interrupt_to_a_vcpu_that_runs_takes_no_time_from_the_sender(current):
    send(current, VECTOR, 2)
    assert not native(current).stopped


def test_an_interrupt_does_not_bring_up_a_vcpu_that_is_down(current):
    take_down(current, current.domain.vcpus[1], "")
    send(current, VECTOR, 2)
    assert not current.domain.vcpus[1].runnable


def test_those_of_lowest_priority_go_around(current):
    reached = []
    for _ in range(5):
        send(current, LOWEST | LOGICAL | VECTOR, 0b1111)
        reached += requested(current)
        lapic_glue.lapic_of(current.domain.vcpus[reached[-1]]).irr = 0
    assert reached == [1, 2, 3, 0, 1]
    assert pvh_domain(current).last_lowest == 1


def test_those_of_lowest_priority_go_to_who_has_it(current):
    for vcpu_id, priority in enumerate((0x20, 0x40, 0x10, 0x10)):
        lapic_glue.lapic_of(current.domain.vcpus[vcpu_id]).write(TPR, priority, 0)
    send(current, LOWEST | ALL | VECTOR)
    assert requested(current) == [2]


# INIT and STARTUP.


def test_an_init_resets_a_vcpu_and_takes_it_down(current):
    target = current.domain.vcpus[1]
    lapic = lapic_glue.lapic_of(target)
    lapic.write(LVTT, 0x50, 0)
    lapic.write(TMICT, 1000, 0)
    lapic_glue.set_timer(current, target)
    target.blocked, target.poll_ports = True, frozenset({3})
    send(current, INIT, 2)
    assert (target.online, target.initialised, target.blocked) == (False, False, False)
    assert target.runstate is RunState.OFFLINE and not target.poll_ports
    assert not lapic.enabled and current.domain.timers.next_ns() is None
    assert current.domain.shutdown_code is None


def test_an_init_to_itself_leaves_the_cpu(current):
    send(current, INIT | SELF)
    assert native(current).stopped and not current.vcpu.online
    assert current.domain.shutdown_code is None


def test_an_init_of_the_last_vcpu_powers_off(current):
    for vcpu in current.domain.vcpus[1:]:
        vcpu.online = False
    send(current, INIT | SELF)
    assert current.domain.shutdown_code == SHUTDOWN_poweroff


def test_an_init_that_is_deasserted_does_nothing(current):
    lapic_glue.write(current, ICR2, 4, 2 << 24)
    lapic_glue.write(current, ICR, 4, INIT | 1 << 15)
    assert current.domain.vcpus[1].initialised


def test_a_startup_brings_a_vcpu_up_in_real_mode(current):
    target = current.domain.vcpus[1]
    send(current, INIT, 2)
    native(current).stopped = False
    send(current, STARTUP | 0x9A, 2)
    assert target.runnable and target.initialised and target.runstate is RunState.RUNNABLE
    assert native(current).stopped
    cpu = native(current)
    cpu.regs[:], cpu.rflags, cpu.cr2, cpu.efer = [7] * 16, 0x246, 5, 0xD01
    switch_to(current, 1)
    assert (cpu.rip, cpu.rflags, sum(cpu.regs)) == (0, 2, 0)
    assert (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) == (0x10, 0, 0, 0, 0)
    assert cpu.segment(Seg.CS) == Segment(0x9A00, 0x9A000, 0xFFFF, 0x9B00)
    for which in (Seg.DS, Seg.ES, Seg.FS, Seg.GS, Seg.SS):
        assert cpu.segment(which) == Segment(0, 0, 0xFFFF, 0x9300)
    assert cpu.segment(Seg.IDTR) == cpu.segment(Seg.GDTR) == Segment(0, 0, 0xFFFF)
    assert cpu.segment(Seg.TR) == Segment(0, 0, 0xFFFF, 0x8B00)
    assert cpu.fpu == RESET_FPU


def test_a_vcpu_starts_once(current):
    send(current, INIT, 2)
    send(current, STARTUP | 0x9A, 2)
    switch_to(current, 1)
    native(current).rip = 0x1234
    switch_to(current, 0)
    switch_to(current, 1)
    assert native(current).rip == 0x1234


def test_only_the_first_startup_counts(current):
    send(current, INIT, 2)
    send(current, STARTUP | 0x9A, 2)
    first = pvh_vcpu(current.domain.vcpus[1]).start
    send(current, STARTUP | 0x10, 2)
    assert pvh_vcpu(current.domain.vcpus[1]).start == first


def test_a_startup_does_nothing_to_a_vcpu_that_is_down_but_not_reset(current):
    target = current.domain.vcpus[1]
    take_down(current, target, "")
    send(current, STARTUP | 0x9A, 2)
    assert not target.online and pvh_vcpu(target).start is None


# NMI.


def test_an_nmi_waits_for_its_vcpu(current):
    send(current, NMI, 2)
    assert not native(current).nmi_pending
    switch_to(current, 2)
    assert not native(current).nmi_pending
    switch_to(current, 1)
    assert native(current).nmi_pending
    switch_to(current, 0)
    switch_to(current, 1)
    assert not native(current).nmi_pending


def test_an_nmi_that_its_cpu_was_asked_for_comes_after_an_init(current):
    switch_to(current, 1)
    send(current, NMI | SELF)
    send(current, INIT | SELF)
    switch_to(current, 0)
    send(current, STARTUP | 0x9A, 2)
    native(current).nmi_pending = True  # as the registers of vcpu 1 have it
    current.vcpu = current.domain.vcpus[1]
    PVH.enter(current)
    assert native(current).rip == 0 and native(current).nmi_pending


def test_an_nmi_wakes_a_blocked_vcpu(current):
    current.domain.vcpus[1].blocked = True
    send(current, NMI, 2)
    assert current.domain.vcpus[1].runnable


@pytest.mark.parametrize("initialised", [True, False])
def test_an_nmi_brings_up_a_vcpu_that_is_down_if_it_can_run(current, initialised):
    target = current.domain.vcpus[1]
    take_down(current, target, "")
    target.initialised = initialised
    send(current, NMI, 2)
    assert target.online is initialised


# Timers.


def test_the_timer_of_a_vcpu_that_is_not_in_the_cpu_wakes_it(current):
    switch_to(current, 1)
    lapic_glue.write(current, LVTT, 4, VECTOR)
    lapic_glue.write(current, TMICT, 4, 1000)
    block(current)
    switch_to(current, 0)
    native(current).now_ns = when = current.domain.timers.next_ns()
    assert current.domain.timers.pop_due(when) == [(lapic_glue.TIMER, 1)]
    lapic_glue.fire_timer(current, 1)
    assert current.domain.vcpus[1].runnable and native(current).apic_vector is None
    switch_to(current, 1)
    assert native(current).apic_vector == VECTOR
