"""The option that records a run, and what it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xenemu.errors import UsageError
from xenemu.outputs import Outputs

if TYPE_CHECKING:
    from xenemu.recording.recorder import Recorder
    from xenemu.recording.start import Start

Record = Annotated[
    Path | None,
    typer.Option(
        help="Note what comes from outside in this file, which must be new or empty: keys, packets,"
        " the person's time, the end. xenemu replay repeats the run.",
        metavar="FILE",
    ),
]


def begin(
    outputs: Outputs, record: Path | None, gdb: str | None, start: Callable[[], Start]
) -> Recorder | None:
    """What records the run, if it is to be recorded; UsageError if it cannot be."""
    if record is None:
        return None
    if gdb is not None:
        raise UsageError(
            "--record: what gdb does to the guest is in no recording: record without --gdb, and"
            " then xenemu replay --gdb"
        )
    from xenemu.recording.file import Header, Writer  # noqa: PLC0415 (few runs want it)
    from xenemu.recording.recorder import Recorder  # noqa: PLC0415

    header = Header(start=start())
    return Recorder(Writer(outputs.open("--record", record).write, header))
