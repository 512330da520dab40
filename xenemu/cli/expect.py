"""Expectations: regular expressions that what the guest prints must meet, in any order.

They see the console as a person does (`xenemu.console_text`). ``^`` and ``$`` match at line ends.
``$`` also matches at the end of what is printed so far, so that a prompt can be expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xenemu.cli.searching import WINDOW, search
from xenemu.console_text import PlainText
from xenemu.errors import UsageError
from xenemu.options import parse_pattern
from xenemu.smoke.headlines import Headlines

if TYPE_CHECKING:
    from xenemu.cli.script import Script


class Expectations:
    """The patterns not yet met, the last `WINDOW` characters of the console, and its headlines.

    A `script` has more of them, which are to be met in its order.

    Raises UsageError for what is no regular expression, or matches no text at all.
    """

    def __init__(self, patterns: Sequence[str], script: Script | None = None) -> None:
        self.any = bool(patterns) or (script is not None and script.ends)
        self.script = script
        self._unmet = {pattern: _compile(pattern) for pattern in patterns}
        self._looked_for: dict[str, re.Pattern[str]] = {}  # and not yet seen
        self._plain = PlainText()
        self.tail = ""
        self.headlines = Headlines()

    @property
    def unmet(self) -> list[str]:
        """The patterns not yet met, in the order given."""
        return [*self._unmet, *(self.script.unmet if self.script else ())]

    @property
    def unmet_in_any_order(self) -> list[str]:
        """Those of them that are in no script."""
        return list(self._unmet)

    @property
    def met(self) -> bool:
        """Whether there were any patterns, and all are met."""
        return self.any and not self.unmet

    def look_for(self, pattern: str, option: str) -> None:
        """Look for a pattern that ends nothing; UsageError begins with the option that asks."""
        self._looked_for[pattern] = _compile(pattern, option)

    def has_seen(self, pattern: str) -> bool:
        """Whether the console has shown a pattern since `look_for`."""
        return pattern not in self._looked_for

    def feed(self, data: bytes) -> None:
        """Look at more of the console."""
        more = self._plain.feed(data)
        self.headlines.feed(more)
        if self.script:
            self.script.feed(more)
        # One character more than the window, so that ^ does not match where it was cut.
        text = self.tail + more
        start = 1 if len(self.tail) > WINDOW else 0
        for wanted in (self._unmet, self._looked_for):
            for pattern, compiled in list(wanted.items()):
                if search(compiled, text, start):
                    del wanted[pattern]
        self.tail = text[-WINDOW - 1 :]


def _compile(pattern: str, option: str = "--expect") -> re.Pattern[str]:
    try:
        return parse_pattern(pattern)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from None
