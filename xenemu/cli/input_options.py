"""Options that say what is typed at a guest's console, and when; and limits of the guest's time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xenemu.cli.command import order_of
from xenemu.cli.expect import Expectations
from xenemu.errors import UsageError

Send = Annotated[
    list[str] | None,
    typer.Option(
        help="Type this once the console has shown the --expect before it; \\n is a line end. All"
        " --expect then count in their order, and after a --send at the end, the run goes on.",
        metavar="TEXT",
    ),
]
Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        help="Type what this script says, and not what comes on standard input: lines of expect"
        " REGEX, send TEXT, sendline TEXT, at TIME and wait TIME, in the guest's time.",
        metavar="FILE",
    ),
]
VirtualTimeout = Annotated[
    str | None,
    typer.Option(
        help="Give up after this many seconds of the guest's time: at the same instruction in"
        " every run.",
        metavar="SECONDS",
    ),
]
QuietTimeout = Annotated[
    str | None,
    typer.Option(
        help="Give up after this many seconds of the guest's time in which it prints nothing.",
        metavar="SECONDS",
    ),
]


def expectations_of(
    context: Any, expect: Sequence[str] | None, send: Sequence[str] | None, file: Path | None
) -> Expectations:
    """What the console must show, and what is typed then; UsageError."""
    if not send and file is None:
        return Expectations(expect or ())
    from xenemu.cli.script import pairs, read_script  # noqa: PLC0415 (few runs want it)

    if not send:
        assert file is not None
        return Expectations(expect or (), read_script("--input", file))
    if file is not None:
        raise UsageError(f"--send: {file} says what is typed; put it there")
    return Expectations((), pairs(expect or (), send, order_of(context)))
