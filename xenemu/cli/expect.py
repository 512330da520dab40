"""Expectations: regular expressions that what the guest prints must meet, in any order.

They see the console as a person does: UTF-8 with what is none replaced, without carriage returns,
colours and cursor movements. ``^`` and ``$`` match at line ends, and ``$`` also at the end of what
is printed so far, so that a prompt can be expected.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Final

from xenemu.errors import UsageError

WINDOW: Final = 16 << 10  # characters of the past that a match can reach back to
# ECMA-48, 5.4: CSI, parameter bytes, intermediate bytes, a final byte.
SEQUENCE: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\r")
SEQUENCE_BEGUN: Final = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8})?\Z")


class Expectations:
    """The patterns not yet met, and the last `WINDOW` characters of the console.

    Raises UsageError for what is no regular expression.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.any = bool(patterns)
        self._unmet = {pattern: _compile(pattern) for pattern in patterns}
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._begun = ""  # a sequence whose end is not printed yet
        self.tail = ""

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
        # One character more than the window, so that ^ does not match where it was cut.
        fresh = SEQUENCE.sub("", self._begun + self._decode(data))
        begun = SEQUENCE_BEGUN.search(fresh)
        fresh, self._begun = (fresh[: begun.start()], begun[0]) if begun else (fresh, "")
        text = self.tail + fresh
        start = 1 if len(self.tail) > WINDOW else 0
        for pattern, compiled in list(self._unmet.items()):
            if compiled.search(text, start):
                del self._unmet[pattern]
        self.tail = text[-WINDOW - 1 :]


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise UsageError(f"--expect {pattern!r} is no regular expression: {error}") from None
