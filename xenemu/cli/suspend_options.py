"""The options of what becomes of a guest that suspends itself, and of one that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OnSuspend = Annotated[
    str,
    typer.Option(
        help="What to do when the guest has suspended itself: end the run; resume it, in a new"
        " domain with other frames, events and backends; cancel, so that the same domain goes on;"
        " preserve it until --control says which of the two; or save it to a file, which must be"
        " new or empty, as xl save does, and end the run.",
        metavar="end|resume|cancel|preserve|save=FILE",
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
