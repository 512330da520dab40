"""The few lines of a console that say which kernel it is, and that it panicked."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

TELLING: Final = re.compile(r"Linux version \d|BSD|panic", re.IGNORECASE)
FIRST, LAST = 16, 48  # of the lines that tell, how many are kept
MAX_LINE: Final = 1000  # characters


class Headlines:
    """The headlines of a console as it grows, in bounded memory."""

    def __init__(self) -> None:
        self._open = ""  # the last line, which may go on
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=LAST)

    def feed(self, text: str) -> None:
        """Look at more of the console, as plain text."""
        *lines, last = (self._open + text).split("\n")
        self._open = last[:MAX_LINE]
        for line in lines:
            if TELLING.search(line):
                (self._first if len(self._first) < FIRST else self._last).append(line[:MAX_LINE])

    @property
    def lines(self) -> list[str]:
        """The first of them and the last, in order."""
        return [*self._first, *self._last, self._open]
