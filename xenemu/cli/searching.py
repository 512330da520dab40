r"""Looking for a person's regular expressions, none of which may hold a run up for ever.

An expression such as ``^(.*)*x`` takes twice as long with each character more. Python's matcher
runs the handlers of signals as it goes, so one can end it. That is done for a signal that ends the
run, and for a search that takes `LONGEST_S`. The expression is then given up.
"""

from __future__ import annotations

import re
import signal
from types import FrameType
from typing import Final

WINDOW: Final = 16 << 10  # characters of the past that a match can reach back to
LONGEST_S: Final = 10  # of a single search; an ordinary one takes microseconds


class Ended(Exception):
    """The search under way is to end."""


class Searches:
    """The searches of a process, one at a time; `given_up` is the expression that took too long."""

    def __init__(self) -> None:
        self.given_up = ""
        self._is_on = False

    def __call__(self, wanted: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
        """The first match at `start` or later; None if there is none, or if it takes too long."""
        if self.given_up:
            return None
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        self._is_on = True
        signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
        try:
            return wanted.search(text, start)
        except Ended:
            self.given_up = wanted.pattern
            return None
        finally:
            self._is_on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def end(self) -> None:
        """End the search under way, if there is one: to be called by a handler of a signal."""
        if self._is_on:
            raise Ended

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        self.end()


search: Final = Searches()
