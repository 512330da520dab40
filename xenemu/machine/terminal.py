"""What a run asks of its caller: the person's side of the console, and when to give up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from xenemu.outcome import Outcome
from xenemu.records import dataclass


class Terminal(Protocol):
    """The person's side of the console."""

    def write(self, data: bytes) -> None:
        """Show what the guest printed."""

    def read(
        self,
        room: int,
        wait_ns: int | None,
        reading: Sequence[int] = (),
        writing: Sequence[int] = (),
    ) -> bytes:
        """Up to `room` bytes of input, none if there are none.

        With `wait_ns`, wait that long (0: do not; None: for ever, or until no more can come). What
        can be read from or written to others' descriptors ends the wait, too.
        """

    @property
    def interactive(self) -> bool:
        """A person types: idle time then passes as the host's does."""

    @property
    def exhausted(self) -> bool:
        """No more input can come."""

    @property
    def due_ns(self) -> int | None:
        """The guest's time at which something is to be typed, or `check` may say to stop.

        Idle time is skipped no further. None if that is never, or not known.
        """

    def check(self) -> Outcome | None:
        """Why to stop, if what was printed or typed says so; asked between slices."""

    def leaves(self) -> bool:
        """Whether a person or a signal wants the guest to stop at once; then `check` says why.

        Asked within slices, by the host's clock. The answer must have no other effect.
        """


@dataclass
class Limits:
    """When to give up: host seconds since `started`, or since now, by the caller's clock."""

    timeout_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    started: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.started):
            self.started = self.clock()

    def left_s(self) -> float | None:
        """Seconds until `expired`; None if that is never."""
        if self.timeout_s is None:
            return None
        return max(0.0, self.timeout_s - (self.clock() - self.started))

    def expired(self) -> bool:
        return self.timeout_s is not None and self.clock() - self.started > self.timeout_s
