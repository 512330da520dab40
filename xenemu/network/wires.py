"""Wires: a stream of frames to a program, with or without somebody at its other end; or to nobody.

On a stream, each frame comes after its length, 4 bytes in network order. passt and QEMU's
``-netdev stream`` and ``-netdev socket`` speak so, and other xenemus.

In QEMU: net/stream.c, net_fill_rstate in net/net.c
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import Final

from xenemu.confine import Errand
from xenemu.records import dataclass

CHUNK: Final = 256 << 10  # what is read at once
LONGEST: Final = 4096 + (64 << 10)  # of a frame: QEMU's NET_BUFSIZE
UNSENT_LIMIT: Final = 1 << 20  # bytes that the other end has not read


class Nobody:
    """A wire with nobody at its other end."""

    reading = writing = None

    def receive(self, now_ns: int) -> Sequence[bytes]:
        """Nothing ever comes."""
        return ()

    def send(self, now_ns: int, data: bytes) -> None:
        """Nobody hears it."""

    def flush(self) -> None:
        """There is nothing to send."""

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Stream:
    """A wire over a connected socket; `lost` frames had no room.

    `gone` is called with the reason when the other end hangs up, or speaks nonsense.
    """

    connection: socket.socket
    gone: Callable[[str], None] = lambda reason: None
    lost: int = 0
    _received: bytearray = field(default_factory=bytearray)
    _unsent: deque[memoryview] = field(default_factory=deque)
    _unsent_size: int = 0
    _open: bool = True

    def __post_init__(self) -> None:
        self.connection.setblocking(False)

    @property
    def reading(self) -> int | None:
        """What to wait for."""
        return self.connection.fileno() if self._open else None

    @property
    def writing(self) -> int | None:
        """What to wait for if frames wait."""
        return self.connection.fileno() if self._open and self._unsent else None

    def receive(self, now_ns: int) -> list[bytes]:
        """The frames that have come: those of a bounded number of bytes."""
        if not self._open:
            return []
        try:
            data = os.read(self.connection.fileno(), CHUNK)
        except BlockingIOError:
            return []
        except OSError as error:
            return self._hang_up(str(error.strerror))
        if not data:
            return self._hang_up("it has hung up")
        self._received += data
        return list(self._frames())

    def _frames(self) -> Iterator[bytes]:
        """Take whole frames off what was received."""
        received, at = self._received, 0
        while len(received) >= at + 4:
            size = int.from_bytes(received[at : at + 4])
            if not 0 < size <= LONGEST:
                self._hang_up(f"it says that a frame has {size} bytes, which no frame has")
                break
            if len(received) < at + 4 + size:
                break
            yield bytes(received[at + 4 : at + 4 + size])
            at += 4 + size
        del received[:at]

    def send(self, now_ns: int, data: bytes) -> None:
        """Send a frame, now or when there is room; it is lost if too much waits."""
        if not self._open:
            return
        if self._unsent_size > UNSENT_LIMIT:
            self.lost += 1
            return
        self._unsent.append(memoryview(len(data).to_bytes(4) + data))
        self._unsent_size += 4 + len(data)
        if len(self._unsent) == 1:
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        try:
            while self._unsent and self._open:
                frame = self._unsent[0]
                count = os.write(self.connection.fileno(), frame)
                self._unsent_size -= count
                if count == len(frame):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = frame[count:]
        except BlockingIOError:
            pass
        except OSError:  # `receive` will say so
            self._unsent.clear()
            self._unsent_size = 0

    def _hang_up(self, reason: str) -> list[bytes]:
        self._open = False
        self.gone(reason)
        return []

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


class Listening:
    """A wire whose other end may come, go, and come again; `removal` removes the socket's path."""

    def __init__(
        self, listener: socket.socket, removal: Errand, gone: Callable[[str], None]
    ) -> None:
        self._listener, self._removal, self._gone = listener, removal, gone
        self._peer: Stream | None = None
        self._lost = 0
        listener.setblocking(False)

    @property
    def lost(self) -> int:
        """How many frames had no room."""
        return self._lost + (self._peer.lost if self._peer else 0)

    @property
    def reading(self) -> int | None:
        """What to wait for: a caller, or what the caller sends."""
        return self._peer.reading if self._peer else self._listener.fileno()

    @property
    def writing(self) -> int | None:
        """What to wait for if frames wait."""
        return self._peer.writing if self._peer else None

    def receive(self, now_ns: int) -> list[bytes]:
        """The frames that have come; first, whoever calls is let in."""
        if self._peer is None:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # whoever called has gone again
                return []
            self._peer = Stream(connection, self._on_gone)
        return self._peer.receive(now_ns)

    def _on_gone(self, reason: str) -> None:
        assert self._peer is not None
        self._lost += self._peer.lost
        self._peer.connection.close()
        self._peer = None
        self._gone(reason)

    def send(self, now_ns: int, data: bytes) -> None:
        """Send a frame to whoever is there."""
        if self._peer:
            self._peer.send(now_ns, data)

    def flush(self) -> None:
        """Send what waits."""
        if self._peer:
            self._peer.flush()

    def close(self) -> None:
        """Hang up, and listen no more."""
        self._removal.run()
        if self._peer:
            self._peer.connection.close()
        self._listener.close()
