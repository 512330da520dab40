"""Work that a thread does aside, most of it without Python's lock, as digests are taken.

It must be over before the process is confined, so whoever begins it waits for its result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Thread
from typing import Final, Generic, TypeVar

TURN_S: Final = sys.getswitchinterval()
SHORT_TURN_S: Final = 0.0002  # of a thread that has the lock while another wants it

T = TypeVar("T")


class Aside(Generic[T]):
    """Begins `work` at once. A program that ends before it is over does not wait for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done: list[T] = []
        self._error: BaseException | None = None
        sys.setswitchinterval(SHORT_TURN_S)
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._done.append(self._work())
        except BaseException as error:  # for who asks
            self._error = error

    def result(self) -> T:
        """Wait until it is done; what it returned, or what it raised."""
        self._thread.join()
        sys.setswitchinterval(TURN_S)
        if self._error is not None:
            raise self._error
        return self._done[0]
