"""A console's bytes as the text that a person sees.

The bytes are UTF-8, and bytes that are not valid UTF-8 are replaced. Carriage returns, colours and
cursor movements are left out.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

# ECMA-48, 5.4: CSI, parameter bytes, intermediate bytes, a final byte.
SEQUENCE: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\r")
SEQUENCE_BEGUN: Final = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8})?\Z")


class PlainText:
    """Turns bytes into text, however they are cut into pieces."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._begun = ""  # a sequence whose end is not printed yet

    def feed(self, data: bytes) -> str:
        """Return the text that `data` adds."""
        fresh = SEQUENCE.sub("", self._begun + self._decode(data))
        begun = SEQUENCE_BEGUN.search(fresh)
        fresh, self._begun = (fresh[: begun.start()], begun[0]) if begun else (fresh, "")
        return fresh
