"""``--explain`` and ``--trace``: what a run tells of a guest while it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

from xenemu.cli.status import Status
from xenemu.cli.terminal import HostTerminal
from xenemu.errors import OutputError, UsageError
from xenemu.explain import Explainer
from xenemu.hv.current import Current
from xenemu.hv.observe import Watch
from xenemu.image import Image
from xenemu.kaslr import MappedCode
from xenemu.outputs import Output, encode
from xenemu.records import dataclass
from xenemu.trace import KINDS, Tracer


class TraceFormat(Enum):
    """How a trace is written."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class Watching:
    """What is asked for: `kinds` of events to trace; `only` those that have this in their name."""

    explain: bool = False
    kinds: tuple[str, ...] = ()
    only: re.Pattern[str] | None = None
    form: TraceFormat = TraceFormat.TEXT

    @classmethod
    def parse(
        cls, explain: bool, trace: str | None, only: str | None, form: TraceFormat, to_file: bool
    ) -> Watching:
        """Check the options; UsageError."""
        kinds = tuple(trace.split(",")) if trace is not None else ()
        for kind in kinds:
            if kind not in KINDS:
                raise UsageError(f"--trace {trace}: {kind!r} is none of {', '.join(KINDS)}")
        given = {
            "--trace-filter": only is not None,
            "--trace-format": form is not TraceFormat.TEXT,
            "--trace-file": to_file,
        }
        for option in (option for option, there in given.items() if there and not kinds):
            raise UsageError(f"{option}: say with --trace what to trace, as in --trace hypercalls")
        try:
            return cls(explain, kinds, re.compile(only) if only is not None else None, form)
        except re.error as error:
            raise UsageError(f"--trace-filter {only!r} is no regular expression: {error}") from None


class Sink:
    """Lines to an output, or to nowhere; if nobody reads the output any more, the run ends.

    With `status`, the output is standard error. On a terminal, the status line then makes room. If
    standard error takes no more, the guest goes on.
    """

    def __init__(
        self, output: Output | None, terminal: HostTerminal, status: Status | None = None
    ) -> None:
        self._output = output
        self._terminal = terminal
        self._status = status

    def write(self, text: str) -> None:
        """Write whole lines at once; OutputError if they cannot be kept."""
        if self._output is None:
            return
        if self._status is not None:
            self._status.make_room()
        try:
            self._terminal.put(self._output, encode(text))
        except OutputError:
            self._output = None
            if self._status is None:
                raise


@contextmanager
def watching(
    asked: Watching, current: Current, load: Callable[[], Image], stderr: Sink, trace: Sink
) -> Iterator[Explainer | None]:
    """Watch a guest for the time of a run; gives the explainer, to be closed after the report."""
    if not asked.explain and not asked.kinds:
        yield None
        return
    explainer = None
    code = MappedCode(load(), current)
    watch = Watch.of(current)
    if asked.explain:
        explainer = Explainer(code, stderr.write)
        watch.add(explainer)
    tracer = Tracer(code, trace.write, asked.kinds, asked.only, asked.form is TraceFormat.JSON)
    if asked.kinds:
        tracer.start(current)
    try:
        yield explainer
    finally:
        tracer.stop()
        if asked.only and not tracer.told:
            names = ", ".join(map(repr, tracer.passed_over)) or "none of any name"
            words = f"--trace-filter {asked.only.pattern!r} is in no event's name; there were"
            stderr.write(f"xenemu: {words} {names}\n")
        if explainer is not None:
            watch.remove(explainer)
