"""A guest whose console has shown nothing yet: the person is told what to do, once.

Otherwise nobody would know before the end of the run. The end may never come: a Linux that waits
for input on another console has a timer, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

PATIENCE_NS: Final = 3_000_000_000  # of the guest's time: Debian's kernels are at /init by then


class Silence:
    """Watches a guest from its first instruction; `clock` is the guest's, in ns.

    `advice` says what to do, or nothing; `tell` gets it. `told` is what was told.
    """

    def __init__(
        self, clock: Callable[[], int], advice: Callable[[], str], tell: Callable[[str], None]
    ) -> None:
        self._clock, self._advice, self._tell = clock, advice, tell
        self._is_over = False
        self.told = ""

    def spoke(self) -> None:
        """Note that the guest has printed something."""
        self._is_over = True

    def look(self) -> None:
        """Tell the person, if it is time."""
        if self._is_over or self._clock() < PATIENCE_NS:
            return
        self._is_over = True
        self.told = self._advice()
        if self.told:
            self._tell(self.told)
