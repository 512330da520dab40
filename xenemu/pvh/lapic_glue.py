"""Between a vcpu's local APIC, its CPU and the timers.

The CPU takes an interrupt by itself when the guest allows; the APIC hears of it at the next
occasion. In Xen: arch/x86/hvm/vlapic.c, arch/x86/hvm/irq.c
"""

from __future__ import annotations

from xenemu.hv import scheduler
from xenemu.hv.cpu import Msr
from xenemu.hv.domain import Current
from xenemu.hv.vcpu import Vcpu
from xenemu.pvh.lapic import Delivery, Ipi, Lapic, destinations
from xenemu.pvh.paging import cpu_of
from xenemu.pvh.state import PvhVcpu, pvh

TIMER = "lapic"  # what a timer's key says: the second half is the vcpu


def lapic_of(vcpu: Vcpu) -> Lapic:
    """A vcpu's local APIC."""
    assert isinstance(vcpu.arch, PvhVcpu)
    return vcpu.arch.lapic


def sync(current: Current) -> Lapic:
    """Tell the current vcpu's APIC what its CPU has taken; return the APIC."""
    lapic = pvh(current).lapic
    accepted = cpu_of(current).take_accepted()
    if accepted is not None:
        lapic.accept(accepted)
    return lapic


def update(current: Current) -> None:
    """Tell the CPU the APIC's next interrupt, and the timers its next deadline."""
    lapic = pvh(current).lapic
    cpu_of(current).apic_vector = lapic.pending_vector()
    set_timer(current, current.vcpu)


def set_timer(current: Current, vcpu: Vcpu) -> None:
    """Arm the timer of a vcpu's APIC, if it runs."""
    timers, key = current.domain.timers, (TIMER, vcpu.vcpu_id)
    deadline = lapic_of(vcpu).deadline_ns()
    if deadline is None:
        timers.cancel(key)
    elif timers.deadlines_ns.get(key) != deadline:
        timers.set(key, deadline)
        if timers.next_ns() == deadline:
            current.cpu.limit(deadline)


def fire_timer(current: Current, vcpu_id: int) -> None:
    """A vcpu's APIC timer has expired."""
    vcpu = current.domain.vcpus[vcpu_id]
    lapic = lapic_of(vcpu)
    if vcpu is current.vcpu:
        sync(current)
    lapic.fire_timer(current.cpu.now_ns)
    _kick(current, vcpu)
    set_timer(current, vcpu)


def _kick(current: Current, vcpu: Vcpu) -> None:
    if lapic_of(vcpu).pending_vector() is not None:
        scheduler.wake(current.domain, vcpu)
    if vcpu is current.vcpu:
        update(current)


def read(current: Current, offset: int, size: int) -> int:
    """A load from the APIC's page: Xen reads aligned 32-bit registers and cuts them."""
    lapic = sync(current)
    value = lapic.read(offset & ~0xF, current.cpu.now_ns) if not offset & 0xC else 0
    return value >> 8 * (offset & 3) & ((1 << 8 * size) - 1)


def write(current: Current, offset: int, size: int, value: int) -> None:
    """A store to the APIC's page: only aligned 32-bit ones do anything."""
    lapic = sync(current)
    if size == 4 and not offset & 0xF:
        deliver(current, lapic.write(offset, value, current.cpu.now_ns))
    update(current)


def read_msr(current: Current, number: int) -> int | Msr:
    """RDMSR of an x2APIC register."""
    value = sync(current).read_msr(number, current.cpu.now_ns)
    return Msr.REFUSED if value is None else value


def write_msr(current: Current, number: int, value: int) -> Msr | None:
    """WRMSR of an x2APIC register."""
    ipis = sync(current).write_msr(number, value, current.cpu.now_ns)
    if ipis is None:
        return Msr.REFUSED
    deliver(current, ipis)
    update(current)
    return None


def set_base(current: Current, value: int) -> bool:
    """WRMSR of IA32_APIC_BASE; False for #GP."""
    done = sync(current).set_apic_base(value)
    update(current)
    return done


def deliver(current: Current, ipis: list[Ipi]) -> None:
    """Deliver inter-processor interrupts."""
    vcpus = current.domain.vcpus
    lapics = [lapic_of(vcpu) for vcpu in vcpus]
    for ipi in ipis:
        for vcpu_id in destinations(ipi, pvh(current).lapic, lapics):
            vcpu = vcpus[vcpu_id]
            if ipi.kind in (Delivery.FIXED, Delivery.LOWEST):
                lapics[vcpu_id].assert_vector(ipi.vector)
                _kick(current, vcpu)
            elif ipi.kind is Delivery.NMI and vcpu is current.vcpu:
                cpu_of(current).request_nmi()
