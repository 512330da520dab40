"""What carries the packets: a socket that listens, or this process's standard streams."""

from __future__ import annotations

import os
import re
import select
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from xenemu import unixsocket
from xenemu.confine import Errand
from xenemu.errors import UsageError

LOOPBACK: Final = "127.0.0.1"
MAX_PORT: Final = 65535
SEND_TIMEOUT_S: Final = 10.0  # a gdb that reads nothing for so long is gone
CHUNK: Final = 1 << 16
HOST_PORT: Final = re.compile(
    r"(?:tcp:)?(?:\[(?P<six>[^]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})"
)
FORMS: Final = ":PORT, HOST:PORT, unix:PATH or stdio"


class Channel(Protocol):
    """A connection to one gdb."""

    def fileno(self) -> int:
        """What to wait for."""

    def receive(self) -> bytes:
        """What has arrived; empty if the other side is gone. Waits if nothing has."""

    def send(self, data: bytes) -> bool:
        """Send all of it; False if the other side is gone."""

    def close(self) -> None:
        """Hang up."""


class Listener(Protocol):
    """The place where gdbs connect.

    `address` is what to tell gdb's `target remote`. `takes_stdio`: gdb has this process's standard
    input and output. `ended`: no gdb can come any more.
    """

    address: str
    takes_stdio: bool

    @property
    def ended(self) -> bool: ...

    def fileno(self) -> int | None:
        """What to wait for; None if none can come now."""

    def accept(self) -> Channel | None:
        """The next gdb; None if it has gone again."""

    def close(self) -> None:
        """Listen no more."""


class SocketChannel:
    """A gdb on a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.settimeout(SEND_TIMEOUT_S)
        with suppress(OSError):  # a Unix socket has no such option
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """What to wait for."""
        return self._socket.fileno()

    def receive(self) -> bytes:
        """What has arrived."""
        try:
            return self._socket.recv(CHUNK)
        except OSError:
            return b""

    def send(self, data: bytes) -> bool:
        """Send all of it."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Hang up, so that what was sent still arrives."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()


class SocketListener:
    """Listens on a socket; `removal` removes it at the end, if it is a Unix socket."""

    takes_stdio = False
    ended = False

    def __init__(
        self, listening: socket.socket, address: str, removal: Errand | None = None
    ) -> None:
        self._socket, self.address = listening, address
        self._removal = removal
        listening.setblocking(False)  # whoever called may have gone again

    def fileno(self) -> int | None:
        """What to wait for."""
        return self._socket.fileno()

    def accept(self) -> Channel | None:
        """The next gdb."""
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return None
        return SocketChannel(connection)

    def close(self) -> None:
        """Listen no more."""
        if self._removal is not None:
            self._removal.run()
        self._socket.close()


class StreamChannel:
    """A gdb at two descriptors: ``target remote | xenemu run ... --gdb stdio``."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self.is_open = True

    def fileno(self) -> int:
        """What to wait for."""
        return self._reading

    def receive(self) -> bytes:
        """What has arrived."""
        try:
            return os.read(self._reading, CHUNK)
        except OSError:
            return b""

    def send(self, data: bytes) -> bool:
        """Send all of it."""
        left = memoryview(data)
        try:
            while left:
                # With room, a pipe takes this much at once.
                if not select.select([], [self._writing], [], SEND_TIMEOUT_S)[1]:
                    return False
                left = left[os.write(self._writing, left[: select.PIPE_BUF]) :]
        except OSError:
            return False
        return True

    def close(self) -> None:
        """The streams are the process's own: they stay open."""
        self.is_open = False


class StreamListener:
    """One gdb, which is there already. After it has hung up, only the pipe's end can come."""

    address, takes_stdio = "stdio", True

    def __init__(self, channel: StreamChannel) -> None:
        self._channel = channel
        self._accepted = False
        self.ended = False

    def fileno(self) -> int | None:
        """What to wait for: the first bytes, or the end."""
        in_use = self._accepted and self._channel.is_open
        return None if in_use or self.ended else self._channel.fileno()

    def accept(self) -> Channel | None:
        """The one gdb; what it says after it has hung up is not heard."""
        if self._accepted:
            self.ended = not self._channel.receive()
            return None
        self._accepted = True
        return self._channel

    def close(self) -> None:
        """Nothing is open."""


def listen(spec: str) -> Listener:
    """Listen where ``--gdb`` says: FORMS. UsageError says what is wrong with it.

    Without a host, on the loopback interface only; port 0 is any that is free.
    """
    if spec == "stdio":
        return StreamListener(StreamChannel(0, 1))
    if spec.startswith("unix:"):
        return _listen_unix(Path(spec.removeprefix("unix:")))
    found = HOST_PORT.fullmatch(spec if ":" in spec else f":{spec}")
    if not found:
        raise UsageError(f"--gdb {spec}: give {FORMS}")
    if int(found["port"]) > MAX_PORT:
        raise UsageError(f"--gdb {spec}: {found['port']} is no port: they go up to {MAX_PORT}")
    host = found["six"] or found["host"] or LOOPBACK
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            host, int(found["port"]), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen()
    except OSError as error:
        raise UsageError(f"--gdb {spec}: {error.strerror}") from None
    name, port = listening.getsockname()[:2]
    return SocketListener(listening, f"[{name}]:{port}" if ":" in name else f"{name}:{port}")


def _listen_unix(path: Path) -> SocketListener:
    try:
        listening, removal = unixsocket.listen(path)
    except OSError as error:
        raise UsageError(f"--gdb unix:{path}: {error.strerror or error}") from None
    return SocketListener(listening, str(path), removal)
