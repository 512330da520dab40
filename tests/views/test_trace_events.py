"""Chrome's trace events: JSON that has every event once, in order."""

from __future__ import annotations

import json

from xenemu.views import trace_events
from xenemu.views.trace_events import TraceEventWriter


def test_each_kind_of_event_has_its_letter_and_microseconds() -> None:
    data = bytearray()
    writer = TraceEventWriter(data.extend)
    process = writer.process("a guest")
    track = writer.track("vcpu 0", process)
    counter = writer.track("host CPU", process, "s")
    writer.begin(track, 1_500, "call", {"count": 3})
    writer.instant(track, 2_000, "EINVAL")
    writer.end(track, 2_001)
    writer.slice(writer.kind(track, "yield", {"n": 1}), 3_000, 3_250)
    writer.count(counter, 4_000, 0.5)
    writer.close()
    named, *events = (
        {key: value for key, value in event.items() if key != "pid"}
        for event in json.loads(data)["traceEvents"]
        if event["name" if "name" in event else "ph"] != "thread_sort_index"
    )
    assert named == {"ph": "M", "name": "process_name", "args": {"name": "a guest"}}
    assert events == [
        {"ph": "M", "tid": track, "name": "thread_name", "args": {"name": "vcpu 0"}},
        {"ph": "B", "name": "call", "tid": track, "ts": 1.5, "args": {"count": 3}},
        {"ph": "i", "s": "t", "name": "EINVAL", "tid": track, "ts": 2.0},
        {"ph": "E", "tid": track, "ts": 2.001},
        {"ph": "X", "name": "yield", "dur": 0.25, "tid": track, "ts": 3.0, "args": {"n": 1}},
        {"ph": "C", "name": "host CPU, s", "tid": counter, "ts": 4.0, "args": {"value": 0.5}},
    ]


def test_pieces_make_one_document(monkeypatch) -> None:
    monkeypatch.setattr(trace_events, "CHUNK", 10)
    pieces: list[bytes] = []
    writer = TraceEventWriter(pieces.append)
    track = writer.track("t", writer.process("p"))
    for n in range(5):
        writer.instant(track, n, f"n{n}")
    writer.close()
    assert len(pieces) > 5
    assert len(json.loads(b"".join(pieces))["traceEvents"]) == 8
