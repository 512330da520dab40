"""What xl does to a machine's domain when it has shut itself down, and lives on."""

from __future__ import annotations

from xenemu.dom0 import renewal
from xenemu.machine.core import Core


def soft_reset(machine: Core) -> None:
    """Renew all but memory and registers, as a kernel that starts another one asks for.

    DomainCrash: the guest's own grants keep dom0 from its rings. ValueError: a PV guest's domain
    cannot be reset (XEN_DOMCTL_soft_reset: EINVAL).
    """
    domain, store = machine.domain, machine.host.store
    reset = machine.personality.soft_reset
    if reset is None:
        raise ValueError("a PV domain has no soft reset")
    known = renewal.release(domain, store)
    reset(machine.current)
    renewal.connect(domain, known, store)
