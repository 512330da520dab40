"""Expectations: regular expressions that what the guest prints must meet, in any order.

They see the console as a person does (`xenemu.console_text`). ``^`` and ``$`` match at line ends.
``$`` also matches at the end of what is printed so far, so that a prompt can be expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from xenemu.console_text import PlainText
from xenemu.errors import UsageError
from xenemu.options import parse_pattern
from xenemu.smoke.headlines import Headlines

WINDOW: Final = 16 << 10  # characters of the past that a match can reach back to


class Expectations:
    """The patterns not yet met, the last `WINDOW` characters of the console, and its headlines.

    Raises UsageError for what is no regular expression, or matches no text at all.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.any = bool(patterns)
        self._unmet = {pattern: _compile(pattern) for pattern in patterns}
        self._plain = PlainText()
        self.tail = ""
        self.headlines = Headlines()

    @property
    def unmet(self) -> list[str]:
        """The patterns not yet met, in the order given."""
        return list(self._unmet)

    @property
    def met(self) -> bool:
        """Whether there were any patterns, and all are met."""
        return self.any and not self._unmet

    def feed(self, data: bytes) -> None:
        """Look at more of the console."""
        more = self._plain.feed(data)
        self.headlines.feed(more)
        # One character more than the window, so that ^ does not match where it was cut.
        text = self.tail + more
        start = 1 if len(self.tail) > WINDOW else 0
        for pattern, compiled in list(self._unmet.items()):
            if compiled.search(text, start):
                del self._unmet[pattern]
        self.tail = text[-WINDOW - 1 :]


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return parse_pattern(pattern)
    except ValueError as error:
        raise UsageError(f"--expect {error}") from None
