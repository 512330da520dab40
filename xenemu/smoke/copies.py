"""Copies of a process, made by `os.fork`: what is ready there need not be made again.

An original is a process that has something ready: all modules are imported, or a guest is booted.
It waits for orders, and forks for each. A copy takes milliseconds. It goes on from there by itself,
with a connection and a file for its last words that came with the order.

An original has one thread. Its guest may have taken it over. So of the number of a copy, its asker
believes only what the kernel confirms: it is that of a child of the original. An original does not
reap a copy before it is asked how the copy ended, so no number is used twice.
"""

from __future__ import annotations

import array  # noqa: F401 (`socket` imports it late, when an original may open no file)
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals, pidfd_send_signal
from typing import Any, Final

from xenemu.records import dataclass
from xenemu.smoke import wire
from xenemu.smoke.wire import Inbox, Nonsense

COPY, ENDED = "copy", "ended"  # the requests
ANSWER_S: Final = 60.0  # how long an original may take; a fork takes milliseconds


class Lost(Exception):
    """An original cannot be asked: it has ended, it hangs, or it sends nonsense."""


@dataclass(frozen=True)
class Copied:
    """An answer: the number of the process that was made."""

    pid: int


@dataclass(frozen=True)
class Ended:
    """An answer: how a copy has ended, as `Copy.exitcode` says it."""

    code: int


ANSWERS: Final = (Copied, Ended)


# For those who ask.


class Original:
    """An original, seen from outside. `inbox` is that of its connection, and takes ANSWERS."""

    def __init__(self, pid: int, connection: Connection, inbox: Inbox) -> None:
        self.pid = pid
        self._connection, self._inbox = connection, inbox

    def copy(self, order: object, errors: int) -> tuple[Copy, Connection]:
        """Have a copy made for `order`, and a connection with it; Lost.

        `errors` is a descriptor, for what the copy writes to its standard streams.
        """
        ours, theirs = Pipe()
        try:
            answer = self._ask(Copied, COPY, order, (theirs.fileno(), errors))
            return Copy(answer.pid, self), ours
        except Lost:
            ours.close()
            raise
        finally:
            theirs.close()

    def ended(self, pid: int) -> int | None:
        """How a copy has ended, which it has; None if nobody knows any more."""
        try:
            return int(self._ask(Ended, ENDED, pid).code)
        except Lost:
            return None

    def _ask(
        self, kind: type, request: str, argument: object, descriptors: tuple[int, ...] = ()
    ) -> Any:
        try:
            self._connection.send((request, argument))
            if descriptors:
                with socket.socket(fileno=os.dup(self._connection.fileno())) as door:
                    socket.send_fds(door, [b"!"], descriptors)
            deadline = time.monotonic() + ANSWER_S
            while self._connection.poll(max(0.0, deadline - time.monotonic())):
                for answer in self._inbox.take():
                    if isinstance(answer, kind):
                        return answer
                    raise Nonsense(f"{type(answer).__name__}, for {kind.__name__}")
            raise Lost("it does not answer")
        except (OSError, EOFError):
            raise Lost("it has ended") from None
        except Nonsense as nonsense:
            raise Lost(f"it sent nonsense: {nonsense}") from None


class Copy:
    """A copy, seen from outside, with the methods of multiprocessing's processes."""

    def __init__(self, pid: int, original: Original) -> None:
        """Lost: no child of the original's has that number."""
        self.pid = pid
        self._original = original
        self._code: int | None = None
        self._has_ended = False
        try:
            self._pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError):
            raise Lost(f"it named {pid}, which is no process") from None
        if _parent(pid) != original.pid:
            os.close(self._pidfd)
            raise Lost(f"it named {pid}, which is no copy of it")

    @property
    def exitcode(self) -> int | None:
        """As multiprocessing's; also None if nobody knows any more."""
        self.join(0)
        return self._code

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(SIGKILL)

    def _signal(self, signum: Signals) -> None:
        with suppress(ProcessLookupError):
            pidfd_send_signal(self._pidfd, signum)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or so many seconds; let the original forget it then."""
        if self._has_ended:
            return
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(None if timeout is None else timeout * 1000):
            self._has_ended = True
            self._code = self._original.ended(self.pid)

    def close(self) -> None:
        """Forget it, when it has ended."""
        os.close(self._pidfd)


def _parent(pid: int) -> int | None:
    """Whose child a process is."""
    with suppress(OSError):
        # proc(5): the command's name is in parentheses, and may have some in it.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return None


# For an original.


def serve(connection: Connection) -> tuple[Any, Connection] | None:
    """Fork for each order, until nobody can ask any more; None then.

    Return in each copy: its order, and its own connection.
    """
    while True:
        try:
            request, argument = connection.recv()
        except (EOFError, OSError):
            return None
        if theirs := REQUESTS[request](connection, argument):
            return argument, theirs


def copied(connection: Connection, _: object = None) -> Connection | None:
    """Fork for an order that came over `connection`; in the copy, return a connection of its own.

    The descriptors of the copy are the next to come. Standard output and error are a file then.
    """
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, connection.fileno())
    try:
        _, (theirs, errors), *_ = socket.recv_fds(door, 1, 2)
    finally:
        door.detach()
    pid = os.fork()
    if pid:
        os.close(theirs)
        os.close(errors)
        wire.send(connection, Copied(pid))
        return None
    connection.close()
    for stream in (1, 2):
        os.dup2(errors, stream)
    os.close(errors)
    return Connection(theirs)


def told_end(connection: Connection, pid: int) -> None:
    """Say how a copy has ended, and forget it."""
    _, status = os.waitpid(pid, 0)
    wire.send(connection, Ended(os.waitstatus_to_exitcode(status)))


REQUESTS: Final[dict[str, Callable[[Connection, Any], Connection | None]]] = {
    COPY: copied,
    ENDED: told_end,
}
