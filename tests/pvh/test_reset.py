"""pvh/reset: which triple faults are resets."""

from __future__ import annotations

import pytest

from fakes import enter_long_mode, make_pvh_current
from xenemu.abi.hvm.params import HVM_PARAM_TRIPLE_FAULT_REASON
from xenemu.abi.sched import SHUTDOWN_crash, SHUTDOWN_reboot
from xenemu.hv.cpu import Delivered, Event, Seg, Segment
from xenemu.pvh.exits import PvhExits, TripleFault
from xenemu.pvh.state import pvh_domain

CODE, IDT = 0x20000, 0x21000
LIDT = bytes.fromhex("0f015df0")  # lidt -0x10(%ebp)
LIDT_AT = bytes.fromhex("0f011d00000200")  # lidt 0x20000
NOPS = b"\x90" * 32
INT3, INT_80 = Delivered(Event.INT_N, 3), Delivered(Event.INT_N, 0x80)
DIVISION, UNDEFINED, PAGE_FAULT = (Delivered(Event.EXCEPTION, vector) for vector in (0, 6, 14))
INTERRUPT = Delivered(Event.INTERRUPT)


@pytest.fixture
def exits():
    return PvhExits(make_pvh_current())


def load_idt(exits, limit, gates=b"\x8e"):
    memory = exits.current.domain.memory
    memory.write(IDT, bytes(0x800))
    memory.write(IDT + 14 * 8, gates)
    exits.current.cpu.set_segment(Seg.IDTR, Segment(0, IDT if limit else 0, limit))


def triple_fault(exits, before, first):
    """Meet a triple fault that `first` began; `before` is the code that leads there."""
    current = exits.current
    current.domain.memory.write(CODE, before + NOPS)
    current.cpu.rip = CODE + len(before)
    current.cpu.triple_fault, current.cpu.delivered = True, first
    exits.stopped()


@pytest.mark.parametrize("trap", [INT3, INT_80, DIVISION])
@pytest.mark.parametrize("limit", [0, 0x7FF])
def test_a_trap_without_gates_where_there_were_some_is_a_reset(exits, trap, limit):
    load_idt(exits, 0x7FF)
    exits.stopped()
    load_idt(exits, limit, gates=b"")
    triple_fault(exits, NOPS, trap)
    assert exits.current.domain.shutdown_code == SHUTDOWN_reboot
    assert exits.current.domain.shutdown_why == "the guest reset itself by a triple fault"


@pytest.mark.parametrize("lidt", [LIDT, LIDT_AT])
def test_a_trap_right_after_lidt_is_a_reset(exits, lidt):
    triple_fault(exits, NOPS + lidt, INT3)
    assert exits.current.domain.shutdown_code == SHUTDOWN_reboot


@pytest.mark.parametrize(
    ("before", "first"),
    [
        (NOPS, INT3),  # into the padding between functions, before there is an IDT
        (NOPS, UNDEFINED),  # a BUG(), as early
        (NOPS + LIDT + NOPS, INT3),
        (NOPS + LIDT, PAGE_FAULT),
    ],
)
def test_a_fault_before_there_is_an_idt_is_none(exits, before, first):
    exits.stopped()
    with pytest.raises(TripleFault, match="the limit 0x0"):
        triple_fault(exits, before, first)
    assert exits.current.domain.shutdown_code == SHUTDOWN_reboot  # as Xen has it


def test_a_fault_with_the_gates_there_is_none(exits):
    load_idt(exits, 0x7FF)
    exits.stopped()
    with pytest.raises(TripleFault):
        triple_fault(exits, LIDT, INT3)


@pytest.mark.parametrize("first", [UNDEFINED, PAGE_FAULT, INTERRUPT])
@pytest.mark.parametrize("before", [NOPS, b"\xcc" * 16])  # also after padding
def test_a_fault_without_gates_is_none(exits, first, before):
    load_idt(exits, 0x7FF)
    exits.stopped()
    load_idt(exits, 0)
    with pytest.raises(TripleFault):
        triple_fault(exits, before, first)


def test_an_idt_that_cannot_be_read_was_not_emptied(exits):
    load_idt(exits, 0x7FF)
    exits.stopped()
    exits.current.cpu.set_segment(Seg.IDTR, Segment(0, 0xF000_0000, 0x7FF))
    with pytest.raises(TripleFault):
        triple_fault(exits, NOPS, INT3)


def test_an_idt_that_was_never_filled_is_none(exits):
    load_idt(exits, 0x7FF, gates=b"")
    exits.stopped()
    with pytest.raises(TripleFault):
        triple_fault(exits, NOPS, INT3)


def test_code_that_cannot_be_read_is_no_lidt(exits):
    enter_long_mode(exits.current, 0x30000)
    exits.current.cpu.rip = (1 << 64) - 1
    exits.current.cpu.triple_fault, exits.current.cpu.delivered = True, INT3
    with pytest.raises(TripleFault):
        exits.stopped()


def test_the_reason_is_the_toolstacks(exits):
    pvh_domain(exits.current).params[HVM_PARAM_TRIPLE_FAULT_REASON] = SHUTDOWN_crash
    triple_fault(exits, LIDT, INT3)
    assert exits.current.domain.shutdown_code == SHUTDOWN_crash
