"""Audit a PVH domain: each local APIC's timer is right, and it serves what a CPU would take."""

from __future__ import annotations

from collections.abc import Iterator

from xenemu.hv.audit import audit as audit_domain
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.timers import NEVER_NS
from xenemu.pvh.lapic_glue import TIMER, lapic_of

CLASS_BITS = 4  # of a vector, below its priority class


def audit(domain: Domain) -> list[str]:
    """A sentence for each thing that is not as it should be; none if all is well."""
    return [*audit_domain(domain), *_lapics(domain)]


def _lapics(domain: Domain) -> Iterator[str]:
    """A timer is armed as the registers say, and one interrupt of a class is in service."""
    for vcpu in domain.vcpus:
        who, lapic = f"the local APIC of vcpu {vcpu.vcpu_id}", lapic_of(vcpu)
        wanted = lapic.deadline_ns()
        armed = domain.timers.deadlines_ns.get((TIMER, vcpu.vcpu_id))
        if armed != wanted and not (armed is None and wanted is not None and wanted >= NEVER_NS):
            yield f"{who} counts to {wanted} ns, and its timer is due at {armed}"
        in_service = lapic.isr
        while in_service:
            vector = in_service.bit_length() - 1
            in_service ^= 1 << vector
            if in_service and in_service.bit_length() - 1 >> CLASS_BITS == vector >> CLASS_BITS:
                yield f"{who} serves two interrupts of vector {vector:#x}'s class"
