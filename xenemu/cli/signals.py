"""Signals that end a command, and when.

While a command starts, a signal is raised as `Interrupted`, wherever the command is. A run, or a
matrix of boots, has more to put in order. It notes the signal instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Final, Self

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Signal `signum` ends the command: its exit code is 128 + `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise the signal: a handler."""
    raise Interrupted(signum)


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None],
    signums: tuple[signal.Signals, ...] = ENDING,
) -> Iterator[None]:
    """Have `handler` called for signals, except for those that this process is to ignore."""
    before = {}
    try:
        for signum in signums:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                before[signum] = signal.signal(signum, handler)
        yield
    finally:
        for signum, handler_before in before.items():
            signal.signal(signum, handler_before)


class Noted:
    """A context in which signals are noted, and can be waited for; `signum` is the first, or 0."""

    def __init__(self) -> None:
        self.signum = 0
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._handled = handled(self._note)

    def fileno(self) -> int:
        """What to wait for."""
        return self._reading

    def __enter__(self) -> Self:
        self._handled.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handled.__exit__(kind, error, trace)
        os.close(self._reading)
        os.close(self._writing)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        with suppress(BlockingIOError):
            os.write(self._writing, b"!")
