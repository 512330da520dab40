"""Records a run: notes what comes from outside, and now and then what the machine is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from xenemu.dom0.p9 import Server, ServerError, Share
from xenemu.machine.core import Core
from xenemu.machine.outside import Outside, Receiver
from xenemu.outcome import Outcome
from xenemu.recording.events import (
    Answered,
    Arrived,
    Checked,
    Ended,
    Waited,
    follow,
    place,
    state_of,
)
from xenemu.recording.file import Writer

EVERY: Final = 250_000_000  # instructions from one check to the next


@dataclass
class Recorder:
    """What a recording takes along from run to run; `signum` is the signal that ended the run."""

    writer: Writer
    every: int = EVERY
    signum: Callable[[], int] = int
    checks: int = 0
    next_check: int = 0

    def outside(self, machine: Core, *others: object) -> Outside:
        """What is outside of a machine, for `Machine.run`; it notes all that it takes."""
        return _Recorded(machine, *others, recorder=self)  # type: ignore[arg-type]

    def hear(self, machine: Core, share: Share) -> None:
        """Note what the server of a share answers."""
        share.server = _Heard(share.server, share.name, machine, self.writer)


@dataclass(kw_only=True)
class _Recorded(Outside):
    recorder: Recorder
    _is_idle: bool = field(default=False, init=False)

    def arrive(self, receiver: Receiver, data: bytes) -> None:
        self.recorder.writer.note(
            Arrived(*place(self.machine), receiver.name, bytes(data), self._is_idle)
        )
        super().arrive(receiver, data)

    def waited(self, until_ns: int, is_live: bool, typed: bytes) -> None:
        self.recorder.writer.note(Waited(*place(self.machine), until_ns, is_live))
        self._is_idle = True
        super().waited(until_ns, is_live, typed)
        self._is_idle = False

    def begin_turn(self) -> None:
        super().begin_turn()
        recorder = self.recorder
        follow(self.machine)
        if self.machine.engine.instructions >= recorder.next_check:
            recorder.next_check = self.machine.engine.instructions + recorder.every
            recorder.writer.note(Checked(*place(self.machine), *self._check()))
        recorder.writer.flush()

    def _check(self) -> tuple[int, int, bytes]:
        machine, number = self.machine, self.recorder.checks
        self.recorder.checks += 1
        return number, machine.past.trail, state_of(machine, number)

    def over(self, outcome: Outcome) -> Outcome:
        writer, machine = self.recorder.writer, self.machine
        end = (outcome.end, outcome.reason, outcome.advice)
        signum = self.recorder.signum()
        writer.note(Ended(*place(machine), *end, signum, machine.printed, *self._check()))
        writer.flush()
        return outcome


@dataclass
class _Heard:
    """A share's server, whose answers are noted."""

    server: Server
    share: str
    machine: Core
    writer: Writer

    def ask(self, request: bytes, before: int) -> bytes:
        """As `dom0.p9.Server.ask`."""
        try:
            answer = self.server.ask(request, before)
        except ServerError as error:
            self.writer.note(Answered(*place(self.machine), self.share, b"", str(error)))
            raise
        self.writer.note(Answered(*place(self.machine), self.share, answer))
        return answer

    def leave_if(self, leaves: Callable[[], bool]) -> None:
        """As `dom0.p9.Server.leave_if`."""
        self.server.leave_if(leaves)
