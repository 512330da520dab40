"""What a guest has printed: its bytes, its lines with the virtual time of each, and matches."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Final

from xenemu.console_text import PlainText
from xenemu.records import dataclass

WINDOW: Final = 64 << 10  # characters of the past that a match can reach back to
LIMIT: Final = 16 << 20  # bytes of a console that are kept


@dataclass
class Transcript:
    """A console as it grows. `lines` are (virtual ns of the line's first byte, text)."""

    raw: bytearray = field(default_factory=bytearray)
    lines: list[tuple[int, str]] = field(default_factory=list)
    dropped: int = 0  # bytes beyond `LIMIT`
    own: int = 0  # the first line that is not another guest's
    origin: str = ""  # the name of that guest
    _plain: PlainText = field(default_factory=PlainText)
    _open: bool = False  # the last line may go on
    _tail: str = ""  # the end of the text
    _searched: int = 0  # how much of it lies before the last match of `find`
    _fresh: int = 0  # where in it what was fed last begins

    def feed(self, data: bytes, now_ns: int) -> list[str]:
        """Take in what was printed at `now_ns`; return the lines that it completes."""
        kept = data[: max(0, LIMIT - len(self.raw))]
        self.raw += kept
        self.dropped += len(data) - len(kept)
        text = self._plain.feed(data)
        self._append(text)
        completed = []
        for piece in text.splitlines(keepends=True) if kept else ():
            if self._open:
                at_ns, begun = self.lines.pop()
            else:
                at_ns, begun = now_ns, ""
            self._open = not piece.endswith("\n")
            self.lines.append((at_ns, begun + piece.rstrip("\n")))
            if not self._open:
                completed.append(self.lines[-1][1])
        return completed

    def _append(self, text: str) -> None:
        self._fresh = len(self._tail)
        self._tail += text
        # One character more than the window, so that ^ does not match where it was cut.
        cut = max(0, len(self._tail) - WINDOW - 1)
        self._tail = self._tail[cut:]
        self._searched = max(1 if cut else 0, self._searched - cut)
        self._fresh = max(0, self._fresh - cut)

    def part(self, origin: str) -> None:
        """Go on as another guest's console: what is found is what comes from now on."""
        self.origin, self.own = origin, len(self.lines) - self._open
        self._searched = self._fresh = len(self._tail)

    def find(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The next match after the last that this found."""
        found = pattern.search(self._tail, self._searched)
        if found:
            self._searched = max(found.end(), found.start() + 1)
        return found

    def has(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """A match that ends in what was fed last, wherever it begins."""
        return next((m for m in pattern.finditer(self._tail) if m.end() > self._fresh), None)

    def first(self, pattern: re.Pattern[str]) -> tuple[int, str] | None:
        """The line, counted from 1, in which the whole console's first match begins."""
        text = "\n".join(self.text)
        found = pattern.search(text)
        if not found or not self.lines:
            return None
        line = text.count("\n", 0, found.start())
        return line + 1, self.lines[line][1]

    @property
    def text(self) -> list[str]:
        """The lines alone."""
        return [line for _, line in self.lines]

    def stamped(self) -> str:
        """The console, before each line the virtual time in seconds of its first byte."""
        lines = [f"{at_ns / 1e9:12.6f}  {line}\n" for at_ns, line in self.lines]
        if self.origin:
            lines.insert(self.own, f"(so far, this is {self.origin})\n")
        if self.dropped:
            lines.append(f"({self.dropped} more bytes were printed, and are not kept)\n")
        return "".join(lines)
