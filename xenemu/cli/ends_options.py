"""Options that say what becomes of a guest that ends."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from xenemu.machine.ends import MAX_RESTARTS, Action, Life
from xenemu.options import parse_count

OnPoweroff = Annotated[
    Action,
    typer.Option(
        help="What to do when the guest powers off: end the run; boot the same guest again, in the"
        " same run; or keep it as it is, for --control."
    ),
]
OnReboot = Annotated[Action, typer.Option(help="The same for a guest that asks for a reboot.")]
OnCrash = Annotated[Action, typer.Option(help="The same for one that crashes.")]
OnWatchdog = Annotated[Action, typer.Option(help="The same for one whose watchdog runs out.")]
MaxRestarts = Annotated[
    str, typer.Option(help="How often the guest is booted again at most.", metavar="N")
]
RESTARTS: Final = str(MAX_RESTARTS)


def life_of(
    poweroff: Action, reboot: Action, crash: Action, watchdog: Action, max_restarts: str
) -> Life:
    """What the options say; UsageError."""
    rules = {"poweroff": poweroff, "reboot": reboot, "crash": crash, "watchdog": watchdog}
    return Life(rules, parse_count("--max-restarts", max_restarts))
