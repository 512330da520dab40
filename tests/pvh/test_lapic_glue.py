"""pvh/lapic_glue: a local APIC, its CPU and the timers agree."""

from __future__ import annotations

import pytest

from fakes import FakeNativeCpu, make_pvh_current
from xenemu.errors import DomainCrash
from xenemu.hv.cpu import Msr
from xenemu.hv.current import Current
from xenemu.hv.scheduler import block
from xenemu.pvh import lapic_glue
from xenemu.pvh.state import pvh

SPURIOUS, EOI, ICR, ICR2, TIMER_LVT, TIMER_COUNT = 0xF0, 0xB0, 0x300, 0x310, 0x320, 0x380
SELF = 1 << 18
NMI, INIT, STARTUP, EXTINT, SMI = (kind << 8 for kind in (4, 5, 6, 7, 2))
TICK_NS = 20  # the divider is 2 after reset


@pytest.fixture
def current() -> Current:
    current = make_pvh_current()
    lapic_glue.write(current, SPURIOUS, 4, 0x1FF)
    return current


def native(current: Current) -> FakeNativeCpu:
    assert isinstance(current.cpu, FakeNativeCpu)
    return current.cpu


def test_a_self_ipi_waits_for_the_cpu_to_take_it(current):
    lapic_glue.write(current, ICR, 4, SELF | 0x40)
    assert native(current).apic_vector == 0x40
    assert pvh(current).lapic.isr == 0
    native(current).take_interrupt()
    assert lapic_glue.sync(current).isr == 1 << 0x40
    lapic_glue.write(current, EOI, 4, 0)
    assert pvh(current).lapic.isr == 0


def test_the_cpu_has_the_most_urgent_one(current):
    for vector in (0x40, 0x80, 0x60):
        lapic_glue.write(current, ICR, 4, SELF | vector)
    taken = []
    while native(current).take_interrupt() is not None:
        taken.append(native(current).accepted)
        lapic_glue.write(current, EOI, 4, 0)
    assert taken == [0x80, 0x60, 0x40]


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [(0x30, 4, 0x50014), (0x30, 2, 0x14), (0x32, 2, 5), (0x32, 1, 5), (0x34, 4, 0), (0xFF0, 4, 0)],
)
def test_a_load_of_a_part(current, offset, size, value):
    assert lapic_glue.read(current, offset, size) == value


@pytest.mark.parametrize(("offset", "size"), [(0x82, 2), (0x80, 1), (0x84, 4)])
def test_only_a_whole_register_is_stored(current, offset, size):
    lapic_glue.write(current, offset, size, 0x40)
    assert lapic_glue.read(current, 0x80, 4) == 0


@pytest.mark.parametrize("base", [0xFEE00100, 0xFEE00D00], ids=["disabled", "x2APIC mode"])
def test_without_a_page_no_memory_is_there(current, base):
    before = pvh(current).lapic.regs[:]
    assert lapic_glue.set_base(current, base)
    lapic_glue.write(current, 0x80, 4, 0x40)
    assert lapic_glue.read(current, 0x30, 4) == 0xFFFFFFFF
    assert lapic_glue.read(current, 0x30, 1) == 0xFF
    assert pvh(current).lapic.regs[8] == before[8]


@pytest.mark.parametrize("base", [0xFEE00900, 0xFEE00100, 0xFEE00D00])
def test_cr8_is_the_class_of_the_task_priority_in_every_mode(current, base):
    assert lapic_glue.set_base(current, base)
    lapic_glue.write_cr8(current, 5)
    assert pvh(current).lapic.regs[8] == 0x50
    pvh(current).lapic.regs[8] = 0xA7
    assert lapic_glue.read_cr8(current) == 0xA


def test_an_interrupt_waits_for_a_lower_task_priority(current):
    lapic_glue.write_cr8(current, 4)
    lapic_glue.assert_vector(current, current.vcpu, 0x40)
    assert native(current).apic_vector is None
    lapic_glue.write_cr8(current, 3)
    assert native(current).apic_vector == 0x40


def start_timer(current: Current, lvt: int, count: int) -> None:
    lapic_glue.write(current, TIMER_LVT, 4, lvt)
    lapic_glue.write(current, TIMER_COUNT, 4, count)


def test_the_timer_is_armed_and_ends_the_run_in_time(current):
    start_timer(current, 0x50, 1000)
    assert current.domain.timers.next_ns() == 1000 * TICK_NS
    assert native(current).limit_ns == 1000 * TICK_NS


def test_a_timer_that_is_due_interrupts(current):
    start_timer(current, 0x50, 1000)
    block(current)
    native(current).now_ns = 1000 * TICK_NS
    assert current.domain.timers.pop_due(native(current).now_ns) == [("lapic", 0)]
    lapic_glue.fire_timer(current, 0)
    assert native(current).apic_vector == 0x50
    assert not current.vcpu.blocked
    assert current.domain.timers.next_ns() is None


def test_a_masked_timer_is_not_armed(current):
    start_timer(current, 1 << 16 | 0x50, 1000)
    assert current.domain.timers.next_ns() is None


def test_an_nmi_to_itself(current):
    lapic_glue.write(current, ICR, 4, NMI | 2 << 18)
    assert native(current).nmi_pending


def test_what_xen_ignores(current):
    for command in (SMI | SELF, STARTUP | SELF | 8, STARTUP | 8):
        lapic_glue.write(current, ICR, 4, command)
    lapic_glue.write(current, ICR2, 4, 9 << 24)  # nobody's ID
    lapic_glue.write(current, ICR, 4, INIT)
    assert native(current).apic_vector is None
    assert not native(current).nmi_pending


def test_an_interrupt_of_an_8259_ends_the_guest(current):
    with pytest.raises(DomainCrash):
        lapic_glue.write(current, ICR, 4, EXTINT | SELF)


def test_msrs_are_for_x2apic_mode(current):
    assert lapic_glue.read_msr(current, 0x803) is Msr.REFUSED
    assert lapic_glue.write_msr(current, 0x80B, 0) is Msr.REFUSED
    assert lapic_glue.set_base(current, 0xFEE00D00)
    assert lapic_glue.read_msr(current, 0x803) == 0x50014
    assert lapic_glue.write_msr(current, 0x83F, 0x40) is None
    assert native(current).apic_vector == 0x40
