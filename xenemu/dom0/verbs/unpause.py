"""Let the vcpus run again: `xl unpause`.

In Xen: common/domain.c (domain_unpause_by_systemcontroller)
"""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb
from xenemu.hv import scheduler


def unpause(control: Control, ask: Ask) -> Answer:
    """Unpause the domain; Refused if it is not paused."""
    if not control.domain.paused:
        raise Refused("the guest is not paused")
    scheduler.unpause(control.current)
    control.say("unpause")
    return {}


VERB: Final = Verb("unpause", "", "Let the vcpus run again.", unpause)
