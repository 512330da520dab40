"""Perfetto's trace format, as far as a timeline needs it: protobuf, written by hand.

A trace is a sequence of packets, and each is a field of the whole. So a trace can be written as it
grows. A name that comes again and again is written once, with a number (``InternedData``). What
else is the same in many events, such as the track and the name, is encoded once.

Perfetto: protos/perfetto/trace/trace_packet.proto, track_event/track_event.proto,
track_event/track_descriptor.proto. Protobuf: "Encoding" in its documentation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

Details = Mapping[str, int | str]
Encoded = tuple[bytes, bytes]  # what comes before an event's time, and what comes after it

VARINT, FIXED64, BYTES = 0, 1, 2  # wire types

# Numbers of fields.
TRACE_PACKET: Final = 1
TIMESTAMP, SEQUENCE_ID, TRACK_EVENT, INTERNED_DATA, SEQUENCE_FLAGS = 8, 10, 11, 12, 13
TRACK_DESCRIPTOR: Final = 60
EVENT_TYPE, EVENT_NAME_IID, EVENT_TRACK, EVENT_NAME, EVENT_ANNOTATION = 9, 10, 11, 23, 4
EVENT_DOUBLE_VALUE: Final = 44
ANNOTATION_NAME, ANNOTATION_INT, ANNOTATION_STRING = 10, 4, 6
INTERNED_EVENT_NAMES, INTERNED_IID, INTERNED_NAME = 2, 1, 2
TRACK_UUID, TRACK_NAME, TRACK_PROCESS, TRACK_PARENT = 1, 2, 3, 5
TRACK_COUNTER, TRACK_ORDERING, TRACK_RANK = 8, 11, 12
PROCESS_PID, PROCESS_NAME = 1, 6
COUNTER_UNIT_NAME: Final = 6

SLICE_BEGIN, SLICE_END, INSTANT, COUNTER = 1, 2, 3, 4  # TrackEvent.Type
CLEARED, NEEDS_STATE = 1, 2  # TracePacket.SequenceFlags
EXPLICIT: Final = 3  # TrackDescriptor.ChildTracksOrdering

SEQUENCE: Final = 1
MAX_NAMES: Final = 1 << 14  # that are written once
MAX_EVENTS: Final = 1 << 14  # that are encoded once
TIME: Final = bytes((TIMESTAMP << 3 | VARINT,))
TIME_SIZE: Final = 10
CHUNK: Final = 1 << 17  # pieces that are written at once


def varint(value: int) -> bytes:
    """A number that is not negative, seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field with a number; a negative one has ten bytes."""
    return varint(field << 3 | VARINT) + varint(value & (1 << 64) - 1)


def double(field: int, value: float) -> bytes:
    """A field with a floating-point number."""
    return varint(field << 3 | FIXED64) + struct.pack("<d", value)


def block(field: int, content: bytes | str) -> bytes:
    """A field with a text, or with a message."""
    data = content.encode(errors="replace") if isinstance(content, str) else content
    return varint(field << 3 | BYTES) + varint(len(data)) + data


@cache
def _pairs() -> list[bytes]:
    """Fourteen bits of a number that goes on, for each value."""
    return [bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(1 << 14)]


class PerfettoWriter:
    """Writes tracks with slices, instants and counters as a Perfetto trace; times are in ns.

    Slices end in the reverse order of their beginnings. A time always has nine bytes, of which the
    upper ones may be zeroes. So the size of an event is known before its time, and the upper bytes
    stay the same for a while.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._pieces: list[bytes] = []
        self._tracks = 0
        self._names: dict[str, int] = {}
        self._known: dict[tuple[object, ...], Encoded] = {}
        self._pairs = _pairs()
        self._high, self._upper = -1, b""
        self._state = number(SEQUENCE_ID, SEQUENCE) + number(SEQUENCE_FLAGS, NEEDS_STATE)
        self._packet(number(SEQUENCE_ID, SEQUENCE) + number(SEQUENCE_FLAGS, CLEARED))

    def process(self, name: str) -> int:
        """The track that all others belong to."""
        return self._describe(
            block(TRACK_PROCESS, number(PROCESS_PID, 1) + block(PROCESS_NAME, name))
        )

    def track(self, name: str, parent: int, unit: str | None = None) -> int:
        """A new track; with `unit`, of a counter. Tracks are shown in the order of their making."""
        content = block(TRACK_NAME, name) + number(TRACK_PARENT, parent)
        if unit is not None:
            content += block(TRACK_COUNTER, block(COUNTER_UNIT_NAME, unit))
        return self._describe(content)

    def _describe(self, content: bytes) -> int:
        self._tracks += 1
        content += number(TRACK_UUID, self._tracks)
        content += number(TRACK_ORDERING, EXPLICIT) + number(TRACK_RANK, self._tracks)
        self._packet(number(SEQUENCE_ID, SEQUENCE) + block(TRACK_DESCRIPTOR, content))
        return self._tracks

    def begin(self, track: int, at_ns: int, name: str, details: Details | None = None) -> None:
        """A slice begins."""
        self._at(at_ns, self._event(SLICE_BEGIN, track, name, details))

    def end(self, track: int, at_ns: int) -> None:
        """The slice that began last ends."""
        self._at(at_ns, self._event(SLICE_END, track))

    def instant(self, track: int, at_ns: int, name: str, details: Details | None = None) -> None:
        """Something happens."""
        self._at(at_ns, self._event(INSTANT, track, name, details))

    def kind(
        self, track: int, name: str, details: Details | None = None
    ) -> tuple[Encoded, Encoded]:
        """Slices that differ in their times alone, for `slice`."""
        return self._event(SLICE_BEGIN, track, name, details), self._event(SLICE_END, track)

    def slice(self, kind: tuple[Encoded, Encoded], at_ns: int, until_ns: int) -> None:
        """A slice that contains no other."""
        begin, end = kind
        self._at(at_ns, begin)
        self._at(until_ns, end)

    def count(self, track: int, at_ns: int, value: float) -> None:
        """A counter has a value from now on."""
        event = number(EVENT_TYPE, COUNTER) + number(EVENT_TRACK, track)
        self._at(at_ns, self._encoded(event + double(EVENT_DOUBLE_VALUE, value)))

    def close(self) -> None:
        """Write what is not yet written."""
        self._write(b"".join(self._pieces))
        self._pieces.clear()

    def _event(
        self, kind: int, track: int, name: str = "", details: Details | None = None
    ) -> Encoded:
        key = (kind, track, name, *(details.items() if details else ()))
        event = self._known.get(key)
        if event is None:
            content = number(EVENT_TYPE, kind) + number(EVENT_TRACK, track)
            content += self._name(name) if name else b""
            for what, value in details.items() if details else ():
                content += block(EVENT_ANNOTATION, _annotation(what, value))
            event = self._encoded(content)
            if len(self._known) < MAX_EVENTS:
                self._known[key] = event
        return event

    def _encoded(self, event: bytes) -> Encoded:
        content = block(TRACK_EVENT, event) + self._state
        return _head(TIME_SIZE + len(content)) + TIME, content

    def _at(self, at_ns: int, event: Encoded) -> None:
        pairs = self._pairs
        high = at_ns >> 28
        if high != self._high:
            self._high = high
            self._upper = pairs[high & 0x3FFF] + pairs[high >> 14 & 0x3FFF] + bytes((high >> 28,))
        head, content = event
        self._pieces += (head, pairs[at_ns & 0x3FFF], pairs[at_ns >> 14 & 0x3FFF])
        self._pieces += (self._upper, content)
        if len(self._pieces) > CHUNK:
            self.close()

    def _name(self, name: str) -> bytes:
        iid = self._names.get(name)
        if iid is None:
            if len(self._names) == MAX_NAMES:
                return block(EVENT_NAME, name)
            iid = self._names[name] = len(self._names) + 1
            entry = number(INTERNED_IID, iid) + block(INTERNED_NAME, name)
            self._packet(block(INTERNED_DATA, block(INTERNED_EVENT_NAMES, entry)) + self._state)
        return number(EVENT_NAME_IID, iid)

    def _packet(self, content: bytes) -> None:
        self._pieces += (_head(len(content)), content)


def _head(size: int) -> bytes:
    return bytes((TRACE_PACKET << 3 | BYTES,)) + varint(size)


def _annotation(name: str, value: int | str) -> bytes:
    if isinstance(value, str):
        return block(ANNOTATION_NAME, name) + block(ANNOTATION_STRING, value)
    return block(ANNOTATION_NAME, name) + number(ANNOTATION_INT, value)
