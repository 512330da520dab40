"""What comes from outside while a guest runs: what a person types, and what sources bring.

All of it comes through one function, `Outside.arrive`, between two slices of the guest. And the
loop asks the host nothing but by a method of `Outside`: how long a wait took, and when to give up.
So who notes what these come to has all of a run that is no function of its start, and who answers
in their place repeats the run (`xenemu.replay`).

A source has a descriptor and belongs to a backend. For example, a wire brings packets to a vif.
While the guest is idle and a source may bring something, the machine waits for it, and the guest's
time passes as the host's does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from enum import Enum
from typing import Protocol

from xenemu.hv.state.domain import Domain
from xenemu.machine.core import Core
from xenemu.machine.terminal import Limits, Terminal
from xenemu.outcome import End, Outcome
from xenemu.records import dataclass


class Receiver(Protocol):
    """A backend that takes what comes from outside."""

    @property
    def name(self) -> str: ...

    def feed(self, domain: Domain, data: bytes) -> object:
        """Take what has come: bytes of a stream, or one packet."""


class Line(Receiver, Protocol):
    """A backend that has a source. What it sends waits in it until the end of the slice."""

    @property
    def has_room(self) -> bool:
        """Whether it takes anything now, if only to drop it."""

    @property
    def listens(self) -> bool:
        """Whether it has room, and what it takes would reach the guest."""

    def take_sent(self) -> Iterable[tuple[int, bytes]]:
        """What it has sent since it was asked last, each with its virtual time."""


class Source(Protocol):
    """Something outside with a descriptor. None of its methods wait."""

    @property
    def reading(self) -> int | None:
        """The descriptor to wait for; None if nothing can come."""

    @property
    def writing(self) -> int | None:
        """The descriptor to wait for if something could not be sent at once."""

    def receive(self, now_ns: int) -> Sequence[bytes]:
        """What has come; a bounded amount."""

    def send(self, now_ns: int, data: bytes) -> None:
        """Send; what there is no room for is lost."""

    def flush(self) -> None:
        """Send what could not be sent at once."""


class Idle(Enum):
    """How idle time has passed."""

    NOT = 0  # it cannot: no timer is set, and nothing can come
    SKIPPED = 1  # time was moved to the next timer, and nothing has come
    WAITED = 2  # something may have come


@dataclass
class Outside:
    """Everything outside of a machine that decides how its run goes on, for one run."""

    machine: Core
    terminal: Terminal
    sources: Sequence[tuple[Line, Source]] = field(default=())
    limits: Limits = field(default_factory=Limits)

    def arrive(self, receiver: Receiver, data: bytes) -> None:
        """Hand a backend what has come for it, now. Nothing else brings a guest any input."""
        self.machine.disturbed += 1
        receiver.feed(self.machine.domain, data)

    # What the loop calls in each of its turns.

    def take(self) -> None:
        """Take what has come, without waiting."""
        console = self.machine.console
        if not self.terminal.exhausted and console.input_room:
            data = self.terminal.read(console.input_room, 0)
            if data:
                self.arrive(console, data)
        for line, source in self.sources:
            if line.has_room:
                for packet in source.receive(self.machine.engine.now_ns):
                    self.arrive(line, packet)

    def send(self) -> None:
        """Send what the backends have for their sources."""
        for line, source in self.sources:
            source.flush()
            for at_ns, data in line.take_sent():
                source.send(at_ns, data)

    def check(self) -> Outcome | None:
        """Why to stop, if the person or what the guest printed says so."""
        return self.terminal.check()

    def expired(self) -> Outcome | None:
        """Why to stop, if that is because it took too long."""
        if self.limits.expired():
            return Outcome(End.TIMEOUT, f"still running after {self.limits.timeout_s:g} s")
        return None

    def begin_turn(self) -> None:
        """A vcpu gets its turn now, or idle time passes."""
        self.machine.past.turns += 1

    def run_slice(self, run: Callable[[int], None], deadline_ns: int) -> None:
        """Have `run` run the guest to the end of its slice."""
        run(deadline_ns)

    def calls_off(self) -> bool:
        """Whether the host wants the run to end; asked within slices, with no other effect."""
        return self.terminal.leaves() or self.limits.expired()

    def wait(self, next_ns: int | None) -> Idle:
        """Let idle time pass, to the next timer or to input."""
        engine, is_live = self.machine.engine, self.is_live
        due_ns = self._due_ns
        if due_ns is not None and (next_ns is None or due_ns < next_ns):
            if not is_live:  # by no timer of the guest's, so a repetition must be told
                self.waited(due_ns, True, b"")
                return Idle.WAITED
            next_ns = due_ns
        if next_ns is not None and not is_live:
            engine.skip_to(next_ns)
            return Idle.SKIPPED
        if next_ns is None and self.is_over:
            return Idle.NOT
        wait_ns = None if next_ns is None else max(0, next_ns - engine.now_ns)
        left_s = self.limits.left_s()
        if left_s is not None:
            left_ns = int(left_s * 1e9)
            wait_ns = left_ns if wait_ns is None else min(left_ns, wait_ns)
        before = self.limits.clock()
        typed = self._read(wait_ns)
        until_ns = engine.now_ns
        if is_live:
            until_ns += int((self.limits.clock() - before) * 1e9)
            until_ns = until_ns if next_ns is None else min(until_ns, next_ns)
        self.waited(until_ns, is_live, typed)
        return Idle.WAITED

    def waited(self, until_ns: int, is_live: bool, typed: bytes) -> None:
        """The wait is over: it is that time now, if it passes as the host's, and this was typed."""
        if is_live:
            self.machine.disturbed += 1
            self.machine.engine.skip_to(until_ns)
        if typed:
            self.arrive(self.machine.console, typed)

    def show(self, data: bytes) -> None:
        """Show what the guest has printed."""
        self.terminal.write(data)

    def over(self, outcome: Outcome) -> Outcome:
        """The run is over; how it is to be told."""
        return outcome

    # What it waits for.

    @property
    def is_live(self) -> bool:
        """Whether idle time passes as the host's: a person types, or a packet may come."""
        return self.terminal.interactive or bool(self.sources and self._awaited())

    @property
    def is_over(self) -> bool:
        """Nothing can come any more, or nothing that there is room for."""
        no_input = self.terminal.exhausted or not self.machine.console.input_room
        return no_input and not self._awaited()

    @property
    def _due_ns(self) -> int | None:
        """When the terminal is to be looked at; None if that is never, or would change nothing."""
        due_ns, now_ns = self.terminal.due_ns, self.machine.engine.now_ns
        if due_ns is None or (due_ns <= now_ns and not self.machine.console.input_room):
            return None
        return max(due_ns, now_ns)

    def _read(self, wait_ns: int | None) -> bytes:
        """Wait until something comes, or so long; what was typed. `take` has the rest."""
        room = self.machine.console.input_room
        writing = [source.writing for _, source in self.sources]
        return self.terminal.read(
            room, wait_ns, self._awaited(), [one for one in writing if one is not None]
        )

    def _awaited(self) -> list[int]:
        found = (source.reading for line, source in self.sources if line.listens)
        return [descriptor for descriptor in found if descriptor is not None]
