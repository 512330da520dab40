"""Ask the guest to end: `xl shutdown`, `xl reboot` and their kin.

The toolstack writes a word into ``control/shutdown``. The guest empties the node, which is its
acknowledgement, and then does what the word says. libxl waits for 60 seconds, and leaves the node
as it is.

In Xen: tools/libs/light/libxl_domain.c (libxl_domain_shutdown, pvcontrol_cb);
docs/misc/xenstore-paths.pandoc
"""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Verb

NODE: Final = "control/shutdown"
KINDS: Final = ("poweroff", "reboot", "halt", "suspend")


def ask_for(control: Control, ask: Ask) -> None:
    """Write the word."""
    control.write(NODE, ask.one_of("how", KINDS, "poweroff"))


def acknowledged(control: Control, ask: Ask) -> Answer | None:
    """The guest has emptied the node, or has shut down already."""
    if control.read(NODE) and control.domain.shutdown_code is None:
        return None
    return {"acknowledged": True}


def lacking(control: Control, ask: Ask) -> str:
    """What the guest has not done, with the likely reason."""
    how = ask.text("how", "poweroff")
    said = control.read(f"control/feature-{how}")
    hint = "" if said == "1" else f" (nor has it said control/feature-{how})"
    return f"the guest has not acknowledged {how} in {NODE}{hint}"


VERB: Final = Verb(
    "shutdown",
    f"[{'|'.join(KINDS)}]",
    "Ask the guest to power off, reboot, halt or suspend itself, and wait until it acknowledges.",
    ask_for,
    acknowledged,
    lacking,
    within_s=60,
    fields=("how",),
)
