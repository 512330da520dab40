"""A Perfetto trace, as Perfetto's own classes read it."""

from __future__ import annotations

import pytest

from xenemu.views.perfetto import MAX_NAMES, PerfettoWriter, number, varint

proto = pytest.importorskip(
    "perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="pip install perfetto"
)


class Trace:
    """What `PerfettoWriter` wrote, read back."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.writer = PerfettoWriter(self.data.extend)

    def events(self):
        """(time, type, track, name, details) of each event, with the names resolved."""
        self.writer.close()
        trace, names = proto.Trace.FromString(bytes(self.data)), {}
        for packet in trace.packet:
            for entry in packet.interned_data.event_names:
                names[entry.iid] = entry.name
            if packet.HasField("track_event"):
                event = packet.track_event
                details = {
                    a.name: a.string_value if a.HasField("string_value") else a.int_value
                    for a in event.debug_annotations
                }
                kind = proto.TrackEvent.Type.Name(event.type).removeprefix("TYPE_")
                name = event.name or names.get(event.name_iid, "")
                yield packet.timestamp, kind, event.track_uuid, name, details

    def tracks(self):
        """The descriptor of each track."""
        self.writer.close()
        packets = proto.Trace.FromString(bytes(self.data)).packet
        return [p.track_descriptor for p in packets if p.HasField("track_descriptor")]


def test_slices_and_instants_are_read_back() -> None:
    trace = Trace()
    track = trace.writer.track("vcpu 0", trace.writer.process("a guest"))
    trace.writer.begin(track, 5, "mmu_update", {"count": 3, "why": "é", "below": -1})
    trace.writer.instant(track, 6, "EINVAL")
    trace.writer.end(track, 7)
    trace.writer.slice(trace.writer.kind(track, "yield"), 8, 9)
    assert list(trace.events()) == [
        (5, "SLICE_BEGIN", track, "mmu_update", {"count": 3, "why": "é", "below": -1}),
        (6, "INSTANT", track, "EINVAL", {}),
        (7, "SLICE_END", track, "", {}),
        (8, "SLICE_BEGIN", track, "yield", {}),
        (9, "SLICE_END", track, "", {}),
    ]


def test_any_time_is_read_back() -> None:
    times = [(1 << bits) - less for bits in range(62) for less in (0, 1)]
    trace = Trace()
    track = trace.writer.track("t", trace.writer.process("p"))
    for at_ns in times:
        trace.writer.instant(track, at_ns, "now")
    assert [at_ns for at_ns, *_ in trace.events()] == times


def test_a_name_is_written_once_and_too_many_are_written_each_time() -> None:
    trace = Trace()
    track = trace.writer.track("t", trace.writer.process("p"))
    names = [f"line {n}" for n in range(MAX_NAMES + 2)] + ["line 0", f"line {MAX_NAMES}"]
    for name in names:
        trace.writer.instant(track, 0, name)
    assert [name for *_, name, _ in trace.events()] == names
    assert trace.data.count(b"line 0") == 1


def test_tracks_belong_to_the_process_in_the_order_of_their_making() -> None:
    trace = Trace()
    process = trace.writer.process("a guest")
    trace.writer.track("b", process)
    trace.writer.track("a", process, "s")
    root, *others = trace.tracks()
    assert root.process.process_name == "a guest"
    assert root.child_ordering == proto.TrackDescriptor.EXPLICIT
    assert [(t.name, t.parent_uuid) for t in others] == [("b", root.uuid), ("a", root.uuid)]
    ranks = [t.sibling_order_rank for t in others]
    assert ranks == sorted(ranks)
    assert others[1].counter.unit_name == "s"


def test_a_counter_has_its_values() -> None:
    trace = Trace()
    track = trace.writer.track("host CPU", trace.writer.process("p"), "s")
    trace.writer.count(track, 10, 0.5)
    trace.writer.close()
    event = proto.Trace.FromString(bytes(trace.data)).packet[-1].track_event
    assert (event.type, event.double_counter_value) == (proto.TrackEvent.TYPE_COUNTER, 0.5)


def test_varints_are_protobufs() -> None:
    assert [varint(n) for n in (0, 1, 127, 128, 300)] == [
        b"\0",
        b"\1",
        b"\x7f",
        b"\x80\1",
        b"\xac\2",
    ]
    assert number(1, -1) == b"\x08" + b"\xff" * 9 + b"\1"
