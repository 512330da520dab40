"""What is outside of a run that a debugger takes back: what came once comes again.

Where the run has been before, all input is what came then, and what the guest sends goes nowhere.
What comes meanwhile waits until the run is where it was. If somebody interferes, the run is another
one from there on, and its input is new.
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

from xenemu.machine.outside import Idle, Outside, Receiver
from xenemu.recording.events import Arrived, Waited, place
from xenemu.records import dataclass

MOST_BYTES: Final = 64 << 20  # of input; more makes the run one that cannot be repeated from before


@dataclass
class Rewindable(Outside):
    """An Outside for `Machine.run` with a debugger. `Past.heard` counts the events."""

    _events: list[Arrived | Waited] = field(default_factory=list, init=False)
    _forgotten: int = field(default=0, init=False)  # how many came before these
    _turns: int = field(default=0, init=False)  # how far the run has ever come
    _sent: int = field(default=-1, init=False)  # in which turn something was sent last
    _size: int = field(default=0, init=False)
    _is_idle: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._disturbed = self.machine.disturbed
        self._turns = self.machine.past.turns

    @property
    def _has_been_here(self) -> bool:
        self._settle()
        return self.machine.past.turns < self._turns

    def _settle(self) -> None:
        """Forget what came, and will not come again, if somebody has interfered."""
        machine = self.machine
        if machine.disturbed != self._disturbed:
            self._disturbed = machine.disturbed
            self._events.clear()
            self._forgotten, self._turns, self._size = machine.past.heard, machine.past.turns, 0
            self._sent = machine.past.turns - 1

    def _take_event(self, kind: type[Arrived | Waited]) -> Arrived | Waited | None:
        """The next event, if it is of this kind and of this turn."""
        self._settle()
        past = self.machine.past
        left = self._events[past.heard - self._forgotten :][:1]
        if not left or not isinstance(left[0], kind) or left[0].turns != past.turns:
            return None
        past.heard += 1
        return left[0]

    def _note(self, event: Arrived | Waited) -> None:
        self._settle()
        self._events.append(event)
        self.machine.past.heard += 1

    def _come_again(self) -> None:
        """Hand over what came in this turn."""
        domain = self.machine.domain
        while isinstance(event := self._take_event(Arrived), Arrived):
            receiver: Receiver = domain.backends[event.receiver]  # type: ignore[assignment]
            receiver.feed(domain, event.data)

    # An Outside.

    def arrive(self, receiver: Receiver, data: bytes) -> None:
        self._note(Arrived(*place(self.machine), receiver.name, bytes(data), self._is_idle))
        self._size += len(data)
        receiver.feed(self.machine.domain, data)
        if self._size > MOST_BYTES:
            self.machine.disturbed += 1

    def take(self) -> None:
        self._come_again()
        if not self._has_been_here:
            super().take()

    def send(self) -> None:
        self._settle()
        turns = self.machine.past.turns
        if turns > self._sent:
            self._sent = turns
            super().send()
            return
        for line, _ in self.sources:
            line.take_sent()

    def begin_turn(self) -> None:
        super().begin_turn()
        self._settle()
        self._turns = max(self._turns, self.machine.past.turns)

    def wait(self, next_ns: int | None) -> Idle:
        if isinstance(event := self._take_event(Waited), Waited):
            self.machine.engine.skip_to(event.until_ns)
            self._come_again()
        elif self._has_been_here:
            if next_ns is not None:
                self.machine.engine.skip_to(next_ns)
                return Idle.SKIPPED
        else:
            return super().wait(next_ns)
        return Idle.WAITED

    def waited(self, until_ns: int, is_live: bool, typed: bytes) -> None:
        machine = self.machine
        until_ns = until_ns if is_live else machine.engine.now_ns
        self._note(Waited(*place(machine), until_ns, is_live))
        machine.engine.skip_to(until_ns)
        if typed:
            self._is_idle = True
            self.arrive(machine.console, typed)
            self._is_idle = False
