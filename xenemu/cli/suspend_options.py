"""The options of what becomes of a guest that suspends itself, and of one that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xenemu.cli.completing import among
from xenemu.options import parse_nanoseconds
from xenemu.outputs import Outputs

if TYPE_CHECKING:
    from xenemu.cli.suspending import Suspending

OnSuspend = Annotated[
    str,
    typer.Option(
        help="What to do when the guest has suspended itself: end the run; resume it, in a new"
        " domain with other frames, events and backends; cancel, so that the same domain goes on;"
        " preserve it until --control says which of the two; or save it to a file, which must be"
        " new or empty, as xl save does, and end the run.",
        metavar="end|resume|cancel|preserve|save=FILE",
        autocompletion=among(("end", "resume", "cancel", "preserve", "save=")),
        rich_help_panel="The life of the guest",
    ),
]
SuspendedFor = Annotated[
    str,
    typer.Option(
        help="How long a guest is away until it is resumed or restored, as its host's clocks tell"
        " it, as in 90s.",
        metavar="TIME",
    ),
]
Restore = Annotated[
    Path | None,
    typer.Option(
        help="Do not boot KERNEL, but go on with the guest that --on-suspend save=FILE, or xl save,"
        " has kept in this file. KERNEL is what it was booted from; give it the same disks,"
        " networks and shares.",
        metavar="FILE",
    ),
]


def parse_away(text: str) -> int:
    """What --suspended-for says, in nanoseconds; UsageError."""
    return parse_nanoseconds("--suspended-for", text.removesuffix("s"))


def suspending_of(outputs: Outputs, on_suspend: str, away_ns: int) -> Suspending | None:
    """What --on-suspend asks for, if not to end the run; UsageError."""
    if on_suspend == "end":
        return None
    from xenemu.cli.suspending import Suspending  # noqa: PLC0415 (few runs want it)

    return Suspending.parse(outputs, on_suspend, away_ns)
