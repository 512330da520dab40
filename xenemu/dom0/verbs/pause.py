"""Let no vcpu run: `xl pause`. The guest's time passes, and its timers come due.

In Xen: common/domain.c (domain_pause_by_systemcontroller)
"""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb
from xenemu.hv import scheduler


def pause(control: Control, ask: Ask) -> Answer:
    """Pause the domain; Refused if it is paused."""
    if control.domain.paused:
        raise Refused("the guest is paused already")
    scheduler.pause(control.current)
    control.say("pause")
    return {}


VERB: Final = Verb("pause", "", "Stop all vcpus, until unpause.", pause)
