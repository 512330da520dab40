"""How a PVH guest hears of events: by a vector that Xen raises, or by one of its local APIC's.

In Xen: arch/x86/hvm/irq.c (hvm_set_callback_via, hvm_assert_evtchn_irq), arch/x86/hvm/hvm.c
"""

from __future__ import annotations

from xenemu.abi.hvm.params import HVM_PARAM_CALLBACK_TYPE_VECTOR
from xenemu.hv.clock import update_wallclock
from xenemu.hv.current import Current
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pvh import lapic_glue
from xenemu.pvh.paging import cpu_of
from xenemu.pvh.state import pvh_domain, pvh_vcpu
from xenemu.x86.flags import IF

FIRST_VECTOR = 0x10  # those below are the CPU's own
TYPE_SHIFT = 56


def set_callback_via(current: Current, via: int) -> None:
    """Set HVM_PARAM_CALLBACK_IRQ.

    Every type but a vector needs an interrupt controller, and a PVH domain has none. Xen then
    changes nothing.
    """
    if via >> TYPE_SHIFT == HVM_PARAM_CALLBACK_TYPE_VECTOR:
        pvh_domain(current).callback_vector = via & 0xFF
        update_upcall(current)
        for vcpu in current.domain.vcpus:
            if vcpu.online:
                assert_upcall(current, vcpu)
    latch_shared_info_width(current)


def latch_shared_info_width(current: Current) -> None:
    """Lay shared_info out for the width of the running code, which a guest's first calls show.

    In Xen: arch/x86/hvm/hvm.c (hvm_latch_shinfo_size)
    """
    current.domain.shared_info_width = current.code_width
    update_wallclock(current.domain)


def update_upcall(current: Current) -> None:
    """Tell the CPU which vector calls the current vcpu, and which byte says that a call is due.

    Xen raises that vector even if the vcpu also has a vector of its local APIC (irq.c:
    hvm_vcpu_has_pending_irq). Guests that use the local APIC's vector set HVM_PARAM_CALLBACK_IRQ to
    another type.
    """
    cpu_of(current).set_upcall(current.vcpu.info, pvh_domain(current).callback_vector)


def assert_upcall(current: Current, vcpu: Vcpu) -> None:
    """Tell a vcpu of events: by its local APIC's vector if it has one, else by making it look."""
    vector = pvh_vcpu(vcpu).upcall_vector
    for observer in current.domain.watch or ():
        how = f"vector {vector:#x} of the local APIC" if vector else "callback vector"
        observer.upcall(current, how)
    if vector:
        lapic_glue.assert_vector(current, vcpu, vector)
    elif vcpu is current.vcpu:
        cpu_of(current).request_interrupt()


def deliver_event(current: Current) -> None:
    """Make the CPU look: the current vcpu's pending byte went up, or may be set."""
    vcpu = current.vcpu
    if vcpu.upcall_raised:
        vcpu.upcall_raised = False
        assert_upcall(current, vcpu)
    if current.domain.memory.bytes[vcpu.info]:
        cpu_of(current).request_interrupt()


def interrupt_due(current: Current) -> bool:
    """Whether the current vcpu would take an interrupt now, were it not for an STI just before.

    In Xen: arch/x86/hvm/irq.c (hvm_local_events_need_delivery)
    """
    cpu = cpu_of(current)
    if cpu.nmi_pending:
        return True
    if not cpu.rflags & IF:
        return False
    upcall = current.domain.memory.bytes[current.vcpu.info]
    return cpu.apic_vector is not None or bool(
        upcall and pvh_domain(current).callback_vector is not None
    )
