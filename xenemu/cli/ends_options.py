"""Options that say what becomes of a guest that ends."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from xenemu.errors import UsageError
from xenemu.machine.ends import MAX_RESTARTS, Action, Life
from xenemu.options import parse_count

CHOICES: Final = "destroy|restart|preserve"
OnPoweroff = Annotated[
    Action,
    typer.Option(
        help="What to do when the guest powers off: end the run; boot the same guest again, in the"
        " same run; or keep it as it is, for --control.",
        metavar=CHOICES,
    ),
]
OnReboot = Annotated[
    Action, typer.Option(help="The same for a guest that asks for a reboot.", metavar=CHOICES)
]
OnCrash = Annotated[Action, typer.Option(help="The same for one that crashes.", metavar=CHOICES)]
OnWatchdog = Annotated[
    Action, typer.Option(help="The same for one whose watchdog runs out.", metavar=CHOICES)
]
OnSoftReset = Annotated[
    Action,
    typer.Option(
        help="The same for one that starts another kernel, with kexec or after a panic (kdump);"
        " soft-reset lets it."
    ),
]
MaxRestarts = Annotated[
    str, typer.Option(help="How often the guest is booted again at most.", metavar="N")
]
RESTARTS: Final = str(MAX_RESTARTS)


def life_of(
    poweroff: Action,
    reboot: Action,
    crash: Action,
    watchdog: Action,
    soft_reset: Action,
    max_restarts: str,
) -> Life:
    """What the options say; UsageError."""
    rules = {"poweroff": poweroff, "reboot": reboot, "crash": crash, "watchdog": watchdog}
    for name, action in rules.items():
        if action is Action.SOFT_RESET:
            raise UsageError(f"--on-{name} soft-reset: only --on-soft-reset can be this")
    rules["soft_reset"] = soft_reset
    return Life(rules, parse_count("--max-restarts", max_restarts))
