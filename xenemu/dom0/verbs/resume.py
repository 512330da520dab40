"""Let a guest that has suspended itself go on: in a new domain, or as if it had been called off.

In Xen: tools/libs/light/libxl_domain.c (libxl_domain_resume); xl restore
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.sched import SHUTDOWN_suspend
from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb

WAYS: Final = ("new", "cancel")


def resume(control: Control, ask: Ask) -> Answer:
    """Say how, to the loop; Refused if the guest is not suspended."""
    how = ask.one_of("how", WAYS, "new")
    if control.domain.shutdown_code != SHUTDOWN_suspend:
        raise Refused("the guest is not suspended; ask it: shutdown suspend")
    control.wish = how
    return {"how": how}


VERB: Final = Verb(
    "resume",
    "[new|cancel]",
    "Let a suspended guest go on, with --on-suspend preserve: in a new domain, or in the same one.",
    resume,
    fields=("how",),
)
