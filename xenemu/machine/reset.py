"""A soft reset, as xl does it: a domain is renewed around its memory.

A kernel asks for it before it starts another one, with kexec or after a panic (kdump).

In Xen: tools/libs/light/libxl_create.c (domain_soft_reset)
"""

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
