"""A terminal in raw mode, whatever ends or stops this process.

If a signal ends the process at once, the terminal is put in order before that. For signals that
cannot be caught there is `Guard`. While the process is stopped, the terminal is as it was.
"""

from __future__ import annotations

import os
import signal
import termios
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any, Final

from xenemu.cli.guard import Guard
from xenemu.cli.signals import handled

# What ends a process by default, but for those that end a run in order, and for its own faults.
DEADLY: Final = (
    *(signal.SIGQUIT, signal.SIGABRT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
    *(signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU, signal.SIGIO, signal.SIGPWR),
)


class RawMode:
    """Puts a terminal into raw mode, until `leave`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before = termios.tcgetattr(descriptor)
        self._raw = _raw(self._before)
        self._exits = ExitStack()
        self._exits.callback(Guard(descriptor, self._before, self._raw).release)
        self._exits.callback(self._set, self._before)
        self._exits.enter_context(handled(self._die, DEADLY))
        self._exits.enter_context(handled(self._stop, (signal.SIGTSTP,)))
        self._exits.enter_context(handled(self._go_on, (signal.SIGCONT,)))
        self._set(self._raw)

    def leave(self) -> None:
        """Put the terminal back as it was."""
        self._exits.close()

    def _set(self, attributes: list[Any]) -> None:
        if is_foreground(self._descriptor):  # else it is somebody else's now
            with suppress(termios.error):  # it may have been hung up
                termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)

    def _die(self, signum: int, frame: FrameType | None) -> None:
        self._set(self._before)
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self._set(self._before)
        signal.raise_signal(signal.SIGSTOP)

    def _go_on(self, signum: int, frame: FrameType | None) -> None:
        self._set(self._raw)


def is_foreground(descriptor: int) -> bool:
    """Whether a person types there, and to this process; one in the background may not read."""
    if not os.isatty(descriptor):
        return False
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # not the terminal of this session, which so does not stop its readers
        return True


def _raw(attributes: list[Any]) -> list[Any]:
    """Terminal attributes that pass every key on as it is; output is still processed.

    So a guest that prints bare line feeds is readable, and other guests do not notice.
    """
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = attributes
    iflag &= ~(
        termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.INPCK
        | termios.ISTRIP | termios.IXON
    )  # fmt: skip
    lflag &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    cc = [*cc]
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]
