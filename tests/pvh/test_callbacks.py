"""pvh/callbacks: events interrupt by Xen's vector while they are pending, or by the APIC's once."""

from __future__ import annotations

import pytest

from fakes import FakeNativeCpu, enter_long_mode, make_pvh_current
from xenemu.hv import shared_info
from xenemu.hv.current import Current
from xenemu.pvh import lapic_glue
from xenemu.pvh.callbacks import deliver_event, interrupt_due, set_callback_via
from xenemu.pvh.state import pvh, pvh_domain
from xenemu.x86.flags import IF

VECTOR, APIC_VECTOR = 0xF3, 0xE3
BY_VECTOR = 2 << 56 | VECTOR
SPURIOUS = 0xF0


@pytest.fixture
def current() -> Current:
    return make_pvh_current()


def native(current: Current) -> FakeNativeCpu:
    assert isinstance(current.cpu, FakeNativeCpu)
    return current.cpu


def raise_event(current: Current) -> None:
    shared_info.mark_events_pending(current.domain, current.vcpu)
    deliver_event(current)


def enable_apic(current: Current) -> None:
    lapic_glue.write(current, SPURIOUS, 4, 0x1FF)


def test_the_cpu_learns_the_vector_and_looks(current):
    set_callback_via(current, BY_VECTOR)
    assert native(current).upcall == (current.vcpu.info, VECTOR)
    assert native(current).interrupt_requests == 1


@pytest.mark.parametrize("via", [0, 1, 9, 1 << 56 | 3, 3 << 56, 0xFF << 56 | VECTOR])
def test_only_a_vector_replaces_a_vector(current, via):
    set_callback_via(current, BY_VECTOR)
    set_callback_via(current, via)
    assert pvh_domain(current).callback_vector == VECTOR


def test_even_the_cpus_own_vectors_can_be_had(current):
    set_callback_via(current, 2 << 56 | 3)
    assert native(current).upcall == (current.vcpu.info, 3)


def test_shared_info_has_the_width_of_the_code_that_sets_it(current):
    set_callback_via(current, BY_VECTOR)
    assert current.domain.shared_info_width == 4
    enter_long_mode(current, 0)
    set_callback_via(current, 0)
    assert current.domain.shared_info_width == 8


def test_a_pending_byte_makes_the_cpu_look(current):
    set_callback_via(current, BY_VECTOR)
    before = native(current).interrupt_requests
    deliver_event(current)
    assert native(current).interrupt_requests == before
    raise_event(current)
    deliver_event(current)
    assert native(current).interrupt_requests > before + 1, "still pending"


def test_the_apics_vector_comes_once(current):
    pvh(current).upcall_vector = APIC_VECTOR
    enable_apic(current)
    raise_event(current)
    assert native(current).take_interrupt() == APIC_VECTOR
    deliver_event(current)
    assert native(current).apic_vector is None
    assert lapic_glue.sync(current).isr == 1 << APIC_VECTOR


def test_an_apic_that_is_off_loses_the_upcall_until_it_is_on(current):
    pvh(current).upcall_vector = APIC_VECTOR
    raise_event(current)
    assert pvh(current).lapic.irr == 0
    enable_apic(current)
    assert native(current).apic_vector == APIC_VECTOR


def test_an_apic_that_comes_on_with_nothing_pending_says_nothing(current):
    pvh(current).upcall_vector = APIC_VECTOR
    enable_apic(current)
    assert native(current).apic_vector is None


def test_what_ends_a_wait(current):
    cpu = native(current)
    assert not interrupt_due(current)
    current.domain.memory.bytes[current.vcpu.info] = 1
    cpu.rflags |= IF
    assert not interrupt_due(current), "nothing says by which vector"
    set_callback_via(current, BY_VECTOR)
    assert interrupt_due(current)
    cpu.rflags &= ~IF
    assert not interrupt_due(current)
    cpu.apic_vector = 0x40
    assert not interrupt_due(current)
    cpu.nmi_pending = True
    assert interrupt_due(current)


def test_an_apic_interrupt_ends_a_wait(current):
    native(current).rflags |= IF
    native(current).apic_vector = 0x40
    assert interrupt_due(current)
