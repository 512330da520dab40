"""How a PVH guest hears of events: by a vector that Xen raises, or by one of its local APIC's.

In Xen: arch/x86/hvm/irq.c (hvm_set_callback_via, hvm_assert_evtchn_irq), arch/x86/hvm/hvm.c
"""

from __future__ import annotations

from xenemu.abi.hvm.params import HVM_PARAM_CALLBACK_TYPE_VECTOR
from xenemu.hv.domain import Current
from xenemu.pvh import lapic_glue
from xenemu.pvh.paging import cpu_of
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
    update_upcall(current)


def update_upcall(current: Current) -> None:
    """Tell the CPU by which vector, and on which byte, the current vcpu is called."""
    vector = None if pvh(current).upcall_vector else pvh_domain(current).callback_vector
    cpu_of(current).set_upcall(current.vcpu.info, vector)


def deliver_event(current: Current) -> None:
    """Make the CPU look: the current vcpu's pending byte went up, or may be set."""
    vcpu, state = current.vcpu, pvh(current)
    if state.upcall_vector:
        if vcpu.upcall_raised:
            lapic_glue.sync(current).assert_vector(state.upcall_vector)
            lapic_glue.update(current)
    elif current.domain.memory.bytes[vcpu.info]:
        cpu_of(current).request_interrupt()
    vcpu.upcall_raised = False
