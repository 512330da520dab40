"""When a run gives up by the guest's own time, so at the same instruction in every run."""

from __future__ import annotations

from collections.abc import Callable

from xenemu.options import parse_seconds
from xenemu.outcome import End, Outcome
from xenemu.records import dataclass


@dataclass
class Patience:
    """Limits in the guest's seconds: of the run, and of silence on its console; None: no limit.

    `begin` it with the guest's clock, in nanoseconds.
    """

    virtual_s: float | None = None
    quiet_s: float | None = None

    @classmethod
    def parse(cls, virtual: str | None, quiet: str | None) -> Patience | None:
        """What --virtual-timeout and --quiet-timeout say, if either is there; UsageError."""
        if virtual is None and quiet is None:
            return None
        return cls(
            None if virtual is None else parse_seconds("--virtual-timeout", virtual),
            None if quiet is None else parse_seconds("--quiet-timeout", quiet),
        )

    def begin(self, clock: Callable[[], int]) -> None:
        """The run begins, or goes on."""
        self._clock = clock
        self._began_ns = self._spoke_ns = clock()

    def spoke(self) -> None:
        """Note that the guest has printed something."""
        self._spoke_ns = self._clock()

    @property
    def due_ns(self) -> int | None:
        """When the next limit comes, if nothing is printed until then."""
        return min(filter(None, (self._virtual_ns, self._quiet_ns)), default=None)

    @property
    def _virtual_ns(self) -> int | None:
        return None if self.virtual_s is None else self._began_ns + int(self.virtual_s * 1e9)

    @property
    def _quiet_ns(self) -> int | None:
        return None if self.quiet_s is None else self._spoke_ns + int(self.quiet_s * 1e9)

    def check(self) -> Outcome | None:
        """Why to stop, if a limit has come."""
        now_ns = self._clock()
        if self._virtual_ns is not None and now_ns >= self._virtual_ns:
            words = f"still running after {self.virtual_s:g} s of its own time"
            return Outcome(End.TIMEOUT, words)
        if self._quiet_ns is not None and now_ns >= self._quiet_ns:
            words = f"it printed nothing for {self.quiet_s:g} s of its own time"
            return Outcome(End.TIMEOUT, words)
        return None
