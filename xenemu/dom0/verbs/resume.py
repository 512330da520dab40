"""Let a guest that has suspended itself go on: in a new domain, or as if it had been called off.

In Xen: tools/libs/light/libxl_domain.c (libxl_domain_resume); xl restore
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.sched import SHUTDOWN_suspend
from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb

WAYS: Final = ("new", "cancel")


def resume(control: Control, ask: Ask) -> None:
    """Say how, to the loop; Refused if the guest is not suspended."""
    how = check(ask)
    if control.domain.shutdown_code != SHUTDOWN_suspend:
        raise Refused("the guest is not suspended; ask it: shutdown suspend")
    control.wish = how


def check(ask: Ask) -> str:
    """How; Refused if there is no such way."""
    return ask.one_of("how", WAYS, WAYS[0])


def resumed(control: Control, ask: Ask) -> Answer | None:
    """A domain goes on."""
    if control.domain.shutdown_code is not None:
        return None
    return {"how": ask.text("how", "new"), "domid": control.domain.domid}


def lacking(control: Control, ask: Ask) -> str:
    """Nobody has resumed it."""
    return "nobody has resumed the guest"


VERB: Final = Verb(
    "resume",
    "[new|cancel]",
    "Let a suspended guest go on, with --on-suspend preserve: in a new domain, or in the same one.",
    resume,
    resumed,
    lacking,
    fields=("how",),
    check=check,
)
