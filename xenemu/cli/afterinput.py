"""What a run does when its input has ended, and the guest goes on.

Xen's console has no end of file. A guest with a timer might be sleeping, so it is never taken to
wait for ever; and every Linux has a timer. So the guest goes on. A shell of xenemu's own making
gets the Ctrl-D that a person would type. For any other guest, the person is told, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

PATIENCE_NS: Final = 1_000_000_000  # of the guest's time, without output, before Ctrl-D is typed
TOLD_NS: Final = 60_000_000_000  # and before the person is told
CTRL_D: Final = b"\x04"


class AfterInput:
    """Watches a guest whose input has ended; `clock` is the guest's, in ns.

    `ends_by_ctrl_d`: a shell reads the console. A Ctrl-D may get lost: a program that the shell
    runs may take it, or the terminal may be in another mode by then. So Ctrl-D is typed again, each
    time after a longer wait. `tell` gets a sentence, at most once.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        ends_by_ctrl_d: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._clock, self._tell = clock, tell
        self._ends_by_ctrl_d = ends_by_ctrl_d
        self._mid_line = False
        self.spoke()

    def spoke(self) -> None:
        """Note that the guest has printed something, or that input came."""
        self._since_ns = self._clock()
        self._next_ns = self._since_ns + PATIENCE_NS

    def typed(self, data: bytes) -> None:
        """Note what input came."""
        self._mid_line = not data.endswith(b"\n")
        self.spoke()

    def look(self, waits_for: Sequence[str] = ()) -> bytes:
        """What to type, now that no more input can come; tells the person if it is time.

        More can come if the console shows what a script `waits_for`.
        """
        now_ns = self._clock()
        if self._tell and now_ns - self._since_ns >= TOLD_NS:
            what = f"waits for {waits_for[0]!r}" if waits_for else "has ended"
            advice = "" if waits_for else "if it waits for more input, "
            self._tell(
                f"the input {what}, and the guest has printed nothing for a minute of its time;"
                f" {advice}Ctrl-C or --timeout ends the run"
            )
            self._tell = None
        if waits_for or not self._ends_by_ctrl_d or now_ns < self._next_ns:
            return b""
        self._next_ns = now_ns + 2 * (self._next_ns - self._since_ns)
        line_end, self._mid_line = b"\n" if self._mid_line else b"", False
        return line_end + CTRL_D
