"""``--timeline``, ``--profile`` and ``--memory-map``: files that show what a run looked like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from xenemu.errors import UsageError
from xenemu.image import Image
from xenemu.machine import Machine
from xenemu.options import parse_interval
from xenemu.outputs import Output, Outputs, check_ending
from xenemu.records import dataclass

if TYPE_CHECKING:
    from xenemu.views.profile import Profile
    from xenemu.views.timeline import Writer

JSON: Final = ".json"
SVG: Final = ".svg"
TIMELINES: Final = {
    "Perfetto": (".pftrace", ".perfetto-trace", ".pb"),
    "Chrome's trace events": (JSON,),
}
PROFILES: Final = {
    "speedscope": (JSON,),
    "a flame graph": (SVG,),
    "folded stacks": (".folded", ".txt"),
}
MAPS: Final = {"a picture": (SVG,)}
STANDARD_ERROR: Final = "-"
PANEL: Final = "To look at it"

TimelineTo = Annotated[
    Path | None,
    typer.Option(
        "--timeline",
        help="Write what the guest does by its virtual time to this file, which must be new or"
        " empty: for Perfetto if its name ends in .pftrace (or .perfetto-trace, .pb), as Chrome's"
        " trace events if in .json.",
        metavar="FILE",
        rich_help_panel=PANEL,
    ),
]
TimelineHostTime = Annotated[
    bool,
    typer.Option(
        "--timeline-host-time",
        help="Have this host's time in --timeline, too. The file then differs from run to run.",
        rich_help_panel=PANEL,
    ),
]
ProfileTo = Annotated[
    list[Path] | None,
    typer.Option(
        "--profile",
        help="Write where the guest's vcpus spend their time to this file, which must be new or"
        " empty: for speedscope if its name ends in .json, a flame graph if in .svg, folded stacks"
        " if in .folded or .txt. With -, print the top functions in the end. For several, say it"
        " again.",
        metavar="FILE|-",
        rich_help_panel=PANEL,
    ),
]
ProfileEvery = Annotated[
    str | None,
    typer.Option(
        "--profile-every",
        help="How much virtual time passes from one sample of --profile to the next, 10ms if not"
        " given.",
        metavar="TIME",
        rich_help_panel=PANEL,
    ),
]
MemoryMapTo = Annotated[
    Path | None,
    typer.Option(
        "--memory-map",
        help="Draw what the guest's memory is used as in the end, frame by frame, into this file,"
        " which must be new or empty: an SVG, so its name ends in .svg.",
        metavar="FILE",
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True)
class Viewing:
    """What is asked for, with the files open."""

    timeline: Output | None = None
    host_time: bool = False
    profiles: Sequence[Output] = ()
    prints_profile: bool = False
    every_ns: int | None = None
    memory_map: Output | None = None

    @classmethod
    def parse(
        cls,
        outputs: Outputs,
        timeline: Path | None,
        host_time: bool,
        profiles: Sequence[Path],
        every: str | None,
        memory_map: Path | None,
        gdb: str | None,
    ) -> Viewing | None:
        """What the options ask for, if anything; UsageError if a file cannot be written."""
        if timeline is None and host_time:
            raise UsageError("--timeline-host-time: say where to, with --timeline FILE")
        if not profiles and every is not None:
            raise UsageError("--profile-every: say where to, with --profile FILE")
        if timeline is None and not profiles and memory_map is None:
            return None
        if gdb is not None and (timeline or profiles):
            option = "--timeline" if timeline else "--profile"
            raise UsageError(f"{option}: not with --gdb, where a guest may go back in time")
        every_ns = parse_interval("--profile-every", every) if every is not None else None
        files = [path for path in profiles if str(path) != STANDARD_ERROR]
        for path in files:
            check_ending("--profile", path, PROFILES, ", or say - for standard error")
        if timeline is not None:
            check_ending("--timeline", timeline, TIMELINES)
        if memory_map is not None:
            check_ending("--memory-map", memory_map, MAPS)
        return cls(
            outputs.open("--timeline", timeline) if timeline else None,
            host_time,
            [outputs.open("--profile", path) for path in files],
            len(files) < len(profiles),
            every_ns,
            outputs.open("--memory-map", memory_map) if memory_map else None,
        )

    @property
    def of_one_boot(self) -> str:
        """An option that was given, of what can look at one boot only; empty if none was."""
        if self.timeline is not None:
            return "--timeline"
        return "--profile" if self.profiles or self.prints_profile else ""

    def begin(self, machine: Machine, image: Image) -> Callable[[], str]:
        """Look from now on.

        The function returned ends that, writes the files (OutputError), and says what is to be
        printed.
        """
        title = f"{Path(image.path).name} ({machine.entry.name})"
        ends: list[Callable[[], str]] = []
        if self.timeline is not None:
            ends.append(self._begin_timeline(machine, self.timeline, title))
        if self.profiles or self.prints_profile:
            ends.append(self._begin_profile(machine, image, title))
        if self.memory_map is not None:
            ends.append(_begin_memory_map(machine, self.memory_map, title))
        return lambda: "".join([end() for end in ends])

    def _begin_timeline(self, machine: Machine, output: Output, title: str) -> Callable[[], str]:
        from xenemu.views.timeline import Timeline  # noqa: PLC0415 (few runs want it)

        writer = _writer(output)
        timeline = Timeline(machine, writer, title, self.host_time)

        def end() -> str:
            timeline.close()
            return ""

        return end

    def _begin_profile(self, machine: Machine, image: Image, title: str) -> Callable[[], str]:
        from xenemu.views.profile import EVERY_NS, Sampler  # noqa: PLC0415 (few runs want it)

        forms = [_form(output) for output in self.profiles]
        sampler = Sampler(machine, image, self.every_ns or EVERY_NS)
        machine.sampler = sampler.run

        def end() -> str:
            profile = sampler.profile()
            for output, form in zip(self.profiles, forms, strict=True):
                output.write(form(profile, title).encode())
            return profile.top() if self.prints_profile else ""

        return end


def _begin_memory_map(machine: Machine, output: Output, title: str) -> Callable[[], str]:
    from xenemu.views.memory_map import memory_map  # noqa: PLC0415 (few runs want it)

    def end() -> str:
        at = f"{title}, at {machine.engine.now_ns / 1e9:.3f} s"
        output.write(memory_map(machine.current, at).encode())
        return ""

    return end


def _writer(output: Output) -> Writer:
    if output.name.lower().endswith(JSON):
        from xenemu.views.trace_events import TraceEventWriter  # noqa: PLC0415 (as above)

        return TraceEventWriter(output.write)
    from xenemu.views.perfetto import PerfettoWriter  # noqa: PLC0415 (as above)

    return PerfettoWriter(output.write)


def _form(output: Output) -> Callable[[Profile, str], str]:
    """What writes a profile in the form that a file's name asks for."""
    name = output.name.lower()
    if name.endswith(JSON):
        from xenemu.views.speedscope import speedscope  # noqa: PLC0415 (as above)

        return speedscope
    if name.endswith(SVG):
        from xenemu.views.flame import flame_graph  # noqa: PLC0415 (as above)

        return flame_graph
    return lambda profile, _title: profile.folded()
