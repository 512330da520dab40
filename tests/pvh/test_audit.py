"""pvh/audit: a local APIC's timer, and what it serves."""

from __future__ import annotations

from fakes import make_pvh_current
from xenemu.pvh import lapic_glue
from xenemu.pvh.audit import audit
from xenemu.pvh.lapic import LVTT, SPIV, SPIV_ENABLED, TMICT

VECTOR = 0x31


def test_a_timer_that_is_not_the_apics_is_noticed() -> None:
    current = make_pvh_current()
    for register, value in ((SPIV, SPIV_ENABLED | 0xFF), (LVTT, VECTOR), (TMICT, 1000)):
        lapic_glue.write(current, register << 4, 4, value)
    assert audit(current.domain) == []
    current.domain.timers.deadlines_ns[lapic_glue.TIMER, 0] += 1
    assert "counts to 20000 ns, and its timer is due at 20001" in audit(current.domain)[0]
    current.domain.timers.deadlines_ns.clear()
    assert "is due at None" in audit(current.domain)[0]


def test_two_interrupts_of_a_class_are_not_served_at_once() -> None:
    current = make_pvh_current()
    lapic = lapic_glue.lapic_of(current.vcpu)
    lapic.isr = 1 << 0x31 | 1 << 0x42
    assert audit(current.domain) == []
    lapic.isr |= 1 << 0x3F
    assert "serves two interrupts of vector 0x3f's class" in audit(current.domain)[0]
