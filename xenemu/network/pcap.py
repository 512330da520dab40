"""A capture file: what passes on the wires, with the guest's virtual time.

The format is pcapng, which has a name for each wire and a direction for each packet. Its times are
nanoseconds since the guest began.

Source: draft-ietf-opsawg-pcapng
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from xenemu.network.wires import Listening, Nobody, Stream
from xenemu.records import dataclass

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
MAGIC: Final = 0x1A2B3C4D
ETHERNET: Final = 1
IF_NAME, IF_TSRESOL, EPB_FLAGS = 2, 9, 2
NANOSECONDS: Final = b"\x09"
INBOUND, OUTBOUND = 1, 2  # as the guest has it


class Capture:
    """Writes packets of several wires, by `write`, which takes the bytes of a block."""

    def __init__(self, write: Callable[[bytes], None], names: Iterable[str]) -> None:
        self._write = write
        write(_block(SECTION, struct.pack("<IHHq", MAGIC, 1, 0, -1)))
        for name in names:
            options = _option(IF_NAME, name.encode()) + _option(IF_TSRESOL, NANOSECONDS)
            write(_block(INTERFACE, struct.pack("<HHI", ETHERNET, 0, 0) + options + bytes(4)))

    def packet(self, wire: int, now_ns: int, flags: int, data: bytes) -> None:
        """Write one packet of wire number `wire`; `flags` say its direction."""
        head = struct.pack("<IIIII", wire, now_ns >> 32, now_ns & 0xFFFF_FFFF, len(data), len(data))
        option = _option(EPB_FLAGS, flags.to_bytes(4, "little")) + bytes(4)
        self._write(_block(PACKET, head + _padded(data) + option))


@dataclass
class Tapped:
    """A wire whose packets are captured, too."""

    wire: Stream | Listening | Nobody
    number: int
    capture: Capture

    @property
    def reading(self) -> int | None:
        """What to wait for."""
        return self.wire.reading

    @property
    def writing(self) -> int | None:
        """What to wait for if frames wait."""
        return self.wire.writing

    def receive(self, now_ns: int) -> Sequence[bytes]:
        """The frames that have come."""
        frames = self.wire.receive(now_ns)
        for frame in frames:
            self.came(now_ns, frame)
        return frames

    def came(self, now_ns: int, frame: bytes) -> None:
        """Capture a frame that comes to the guest."""
        self.capture.packet(self.number, now_ns, INBOUND, frame)

    def send(self, now_ns: int, data: bytes) -> None:
        """Send a frame."""
        self.capture.packet(self.number, now_ns, OUTBOUND, data)
        self.wire.send(now_ns, data)

    def flush(self) -> None:
        """Send what waits."""
        self.wire.flush()


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
