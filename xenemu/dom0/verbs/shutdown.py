"""Ask the guest to end: `xl shutdown`, `xl reboot` and their kin.

The toolstack writes a word into ``control/shutdown``. The guest empties the node, which is its
acknowledgement, and then does what the word says. libxl waits for 60 seconds, and leaves the node
as it is. For a suspend, it also waits until the guest has suspended itself.

In Xen: tools/libs/light/libxl_domain.c (libxl_domain_shutdown, pvcontrol_cb);
docs/misc/xenstore-paths.pandoc
"""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Verb

NODE: Final = "control/shutdown"
SUSPEND: Final = "suspend"
KINDS: Final = ("poweroff", "reboot", "halt", SUSPEND)


def ask_for(control: Control, ask: Ask) -> None:
    """Write the word."""
    control.write(NODE, check(ask))


def check(ask: Ask) -> str:
    """The word; Refused if it is none."""
    return ask.one_of("how", KINDS, KINDS[0])


def acknowledged(control: Control, ask: Ask) -> Answer | None:
    """The guest has emptied the node, or has shut down already; for a suspend, it has done that."""
    if control.domain.shutdown_code is None and (_is_there(control) or _how(ask) == SUSPEND):
        return None
    return {"acknowledged": True}


def _is_there(control: Control) -> bool:
    return bool(control.read(NODE))


def _how(ask: Ask) -> str:
    return ask.text("how", KINDS[0])


def lacking(control: Control, ask: Ask) -> str:
    """What the guest has not done, with the likely reason."""
    how = _how(ask)
    if not _is_there(control):
        return "the guest has acknowledged suspend, and has not suspended itself"
    said = control.read(f"control/feature-{how}")
    hint = "" if said == "1" else f" (nor has it said control/feature-{how})"
    return f"the guest has not acknowledged {how} in {NODE}{hint}"


VERB: Final = Verb(
    "shutdown",
    f"[{'|'.join(KINDS)}]",
    "Ask the guest to power off, reboot or halt, and to acknowledge; or to suspend itself.",
    ask_for,
    acknowledged,
    lacking,
    within_s=60,
    fields=("how",),
    check=check,
)
