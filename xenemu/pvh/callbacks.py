"""How a PVH guest hears of events: by a vector that Xen raises, or by one of its local APIC's.

In Xen: arch/x86/hvm/irq.c (hvm_set_callback_via, hvm_assert_evtchn_irq), arch/x86/hvm/hvm.c
"""

from __future__ import annotations

from xenemu.abi.hvm.params import HVM_PARAM_CALLBACK_TYPE_VECTOR
from xenemu.hv.clock import update_wallclock
from xenemu.hv.domain import Current
from xenemu.pvh import lapic_glue
from xenemu.pvh.paging import code_width, cpu_of
from xenemu.pvh.state import pvh, pvh_domain

FIRST_VECTOR = 0x10  # those below are the CPU's own
TYPE_SHIFT = 56


def set_callback_via(current: Current, via: int) -> None:
    """Set HVM_PARAM_CALLBACK_IRQ: only the type that names a vector does anything here."""
    # DIVERGES: a GSI or a PCI interrupt is accepted and never raised, as there is no interrupt
    # controller that it could go to.
    vector = None
    if via >> TYPE_SHIFT == HVM_PARAM_CALLBACK_TYPE_VECTOR and via & 0xFF >= FIRST_VECTOR:
        vector = via & 0xFF
    pvh_domain(current).callback_vector = vector
    latch_shared_info_width(current)
    update_upcall(current)


def latch_shared_info_width(current: Current) -> None:
    """Lay shared_info out for the code that runs: a guest's first calls show what it is.

    In Xen: arch/x86/hvm/hvm.c (hvm_latch_shinfo_size)
    """
    current.domain.shared_info_width = code_width(current)
    update_wallclock(current.domain)


def update_upcall(current: Current) -> None:
    """Tell the CPU by which vector, and on which byte, the current vcpu is called.

    Xen raises that vector even if the vcpu has one of its local APIC's, too (irq.c:
    hvm_vcpu_has_pending_irq); guests with the latter set HVM_PARAM_CALLBACK_IRQ to another type.
    """
    cpu_of(current).set_upcall(current.vcpu.info, pvh_domain(current).callback_vector)


def deliver_event(current: Current) -> None:
    """Make the CPU look: the current vcpu's pending byte went up, or may be set."""
    vcpu, state = current.vcpu, pvh(current)
    if state.upcall_vector and vcpu.upcall_raised:
        lapic_glue.sync(current).assert_vector(state.upcall_vector)
        lapic_glue.update(current)
    if current.domain.memory.bytes[vcpu.info]:
        cpu_of(current).request_interrupt()
    vcpu.upcall_raised = False
