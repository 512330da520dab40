"""The packets of gdb's remote serial protocol, without anything that carries them.

A packet is ``$payload#cs``; its checksum is the payload's sum modulo 256. In a payload, ``}``
escapes the byte after it, which is sent XORed with 0x20. Two things may come between packets. ``+``
and ``-`` do, until both sides have agreed to do without. And 0x03 does: the person pressed Ctrl-C.

gdb manual: Remote Protocol, Overview; Binary Data; Interrupts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Final

from xenemu.records import dataclass

PACKET_SIZE: Final = 0x20000  # bytes of a payload, escapes included, that gdb may send
ESCAPE, ESCAPED = b"}", 0x20
SPECIAL: Final = b"}#$*"  # the escape first, which each of them brings
ESCAPE_PAIR: Final = re.compile(rb"\}(.?)", re.DOTALL)
CHECKSUM_LENGTH: Final = 2


class Signal(Enum):
    """What comes besides packets."""

    INTERRUPT = "Ctrl-C"
    ACK = "the last packet arrived"
    NACK = "the last packet arrived damaged"
    DAMAGED = "a packet with a wrong checksum"
    TOO_LONG = "a packet over PACKET_SIZE, of which nothing was kept"


@dataclass(frozen=True)
class Packet:
    """A packet that arrived well, its escapes undone."""

    payload: bytes


def encode(payload: bytes) -> bytes:
    """A packet as it is sent."""
    escaped = escape(payload)
    return b"$%b#%02x" % (escaped, sum(escaped) & 0xFF)


def escape(data: bytes) -> bytes:
    """Binary data as it stands in a payload."""
    for byte in SPECIAL:
        data = data.replace(bytes([byte]), ESCAPE + bytes([byte ^ ESCAPED]))
    return data


def unescape(data: bytes) -> bytes:
    """Undo `escape`; an escape with nothing after it is dropped."""
    return ESCAPE_PAIR.sub(lambda pair: bytes([pair[1][0] ^ ESCAPED]) if pair[1] else b"", data)


class Decoder:
    """Cuts what arrives into packets and signals, however it is cut on its way."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._dropping = False  # inside a packet that is too long

    def feed(self, data: bytes) -> Iterator[Packet | Signal]:
        """Take what arrived; yield what is complete by now."""
        self._buffer += data
        while self._buffer:
            if self._dropping:
                if not self._drop():
                    return
                yield Signal.TOO_LONG
            elif self._buffer[0] == ord("$"):
                event = self._packet()
                if event is None:
                    return
                if event is not Signal.TOO_LONG:
                    yield event
            else:
                single = SINGLE.get(self._buffer.pop(0))
                if single:
                    yield single

    def _packet(self) -> Packet | Signal | None:
        """Take the packet that the buffer starts with; None while it is not complete."""
        buffer = self._buffer
        end = buffer.find(b"#")
        if (end if end >= 0 else len(buffer)) > PACKET_SIZE + 1:
            self._dropping = True
            return Signal.TOO_LONG
        if end < 0 or len(buffer) < end + 1 + CHECKSUM_LENGTH:
            return None
        payload = bytes(buffer[1:end])
        checksum = bytes(buffer[end + 1 : end + 1 + CHECKSUM_LENGTH])
        del buffer[: end + 1 + CHECKSUM_LENGTH]
        if checksum.lower() != b"%02x" % (sum(payload) & 0xFF):
            return Signal.DAMAGED
        return Packet(unescape(payload))

    def _drop(self) -> bool:
        """Drop the rest of a packet that is too long; False while it goes on."""
        end = self._buffer.find(b"#")
        if end < 0:
            self._buffer.clear()
            return False
        if len(self._buffer) < end + 1 + CHECKSUM_LENGTH:
            del self._buffer[:end]
            return False
        del self._buffer[: end + 1 + CHECKSUM_LENGTH]
        self._dropping = False
        return True


SINGLE: Final = {0x03: Signal.INTERRUPT, ord("+"): Signal.ACK, ord("-"): Signal.NACK}


# The hex in payloads.


def number(text: bytes) -> int:
    """A hex number; ValueError if it is not one, or has a sign or an underscore in it."""
    if not text or any(byte not in b"0123456789abcdefABCDEF" for byte in text):
        raise ValueError(f"{text!r} is no hex number")
    return int(text, 16)


def hex_text(text: str) -> bytes:
    """Text, for an O packet or a monitor command's answer."""
    return text.encode(errors="replace").hex().encode()
