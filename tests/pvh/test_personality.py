"""pvh/personality: the state that docs/misc/pvh.pandoc promises, and libxenguest makes."""

from __future__ import annotations

from fakes import FakeNativeCpu, make_pvh_current
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pvh import lapic_glue
from xenemu.pvh.personality import enter, leave, start_vcpu
from xenemu.pvh.state import StartState, pvh, pvh_domain, pvh_vcpu

FLAT_CODE = Segment(0, 0, 0xFFFFFFFF, 0x00C09B00)
FLAT_DATA = Segment(0, 0, 0xFFFFFFFF, 0x00C09300)


def started() -> FakeNativeCpu:
    current = make_pvh_current()
    pvh(current).entry = StartState(0x1000040, 0x2345000)
    cpu = current.cpu
    assert isinstance(cpu, FakeNativeCpu)
    cpu.regs[:] = [0xDEAD] * 16
    cpu.rflags = 0x202
    start_vcpu(current)
    return cpu


def test_ebx_leads_to_start_info_and_all_else_is_0():
    cpu = started()
    assert cpu.rip == 0x1000040
    assert cpu.regs[Reg.RBX] == 0x2345000
    assert sum(cpu.regs) == 0x2345000


def test_interrupts_and_traps_are_off():
    assert started().rflags == 0x2


def test_segments_are_flat():
    cpu = started()
    assert cpu.segment(Seg.CS) == FLAT_CODE
    assert [cpu.segment(which) for which in (Seg.DS, Seg.ES, Seg.SS)] == [FLAT_DATA] * 3
    assert [cpu.segment(which) for which in (Seg.FS, Seg.GS)] == [Segment(0)] * 2


def test_the_task_register_is_loaded_and_no_table_is():
    cpu = started()
    assert cpu.segment(Seg.TR) == Segment(0, 0, 0x67, 0x8B00)
    assert [cpu.segment(which).limit for which in (Seg.LDTR, Seg.GDTR, Seg.IDTR)] == [0, 0, 0]


def test_nobody_calls_for_events_yet():
    assert started().upcall is not None
    assert started().upcall[1] is None


def with_apics_on(current: Current) -> FakeNativeCpu:
    for vcpu in current.domain.vcpus:
        pvh_vcpu(vcpu).lapic.write(0xF0, 0x1FF, 0)
    cpu = current.cpu
    assert isinstance(cpu, FakeNativeCpu)
    return cpu


def test_what_a_cpu_took_is_known_to_the_apic_of_who_leaves():
    current = make_pvh_current(vcpus=2)
    cpu, (first, second) = with_apics_on(current), current.domain.vcpus
    lapic_glue.assert_vector(current, first, 0x40)
    assert cpu.take_interrupt() == 0x40
    leave(current)
    current.vcpu = second
    enter(current)
    lapic_glue.sync(current)
    assert (pvh_vcpu(first).lapic.isr, pvh_vcpu(second).lapic.isr) == (1 << 0x40, 0)


def test_a_cpu_hears_of_what_waited_for_who_enters():
    current = make_pvh_current(vcpus=2)
    cpu, (_, second) = with_apics_on(current), current.domain.vcpus
    pvh_domain(current).callback_vector = 0xF3
    lapic_glue.assert_vector(current, second, 0x50)
    assert cpu.apic_vector is None
    leave(current)
    current.vcpu = second
    enter(current)
    assert (cpu.apic_vector, cpu.upcall) == (0x50, (second.info, 0xF3))
