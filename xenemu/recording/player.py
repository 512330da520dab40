"""Repeats a recorded run: what came from outside comes at the same instants again.

A person may leave, and a debugger may go back. How far the recording has been repeated is a part of
the machine's own past, and goes back with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from xenemu.dom0.p9 import ServerError
from xenemu.dom0.verbs import VERBS
from xenemu.hv.state.schedule import Schedule
from xenemu.machine.core import Core
from xenemu.machine.outside import Idle, Outside
from xenemu.network.pcap import Tapped
from xenemu.outcome import End, Outcome
from xenemu.recording import events
from xenemu.recording.events import (
    Arrived,
    Changed,
    Checked,
    Ended,
    Waited,
    follow,
    place,
    state_of,
)
from xenemu.recording.file import Recording

CUT: Final = "the recording ends here: its run was killed, or the file was cut"


@dataclass
class Player:
    """What repeats a recording; `signum` is the signal that ended the recorded run, once it has.

    With `goes_on`, the guest goes on without input where the recording was cut.
    """

    recording: Recording
    goes_on: bool = False
    signum: int = 0

    def outside(self, machine: Core, *others: object) -> Outside:
        """What is outside of a machine, for `Machine.run`. The machine gets a toolstack's verbs."""
        machine.control.verbs = VERBS
        return _Replayed(machine, *others, player=self)  # type: ignore[arg-type]

    def server(self, share: str) -> Answers:
        """What answers in the place of a share's server."""
        return Answers(self.recording, share)


@dataclass(kw_only=True)
class _Replayed(Outside):
    player: Player
    _judged: tuple[int, Outcome] | None = field(default=None, init=False)  # after so many turns
    _agreed: int = field(default=0, init=False)  # instructions, at the last event

    @property
    def _verdict(self) -> Outcome | None:
        """Why the run ends in another way than the recorded one; None if it has gone back since."""
        if self._judged is None or self._judged[0] > self.machine.past.turns:
            return None
        return self._judged[1]

    def _judge(self, outcome: Outcome) -> None:
        if self._verdict is None:
            self._judged = self.machine.past.turns, outcome

    @property
    def _next(self) -> events.Any | None:
        recorded, heard = self.player.recording.events, self.machine.past.heard
        return recorded[heard] if heard < len(recorded) else None

    def _take(self, event: events.Any) -> bool:
        """Take the next event, which is for now; False if the run has come here in another way."""
        _, instructions, now_ns = place(self.machine)
        if (event.instructions, event.now_ns) != (instructions, now_ns):
            self._differ(
                f"what was at instruction {event.instructions} and {event.now_ns} ns is at"
                f" {instructions} and {now_ns} ns now"
            )
            return False
        self.machine.past.heard += 1
        self._agreed = instructions
        return True

    def _differ(self, how: str) -> None:
        """The run is another one."""
        now = self.machine.engine.instructions
        self._judge(
            Outcome(
                End.DIVERGED,
                f"the replay is not the recorded run: {how}; they agreed at instruction"
                f" {self._agreed}, and differ at {now}",
            )
        )

    def take(self) -> None:
        turns = self.machine.past.turns
        while isinstance(event := self._next, Arrived | Changed) and event.turns == turns:
            if not self._take(event):
                return
            if isinstance(event, Arrived):
                self._deliver(event)
            else:
                self._change(event)
        if event is not None and event.turns < turns:
            self._differ(f"what came in turn {event.turns} has no place")

    def _deliver(self, event: Arrived) -> None:
        """Hand over what came; the run can be repeated, so it is not disturbed."""
        domain = self.machine.domain
        feed = getattr(domain.backends.get(event.receiver), "feed", None)
        if feed is None:
            self._differ(f"{event.receiver!r} takes nothing from outside")
            return
        for line, source in self.sources:
            if line.name == event.receiver and isinstance(source, Tapped):
                source.came(self.machine.engine.now_ns, event.data)
        try:
            feed(domain, event.data)
        except ValueError as error:  # nobody sends that
            self._differ(f"{event.receiver!r} cannot take what came: {error}")

    def _change(self, event: Changed) -> None:
        if event.schedule is not None:
            self.machine.domain.schedule = Schedule(*event.schedule)
        if event.rng_seed is not None:
            self.machine.engine.seed_random(event.rng_seed)

    def begin_turn(self) -> None:
        super().begin_turn()
        machine = self.machine
        follow(machine)
        while isinstance(event := self._next, Checked) and event.turns == machine.past.turns:
            if not (self._take(event) and self._is_as_checked(event)):
                return

    def _is_as_checked(self, event: Checked | Ended) -> bool:
        machine = self.machine
        found = (machine.past.trail, state_of(machine, event.number))
        if found == (event.trail, event.state):
            return True
        turn = " in an earlier turn" if found[0] != event.trail else ""
        self._differ(f"its registers or its memory were others{turn}")
        return False

    def run_slice(self, run: Callable[[int], None], deadline_ns: int) -> None:
        """Run a slice; the last one to the very instruction before which the host ended it."""
        last = self._end
        if last is None or not last.is_host_made:
            run(deadline_ns)
            return
        engine = self.machine.engine
        while (left := last.instructions - engine.instructions) > 0:
            until_ns = min(deadline_ns, engine.now_ns + left)
            run(until_ns)
            if engine.now_ns < until_ns or until_ns == deadline_ns:
                return

    def wait(self, next_ns: int | None) -> Idle:
        event, engine = self._next, self.machine.engine
        if isinstance(event, Waited) and event.turns == self.machine.past.turns:
            if self._take(event):
                engine.skip_to(event.until_ns)
                self._take_typed()
        elif next_ns is not None:
            engine.skip_to(next_ns)
            return Idle.SKIPPED
        elif event is None or self._end is not None:
            return Idle.NOT
        else:
            self._differ("the guest waits, and the recorded one did not")
        return Idle.WAITED

    @property
    def _end(self) -> Ended | None:
        """The end of the recorded run, if this is its last turn."""
        ended = self.player.recording.ended
        return ended if ended is not None and ended.turns == self.machine.past.turns else None

    def _take_typed(self) -> None:
        event = self._next
        if isinstance(event, Arrived) and event.is_idle and event.turns == self.machine.past.turns:
            self.machine.past.heard += 1
            self._deliver(event)

    def check(self) -> Outcome | None:
        """Why to stop: somebody wants it now, or the host wanted it then, or nothing is left."""
        own = self.terminal.check()
        if own is not None and own.end is End.STOPPED:
            self._judge(own)
        elif self._next is None and not self.player.goes_on:
            self._judge(Outcome(End.UNMET, CUT))
        if self._verdict is not None:
            return self._verdict
        ended = self._end
        if ended is not None and ended.is_host_made and ended is self._next:
            return Outcome(ended.end, ended.reason, ended.advice)
        return None

    def expired(self) -> Outcome | None:
        """Why to stop, if this took too long."""
        expired = super().expired()
        if expired is not None:
            self._judge(expired)
        return expired

    def over(self, outcome: Outcome) -> Outcome:
        """The run is over: whether that is how the recorded one was."""
        if self._verdict is not None:
            return self._verdict
        event, machine = self._next, self.machine
        if event is None:
            return outcome
        if not isinstance(event, Ended):
            self._differ(f"it ended ({outcome.reason}), and the recorded one went on")
        elif (event.end, event.reason, event.printed) != (
            outcome.end,
            outcome.reason,
            machine.printed,
        ):
            self._differ(f"it ended ({outcome.reason}), and the recorded one so: {event.reason}")
        elif self._take(event) and self._is_as_checked(event):
            self.player.signum = event.signum
        return self._verdict or outcome


@dataclass
class Answers:
    """Answers what a share's server has answered."""

    recording: Recording
    share: str

    def ask(self, request: bytes, before: int) -> bytes:
        """As `dom0.p9.Server.ask`."""
        answers = self.recording.answers.get(self.share, [])
        if before >= len(answers):
            raise ServerError("the recording has no more answers of the server")
        answer = answers[before]
        if answer.failed:
            raise ServerError(answer.failed)
        return answer.data

    def leave_if(self, leaves: Callable[[], bool]) -> None:
        """There is nothing to wait for."""
