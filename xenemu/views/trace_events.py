"""Chrome's trace events, as JSON: what chrome://tracing, Perfetto and speedscope read.

A time is in microseconds, with the nanoseconds after the point. A track is what the format calls a
thread, and all belong to one process.

Chrome: the document "Trace Event Format"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

Details = Mapping[str, int | str]

Kind = tuple[int, str, Details | None]

CHUNK: Final = 1 << 20  # characters that are written at once
PID: Final = 1


class TraceEventWriter:
    """Writes tracks with slices, instants and counters as trace events; times are in ns."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._pieces = ['{"displayTimeUnit": "ns", "traceEvents": [\n']
        self._size = 0
        self._tracks = 0
        self._counters: dict[int, str] = {}
        self._separator = ""

    def process(self, name: str) -> int:
        """The track that all others belong to."""
        self._tell({"ph": "M", "name": "process_name", "pid": PID, "args": {"name": name}})
        return 0

    def track(self, name: str, parent: int, unit: str | None = None) -> int:
        """A new track; with `unit`, of a counter. Tracks are shown in the order of their making."""
        self._tracks += 1
        if unit is not None:
            self._counters[self._tracks] = f"{name}, {unit}"
            return self._tracks
        of: dict[str, object] = {"ph": "M", "pid": PID, "tid": self._tracks}
        self._tell({**of, "name": "thread_name", "args": {"name": name}})
        self._tell({**of, "name": "thread_sort_index", "args": {"sort_index": self._tracks}})
        return self._tracks

    def begin(self, track: int, at_ns: int, name: str, details: Details | None = None) -> None:
        """A slice begins."""
        self._event(at_ns, {"ph": "B", "name": name}, track, details)

    def end(self, track: int, at_ns: int) -> None:
        """The slice that began last ends."""
        self._event(at_ns, {"ph": "E"}, track, None)

    def instant(self, track: int, at_ns: int, name: str, details: Details | None = None) -> None:
        """Something happens."""
        self._event(at_ns, {"ph": "i", "s": "t", "name": name}, track, details)

    def kind(self, track: int, name: str, details: Details | None = None) -> Kind:
        """Slices that differ in their times alone, for `slice`."""
        return track, name, details

    def slice(self, kind: Kind, at_ns: int, until_ns: int) -> None:
        """A slice that contains no other."""
        track, name, details = kind
        times = {"ph": "X", "name": name, "dur": (until_ns - at_ns) / 1000}
        self._event(at_ns, times, track, details)

    def count(self, track: int, at_ns: int, value: float) -> None:
        """A counter has a value from now on."""
        name = self._counters[track]
        self._event(at_ns, {"ph": "C", "name": name}, track, {"value": value})

    def close(self) -> None:
        """Write what is not yet written, and the end."""
        self._pieces.append("\n]}\n")
        self._flush()

    def _event(
        self,
        at_ns: int,
        event: dict[str, object],
        track: int,
        details: Mapping[str, int | str | float] | None,
    ) -> None:
        event |= {"pid": PID, "tid": track, "ts": at_ns / 1000}
        if details:
            event["args"] = dict(details)
        self._tell(event)

    def _tell(self, event: Mapping[str, object]) -> None:
        text = self._separator + json.dumps(event)
        self._separator = ",\n"
        self._pieces.append(text)
        self._size += len(text)
        if self._size > CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._write("".join(self._pieces).encode())
        self._pieces.clear()
        self._size = 0
