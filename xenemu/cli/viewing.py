"""``--timeline``: what a run looked like, in files for tools that show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from xenemu.errors import UsageError
from xenemu.image import Image
from xenemu.machine import Machine
from xenemu.outputs import Output, Outputs

if TYPE_CHECKING:
    from xenemu.views.timeline import Writer

JSON_SUFFIX: Final = ".json"

TimelineTo = Annotated[
    Path | None,
    typer.Option(
        "--timeline",
        help="Write what the guest does by its virtual time to this file, which must be new or"
        " empty: for Perfetto, or as Chrome's trace events if its name ends in .json.",
        metavar="FILE",
        rich_help_panel="To look at it",
    ),
]
TimelineHostTime = Annotated[
    bool,
    typer.Option(
        "--timeline-host-time",
        help="Have this host's time in --timeline, too. The file then differs from run to run.",
        rich_help_panel="To look at it",
    ),
]


@dataclass(frozen=True)
class Viewing:
    """What is asked for, with the files open."""

    timeline: Output | None = None
    is_json: bool = False
    host_time: bool = False

    @classmethod
    def parse(
        cls, outputs: Outputs, timeline: Path | None, host_time: bool, gdb: str | None
    ) -> Viewing | None:
        """What the options ask for, if anything; UsageError if a file cannot be written."""
        if timeline is None:
            if host_time:
                raise UsageError("--timeline-host-time: say where to, with --timeline FILE")
            return None
        if gdb is not None:
            raise UsageError("--timeline: not with --gdb, where a guest may go back in time")
        is_json = timeline.suffix == JSON_SUFFIX
        return cls(outputs.open("--timeline", timeline), is_json, host_time)

    @property
    def option(self) -> str:
        """One of the options that were given."""
        return "--timeline"

    def begin(self, machine: Machine, image: Image) -> Callable[[], None]:
        """Look from now on. The function returned ends that, and writes the files: OutputError."""
        from xenemu.views.timeline import Timeline  # noqa: PLC0415 (few runs want it)

        assert self.timeline is not None
        name = f"{Path(image.path).name} ({machine.entry.name})"
        writer = _writer(self.timeline.write, self.is_json)
        return Timeline(machine, writer, name, self.host_time).close


def _writer(write: Callable[[bytes], None], is_json: bool) -> Writer:
    if is_json:
        from xenemu.views.trace_events import TraceEventWriter  # noqa: PLC0415 (as above)

        return TraceEventWriter(write)
    from xenemu.views.perfetto import PerfettoWriter  # noqa: PLC0415 (as above)

    return PerfettoWriter(write)
