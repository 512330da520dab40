"""The control channel: a socket at which a guest's toolstack is asked, a line of JSON at a time.

What comes goes to the backend `dom0.control`, after the number of who sends it. What that one
answers goes back. Nobody can fill this process's memory: a line has a longest size, so has what
somebody has not read, and there are only so many of them at once.
"""

from __future__ import annotations

import json
import os
import select
import socket
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Final

from xenemu import unixsocket
from xenemu.confine import Errand
from xenemu.errors import UsageError
from xenemu.records import dataclass

MAX_CLIENTS: Final = 8
MAX_LINE: Final = 64 << 10
MAX_UNREAD: Final = 1 << 20
PRIVATE: Final = 0o177  # a umask


@dataclass
class Client:
    """Somebody who is connected: what has come without the end of its line, what is unread."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    unread: bytearray = field(default_factory=bytearray)


class Channel:
    """Implements `xenemu.machine.Source` over a socket that listens."""

    writing = None
    calls = ("epoll_wait", "epoll_pwait", "epoll_ctl")  # the host's, while the guest runs
    descriptors = MAX_CLIENTS + 1

    def __init__(self, listener: socket.socket, removal: Errand) -> None:
        self._listener, self._removal = listener, removal
        self._clients: dict[int, Client] = {}
        self._last = 0  # the number of the last client
        self._poll = select.epoll()
        listener.setblocking(False)
        self._poll.register(listener, select.EPOLLIN)

    @property
    def reading(self) -> int | None:
        """What to wait for: anything that a client sends, or can take."""
        return self._poll.fileno()

    def receive(self, now_ns: int) -> list[bytes]:
        """The lines that have come, and the numbers of those who have gone."""
        came: list[bytes] = []
        ready = {descriptor for descriptor, _ in self._poll.poll(0)}
        if not ready:
            return came
        for number, client in list(self._clients.items()):
            if client.socket.fileno() in ready:
                came += self._read(number, client)
        if self._listener.fileno() in ready:
            self._let_in()
        return came

    def _let_in(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # whoever called has gone again
            return
        connection.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            refusal = {"ok": False, "error": f"{MAX_CLIENTS} are connected already"}
            with suppress(OSError):
                connection.send(json.dumps(refusal).encode() + b"\n")
            connection.close()
            return
        self._last += 1
        self._clients[self._last] = Client(connection)
        self._poll.register(connection, select.EPOLLIN)

    def _read(self, number: int, client: Client) -> list[bytes]:
        """What somebody has sent, after the number; that one may have gone."""
        self._write(client)
        try:
            data = os.read(client.socket.fileno(), MAX_LINE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data or len(client.unread) > MAX_UNREAD:
            return [self._part(number)]
        client.received += data
        *lines, rest = client.received.split(b"\n")
        client.received = rest
        came = [b"%d %s" % (number, line) for line in lines if line.strip()]
        if len(rest) > MAX_LINE:
            refusal = {"ok": False, "error": f"a line of more than {MAX_LINE} bytes"}
            client.unread += json.dumps(refusal).encode() + b"\n"
            self._write(client)
            came.append(self._part(number))
        return came

    def _part(self, number: int) -> bytes:
        """Let somebody go; what the backend is told."""
        client = self._clients.pop(number)
        self._poll.unregister(client.socket)
        client.socket.close()
        return b"%d" % number

    def send(self, now_ns: int, data: bytes) -> None:
        """Send a line to the one whose number it begins with, if that one is still here."""
        number, _, line = data.partition(b" ")
        client = self._clients.get(int(number))
        if client is not None and len(client.unread) <= MAX_UNREAD:  # else it will be let go
            client.unread += line + b"\n"
            self._write(client)

    def _write(self, client: Client) -> None:
        """Send what somebody has not been sent, as far as there is room."""
        try:
            while client.unread:
                del client.unread[: os.write(client.socket.fileno(), client.unread)]
        except BlockingIOError:
            pass
        except OSError:  # `receive` will find that one gone
            client.unread.clear()
        wanted = select.EPOLLIN | (select.EPOLLOUT if client.unread else 0)
        self._poll.modify(client.socket, wanted)

    def flush(self) -> None:
        """`receive` does it: the poll tells of whoever can take more."""

    def close(self) -> None:
        """Hang up on all, and remove the socket."""
        self._removal.run()
        for client in self._clients.values():
            client.socket.close()
        self._poll.close()
        self._listener.close()


def listen(option: str, path: Path) -> Channel:
    """Listen at a path, where only this user can connect; UsageError."""
    before = os.umask(PRIVATE)
    try:
        return Channel(*unixsocket.listen(path))
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror or error}") from None
    finally:
        os.umask(before)
