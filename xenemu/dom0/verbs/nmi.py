"""Send a vcpu an NMI: `xl trigger DOMAIN nmi`.

In Xen: arch/x86/domctl.c (XEN_DOMCTL_sendtrigger)
"""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb


def send(control: Control, ask: Ask) -> Answer:
    """Send it. A PV guest's vcpu without a handler for it loses it."""
    number, vcpus = ask.number("vcpu", 0), control.domain.vcpus
    if number >= len(vcpus):
        raise Refused(f"there is no vcpu {number}; there are {len(vcpus)}")
    if not vcpus[number].online:
        raise Refused(f"vcpu {number} is down")
    control.personality.send_nmi(control.current, vcpus[number])
    return {"vcpu": number}


VERB: Final = Verb(
    "nmi",
    "[VCPU]",
    "Send a vcpu, or vcpu 0, an NMI.",
    send,
    fields=("vcpu",),
    check=lambda ask: ask.number("vcpu", 0),
)
