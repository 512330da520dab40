"""A server of 9P2000.L for a directory: Debian's diod, in a process of its own.

diod serves one connection, which it inherits. It can reach no files but the directory, and what a
program needs to start (`confine.keep_to`). It ends when this process does.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Final

from xenemu.confine import end_with_parent, keep_to
from xenemu.dom0.p9 import MAX_MESSAGE, ServerError
from xenemu.dom0.p9_messages import HEADER, Export, T
from xenemu.dom0.p9_paths import Paths
from xenemu.errors import UsageError
from xenemu.needs import DIOD
from xenemu.records import dataclass

PATIENCE_S: Final = 30.0
LOOK_S: Final = 0.1
END_S: Final = 2.0
LIFTED: Final = {
    "the size of core files": resource.RLIMIT_CORE,
    "the size of files": resource.RLIMIT_FSIZE,
    "memory": resource.RLIMIT_AS,
}
NO_FID: Final = 0xFFFF_FFFF
NO_TAG: Final = 0xFFFF
VERSION: Final = b"9P2000.L"


@dataclass
class Diod:
    """A connection to a diod.

    `leaves` says whether the run is to end: then nobody waits for an answer. `answered` counts the
    guest's requests.
    """

    connection: socket.socket
    process: subprocess.Popen[bytes]
    export: Export
    leaves: Callable[[], bool] = field(default=lambda: False)
    answered: int = 0
    paths: Paths = field(init=False)

    def __post_init__(self) -> None:
        self.paths = Paths(self.exchange, self.export)

    def ask(self, request: bytes, before: int) -> bytes:
        """As `dom0.p9.Server.ask`."""
        if before != self.answered:
            raise ServerError(
                f"diod has answered {self.answered} requests, and this guest knows of {before}:"
                " a snapshot does not have the files that were open in the share"
            )
        answer = self.paths.ask(request)
        self.answered += 1
        return answer

    def leave_if(self, leaves: Callable[[], bool]) -> None:
        """As `dom0.p9.Server.leave_if`."""
        self.leaves = leaves

    def exchange(self, request: bytes) -> bytes:
        """Send a request, and wait for the answer to it. ServerError: there is none."""
        deadline_s = time.monotonic() + PATIENCE_S
        try:
            while request:
                self._wait(select.POLLOUT, deadline_s)
                request = request[self.connection.send(request, socket.MSG_DONTWAIT) :]
            return self._receive(deadline_s)
        except OSError as error:
            raise ServerError(f"diod does not answer: {error.strerror}") from None

    def _receive(self, deadline_s: float) -> bytes:
        """The next message, after which there is nothing: there was one request."""
        data, size = b"", HEADER.size
        while len(data) < size <= MAX_MESSAGE:
            self._wait(select.POLLIN, deadline_s)
            piece = os.read(self.connection.fileno(), MAX_MESSAGE)
            if not piece:
                raise ServerError("diod has closed the connection")
            data += piece
            size = HEADER.unpack_from(data)[0] if len(data) >= HEADER.size else HEADER.size
        if not HEADER.size <= size == len(data) <= MAX_MESSAGE:
            raise ServerError(f"diod sent {len(data)} bytes for a message of {size}")
        return data

    def _wait(self, event: int, deadline_s: float) -> None:
        """Wait until diod is ready; ServerError if the run ends before, or the deadline comes."""
        poll = select.poll()
        poll.register(self.connection, event)
        while not poll.poll(LOOK_S * 1000):
            if self.leaves():
                raise ServerError("the run ends before diod has answered")
            if time.monotonic() > deadline_s:
                raise ServerError(f"diod has not answered in {PATIENCE_S:.0f} s")
        if time.monotonic() > deadline_s:  # piece by piece
            raise ServerError(f"diod has not answered in {PATIENCE_S:.0f} s")

    def close(self) -> None:
        """Let diod end."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)


def serve(export: Export, program: Path | None = None) -> Diod:
    """Start a diod, and see that it serves the directory; UsageError says why it does not.

    `program` is a diod that is not in PATH.
    """
    found = program or DIOD.find()
    if found is None:
        raise UsageError(
            f"there is no {DIOD.name}, which serves the directory; install Debian's {DIOD.package}"
        )
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        directory = os.fsdecode(export.path)
        options = ["--foreground", "--no-auth", "--no-userdb", "--nwthreads=1"]
        options += [f"--rfdno={number}", f"--wfdno={number}", f"--export={directory}"]
        options += ["--config-file=/dev/null", "--logdest=/dev/null"]
        try:
            process = subprocess.Popen(
                [found, *options],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for xenemu
                preexec_fn=partial(_prepare, directory, export.writable),  # noqa: PLW1509 (one thread)
            )
        except (OSError, subprocess.SubprocessError) as error:
            ours.close()
            why = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{found}: cannot be started: {why}") from None
    diod = Diod(ours, process, export)
    try:
        _greet(diod, export)
    except ServerError as error:
        process.kill()
        diod.close()
        raise UsageError(f"{found} does not serve {directory}: {error}{_limited()}") from None
    return diod


def _prepare(directory: str, writable: bool) -> None:
    end_with_parent()
    keep_to(directory, writable)


def _limited() -> str:
    """The limits on this process that diod lifts, or else does not run; empty if there are none."""
    hard = {name: resource.getrlimit(kind)[1] for name, kind in LIFTED.items()}
    limited = [name for name, most in hard.items() if most != resource.RLIM_INFINITY]
    return f"; it wants no limit on {' and '.join(limited)}: see ulimit -H" if limited else ""


def _greet(diod: Diod, export: Export) -> None:
    """Attach to the directory, and leave it; ServerError."""

    def ask(message: T, tag: int, body: bytes) -> None:
        request = HEADER.pack(HEADER.size + len(body), message, tag) + body
        answer = diod.exchange(request)
        if answer[4] == T.RLERROR:
            raise ServerError(os.strerror(int.from_bytes(answer[HEADER.size :], "little")))

    names = struct.pack("<HH", 0, len(export.path)) + export.path
    uid = struct.pack("<I", export.uid or 0)
    ask(T.VERSION, NO_TAG, struct.pack("<IH", MAX_MESSAGE, len(VERSION)) + VERSION)
    ask(T.ATTACH, 0, struct.pack("<II", 0, NO_FID) + names + uid)
    ask(T.CLUNK, 0, struct.pack("<I", 0))
