"""Listening on a Unix socket whose path is somebody's choice, and who is there already."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from xenemu.confine import Errand

MAX_PATH: Final = 107  # bytes of a path to which one can connect: struct sockaddr_un
KINDS: Final[dict[Callable[[int], bool], str]] = {
    stat.S_ISREG: "a file",
    stat.S_ISDIR: "a directory",
    stat.S_ISLNK: "a symbolic link",
    stat.S_ISFIFO: "a pipe",
}


def listen(path: Path) -> tuple[socket.socket, Errand]:
    """Listen at a path where nothing is, or a socket that no process has any more.

    The socket gets its name once it listens. So whoever finds it there can connect, and of two who
    come at once, one is refused. The errand removes the socket at the end if it is still ours: its
    process is not confined. OSError says why not: its `strerror`, or its words where that is None.
    """
    listening = socket.socket(socket.AF_UNIX)
    try:
        with _alone_in(path.parent):
            return listening, _publish(listening, path)
    except OSError as error:
        listening.close()
        if error.errno == errno.EEXIST:
            reason = f"{_in_the_way(path)}; give a path where nothing is"
            raise OSError(errno.EADDRINUSE, reason) from None
        raise


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep others like us out of a directory: a socket left behind has one heir."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # the errand's process has the descriptor, too
        os.close(descriptor)


def _publish(listening: socket.socket, path: Path) -> Errand:
    """Listen under a name that nobody knows, and then under `path`; FileExistsError."""
    if len(os.fsencode(path)) > MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {MAX_PATH} bytes")
    unknown = path.parent / f".{os.getpid()}"
    unknown.unlink(missing_ok=True)  # of a process that had our number
    listening.bind(str(unknown))
    try:
        listening.listen()
        if is_left_behind(path):
            path.unlink()
        os.link(unknown, path)
        return Errand(partial(_remove, path, _identity(path)))
    finally:
        unknown.unlink()


def is_left_behind(path: Path) -> bool:
    """Whether it is a socket that no process has any more.

    A datagram tells. It is refused only where no process is bound to the socket, whatever the type
    of the socket and whatever that process does. Nothing is sent, nobody notices, and the call does
    not wait.

    In Linux: net/unix/af_unix.c, unix_find_bsd()
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def _in_the_way(path: Path) -> str:
    """What is there already, and stays."""
    with suppress(FileNotFoundError):  # by now
        mode = path.lstat().st_mode
        if stat.S_ISSOCK(mode):
            return "a program has this socket"
        kind = next((name for test, name in KINDS.items() if test(mode)), "something")
        return f"{kind} is there already"
    return "something was there"


def _remove(path: Path, ours: tuple[int, int]) -> None:
    if _identity(path) == ours:
        path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
