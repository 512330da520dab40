"""Between a vcpu's local APIC, its CPU and the timers.

The CPU takes an interrupt by itself when the guest allows; the APIC hears of it at the next
occasion. In Xen: arch/x86/hvm/vlapic.c, arch/x86/hvm/irq.c
"""

from __future__ import annotations

from typing import Final

from xenemu.errors import DomainCrash
from xenemu.hv import scheduler, waking
from xenemu.hv.cpu import Msr
from xenemu.hv.current import Current
from xenemu.hv.state.vcpu import Vcpu
from xenemu.hv.timers import Owners
from xenemu.pvh.context import after_startup
from xenemu.pvh.lapic import SPIV, TASKPRI, X2APIC_FIRST, Delivery, Ipi, Lapic, destinations
from xenemu.pvh.paging import cpu_of
from xenemu.pvh.state import PvhVcpu, pvh, pvh_domain, pvh_vcpu
from xenemu.x86.paging import PAGE_SHIFT

TIMER = "lapic"  # what a timer's key says: the second half is the vcpu


def lapic_of(vcpu: Vcpu) -> Lapic:
    """A vcpu's local APIC."""
    state = vcpu.arch
    assert isinstance(state, PvhVcpu)
    return state.lapic


def sync(current: Current) -> Lapic:
    """Tell the current vcpu's APIC what its CPU has taken; return the APIC."""
    lapic, cpu = lapic_of(current.vcpu), cpu_of(current)
    accepted = cpu.take_accepted()
    if accepted is not None:
        lapic.accept(accepted)
        if cpu.ended:
            lapic.end()
        for observer in current.watch or ():
            observer.entered(current, f"interrupt {accepted:#x} of the local APIC", None)
    return lapic


def update(current: Current) -> None:
    """Tell the CPU the APIC's next interrupt, and the timers its next deadline."""
    _tell_cpu(current, lapic_of(current.vcpu))
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
    lapic = sync(current) if vcpu is current.vcpu else lapic_of(vcpu)
    lapic.fire_timer(current.cpu.now_ns)
    _kick(current, vcpu, lapic)
    set_timer(current, vcpu)


def assert_vector(current: Current, vcpu: Vcpu, vector: int) -> None:
    """Request an interrupt of a vcpu; it is lost if the vcpu's APIC is not enabled."""
    lapic = sync(current) if vcpu is current.vcpu else lapic_of(vcpu)
    if lapic.enabled:
        lapic.assert_vector(vector)
        _kick(current, vcpu, lapic)


def _kick(current: Current, vcpu: Vcpu, lapic: Lapic) -> None:
    """Wake a vcpu whose APIC has an interrupt for it, and tell the CPU if the vcpu is in it."""
    vector = _tell_cpu(current, lapic) if vcpu is current.vcpu else lapic.pending_vector()
    if vector is not None:
        waking.wake(current.domain, vcpu)


def _tell_cpu(current: Current, lapic: Lapic) -> int | None:
    """Tell the CPU the next interrupt of the current vcpu's APIC, and if it is the only one."""
    cpu, vector = cpu_of(current), lapic.pending_vector()
    cpu.apic_vector = vector
    if vector is not None and lapic.has_only(vector):
        cpu.may_end()
    return vector


def read(current: Current, offset: int, size: int) -> int:
    """A load from the APIC's page: Xen reads aligned 32-bit registers and cuts them.

    Without such a page, as the APIC is disabled or in x2APIC mode, no memory is there.
    """
    lapic = sync(current)
    if lapic.mmio_base is None:
        return (1 << 8 * size) - 1
    value = lapic.read(offset & ~0xF, current.cpu.now_ns) if not offset & 0xC else 0
    return value >> 8 * (offset & 3) & ((1 << 8 * size) - 1)


def write(current: Current, offset: int, size: int, value: int) -> None:
    """A store to the APIC's page: only aligned 32-bit ones do anything."""
    lapic = sync(current)
    if size == 4 and not offset & 0xF and lapic.mmio_base is not None:
        _written(current, offset >> 4, lapic.write(offset, value, current.cpu.now_ns))
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
    _written(current, number - X2APIC_FIRST, ipis)
    update(current)
    return None


def _written(current: Current, register: int, ipis: list[Ipi]) -> None:
    """Do what a write of the current vcpu's APIC leads to."""
    if ipis:
        deliver(current, ipis)
    if register == SPIV:
        vector = pvh(current).upcall_vector
        if vector and current.domain.memory.bytes[current.vcpu.info]:
            # Its upcall was lost if it came while the APIC was disabled.
            assert_vector(current, current.vcpu, vector)


def read_cr8(current: Current) -> int:
    """The class of the task priority, whatever mode the APIC is in."""
    return sync(current).regs[TASKPRI] >> 4 & 0xF


def write_cr8(current: Current, value: int) -> None:
    """Set the class of the task priority. In Xen: vmx_cr_access, vlapic_set_tpr."""
    sync(current).regs[TASKPRI] = value << 4
    update(current)


def set_base(current: Current, value: int) -> bool:
    """WRMSR of IA32_APIC_BASE; False for #GP."""
    done = sync(current).set_apic_base(value)
    update(current)
    return done


def deliver(current: Current, ipis: list[Ipi]) -> None:
    """Deliver inter-processor interrupts; those that reach no vcpu, or that Xen ignores, end here.

    In Xen: arch/x86/hvm/vlapic.c (vlapic_accept_irq)
    """
    if not ipis:
        return
    domain, state = current.domain, pvh_domain(current)
    lapics = [lapic_of(vcpu) for vcpu in domain.vcpus]
    for ipi in ipis:
        for vcpu_id in destinations(ipi, pvh(current).lapic, lapics, state.last_lowest):
            _accept(current, domain.vcpus[vcpu_id], ipi)
            if ipi.kind is Delivery.LOWEST:
                state.last_lowest = vcpu_id
    if domain.reschedule:
        scheduler.give_way(current)


def _accept(current: Current, vcpu: Vcpu, ipi: Ipi) -> None:
    match ipi.kind:
        case Delivery.FIXED | Delivery.LOWEST:
            assert_vector(current, vcpu, ipi.vector)
        case Delivery.NMI:
            send_nmi(current, vcpu)
            if vcpu.initialised and not vcpu.online:
                scheduler.bring_up(current, vcpu)
        case Delivery.INIT if vcpu.initialised:
            current.changed(vcpu, "INIT")
            _reset(current, vcpu)
        case Delivery.STARTUP if not vcpu.initialised:
            current.changed(vcpu, "STARTUP", at=ipi.vector << PAGE_SHIFT)
            pvh_vcpu(vcpu).start = after_startup(ipi.vector)
            vcpu.initialised = True
            scheduler.bring_up(current, vcpu)
        case Delivery.INIT | Delivery.STARTUP:
            current.changed(vcpu, ipi.kind.name, ignored=True)
        case Delivery.EXTINT:
            raise DomainCrash("its local APIC sends an interrupt of the type EXTINT")
        case _:
            pass


def _reset(current: Current, vcpu: Vcpu) -> None:
    """Take a vcpu down until a STARTUP, or a VCPUOP_initialise, brings it up afresh.

    In Xen: arch/x86/hvm/vlapic.c (vlapic_init_sipi_one), common/domain.c (vcpu_reset)
    """
    waking.wake(current.domain, vcpu)
    scheduler.take_down(current, vcpu, "the guest's last vcpu was reset by an INIT")
    vcpu.initialised = False
    lapic_of(vcpu).init()
    set_timer(current, vcpu)


def send_nmi(current: Current, vcpu: Vcpu) -> None:
    """Let a vcpu take an NMI; it wakes the vcpu if that is blocked."""
    pvh_vcpu(vcpu).nmi_pending = True
    waking.wake(current.domain, vcpu)
    if vcpu is current.vcpu:
        update_nmi(current)


def update_nmi(current: Current) -> None:
    """Tell the CPU of an NMI for the current vcpu."""
    state = pvh(current)
    if state.nmi_pending:
        state.nmi_pending = False
        cpu_of(current).request_nmi()
        for observer in current.watch or ():
            observer.entered(current, "NMI", None)


TIMERS: Final[Owners] = {TIMER: fire_timer}
