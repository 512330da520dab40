"""Press SysRq and a key: `xl sysrq`.

In Xen: tools/libs/light/libxl_domain.c (libxl_send_sysrq); Linux's drivers/xen/manage.c
"""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb

NODE: Final = "control/sysrq"


def press(control: Control, ask: Ask) -> None:
    """Write the key; Linux takes the node's first character."""
    control.write(NODE, check(ask))


def check(ask: Ask) -> str:
    """The key; Refused if it is none."""
    key = ask.text("key")
    if not (len(key) == 1 and key.isascii() and key.isprintable()):
        raise Refused(f"key is {key[:40]!r}, and not one character, such as h for help")
    return key


def taken(control: Control, ask: Ask) -> Answer | None:
    """The guest has emptied the node; Linux writes a NUL there."""
    return None if (control.read(NODE) or "").strip("\0") else {"taken": True}


def lacking(control: Control, ask: Ask) -> str:
    """The guest has left the key where it is."""
    return f"the guest has not taken the key from {NODE}"


VERB: Final = Verb(
    "sysrq",
    "KEY",
    "Press SysRq and KEY: h lists what the guest's kernel knows.",
    press,
    taken,
    lacking,
    fields=("key",),
    check=check,
)
