"""The status line: what a run does now, kept in place on the person's terminal.

The guest's console may be on the same terminal, and comes first. The line is drawn only where the
console is at the start of a line. It is taken away before the console goes on. It is gone for good
once the person types to the guest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Final, TextIO

INTERVAL_S: Final = 0.25
ERASE: Final = "\r\x1b[K"


class Status:
    """A line on `stream`, or nothing if that is None; `shared`: the console is there, too.

    `measure` tells the guest's virtual time in ns, and its instructions so far.
    """

    def __init__(
        self,
        stream: TextIO | None,
        shared: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._shared = shared
        self._clock = clock
        self.measure: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._drawn = False
        self._at_line_start = True
        self._next_s = 0.0
        self._last = (clock(), 0)

    def phase(self, words: str) -> None:
        """Show at once what is being done."""
        self._draw(words)

    def progress(self, words: str) -> None:
        """Show the virtual time and the speed too, at most every `INTERVAL_S`."""
        host_s = self._clock()
        if self._stream is None or host_s < self._next_s:
            return
        self._next_s = host_s + INTERVAL_S
        now_ns, instructions = self.measure()
        (then_s, before), self._last = self._last, (host_s, instructions)
        speed = (instructions - before) / max(host_s - then_s, 1e-9) / 1e6
        self._draw(f"{words}, virtual time {now_ns / 1e9:.3f} s, {speed:.0f} M instructions/s")

    def make_room(self) -> None:
        """Take the line away: the console goes on."""
        if self._stream is not None and self._drawn:
            self._drawn = False
            self._stream.write(ERASE)
            self._stream.flush()

    def printed(self, data: bytes) -> None:
        """Note where the console left the cursor."""
        if self._shared and data:
            self._at_line_start = data.endswith(b"\n")

    def typed(self) -> None:
        """Leave the terminal that the console shares to the person and the guest."""
        if self._shared:
            self.make_room()
            self._stream = None

    def new_line(self) -> str:
        """Take the line away; what to print first so that a new line begins."""
        self.make_room()
        return "" if self._at_line_start else "\n"

    def end(self) -> str:
        """Take the line away for good; what to print first so that a new line begins."""
        first = self.new_line()
        self._stream = None
        return first

    def _draw(self, words: str) -> None:
        if self._stream is None or not self._at_line_start:
            return
        columns = shutil.get_terminal_size().columns
        self._stream.write(f"{ERASE}{words[: columns - 1]}\r")
        self._stream.flush()
        self._drawn = True
