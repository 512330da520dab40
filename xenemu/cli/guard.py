"""Puts a terminal in order again if xenemu dies in raw mode, by SIGKILL or a crash of the engine.

`Guard` starts this file as a process of its own. The process has the terminal as its standard
input, and a pipe as its standard output. From the pipe it reads the terminal's attributes, before
and raw. When the pipe ends, xenemu has ended. The file imports nothing of xenemu's, so that the
process is there at once.
"""

import marshal
import os
import sys
import termios
from contextlib import suppress
from typing import Any, Final

PIPE: Final = 1


class Guard:
    """Watches over a terminal until `release`. Where none can start, all else works."""

    def __init__(self, terminal: int, before: list[Any], raw: list[Any]) -> None:
        reading, self._writing = os.pipe()
        os.write(self._writing, marshal.dumps((before, raw)))
        command = [sys.executable, "-I", "-S", __file__]
        actions = [(os.POSIX_SPAWN_DUP2, terminal, 0), (os.POSIX_SPAWN_DUP2, reading, PIPE)]
        self._child = 0
        with suppress(OSError):
            self._child = os.posix_spawn(
                sys.executable, command, os.environ, file_actions=actions, setsid=True
            )
        os.close(reading)

    def release(self) -> None:
        """The terminal is as it was, or is not to be touched any more."""
        os.close(self._writing)
        if self._child:
            os.waitpid(self._child, 0)


def _watch() -> None:
    with os.fdopen(PIPE, "rb") as pipe:
        before, raw = marshal.loads(pipe.read())
    if termios.tcgetattr(0) == raw:  # else somebody was quicker
        termios.tcsetattr(0, termios.TCSANOW, before)


if __name__ == "__main__":
    with suppress(termios.error):  # it was hung up
        _watch()
