"""Going back: how a step or a continuation backwards is made of runs forwards from a checkpoint.

A journey is a generator. It yields what the machine is to do next, and is sent what came of that.
It returns the stop at which it ends; None: the guest ended before. The machine is then there.

gdb manual: Packets (bc, bs); Stop Reply Packets (replaylog).
"""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from typing import Final

from xenemu.gdb.history import Checkpoint, History, Place
from xenemu.gdb.stops import SIGNONE, SIGTRAP, Stop, stop_of
from xenemu.hv.debug import Cause, Halt
from xenemu.machine import Machine
from xenemu.records import dataclass


@dataclass(frozen=True)
class Restore:
    """Make the machine what it was at a checkpoint."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class RunTo:
    """Run until so many instructions are done; if `armed`, or to a breakpoint or watchpoint."""

    instructions: int
    armed: bool = False

    def left(self, machine: Machine) -> int:
        """How many instructions it takes at least."""
        return self.instructions - machine.engine.instructions

    @property
    def goal(self) -> int | None:
        """After how many instructions it ends, if another way back will begin near there."""
        return None if self.armed else self.instructions


@dataclass(frozen=True)
class RunUntil:
    """Run until a virtual time."""

    now_ns: int

    def left(self, machine: Machine) -> int:
        """How many instructions it takes at most: each takes a nanosecond, and some take more."""
        return self.now_ns - machine.engine.now_ns

    armed, goal = False, None


@dataclass(frozen=True)
class Step:
    """Run one instruction, or to where an upcall leads, or to where a vcpu's turn begins `at`."""

    at: Place | None = None


@dataclass(frozen=True)
class Try:
    """Find out whether one instruction would lead to a place, and stay."""

    place: Place


class Simple(Enum):
    """Events without more to them."""

    THERE = "the machine did what it should"
    ELSEWHERE = "the instruction would not lead there"
    ENDED = "the guest ended"


Run = RunTo | RunUntil
Command = Restore | Run | Step | Try
Event = Halt | Simple
Journey = Generator[Command, Event, Stop | None]
Goal = Place | Run
BEGIN: Final = Stop(SIGTRAP, "replaylog", "begin")


def step_back(machine: Machine, history: History, origin: Place) -> Journey:
    """Go to the place before `origin`, on whichever vcpu."""
    start, steps = origin.instructions - 1, 0
    checkpoint = _start(history, start)
    if checkpoint is None:
        return (yield from _to_begin(history))
    yield Restore(checkpoint)
    yield RunTo(start)
    if not machine.debug.over and (yield Try(origin)) is Simple.THERE:
        return Stop(SIGTRAP)
    while Place.of(machine) != origin:
        steps += 1
        if (yield Step()) is Simple.ENDED:
            break
    yield Restore(_start(history, start) or checkpoint)
    yield RunTo(start)
    for _ in range(steps - 1):
        yield Step()
    return Stop(SIGTRAP)


def run_back(machine: Machine, history: History, origin: Place, hardware: set[int]) -> Journey:
    """Go to the last breakpoint, or watched access, before `origin`.

    A watchpoint stops before the instruction that made the access, where its value is the old one.
    """
    end = origin
    while (checkpoint := history.before(end.instructions - 1)) is not None:
        yield Restore(checkpoint)
        found = yield from _hits(machine, end, end.instructions)
        if found is None:
            end = checkpoint.place
            continue
        place, halt = found
        if halt.cause is Cause.WATCHPOINT:
            yield from step_back(machine, history, place)
        else:
            yield Restore(history.before(place.instructions - 1) or checkpoint)
            yield from _hits(machine, place, place.instructions + 1)  # where the hit itself is
        return stop_of(halt, hardware, machine.engine.rip)
    return (yield from _to_begin(history))


def _hits(
    machine: Machine, end: Place, instructions: int
) -> Generator[Command, Event, tuple[Place, Halt] | None]:
    """Run to `end`, or until so many instructions are done; the last hit before, and its place."""
    last = None
    event = yield RunTo(instructions, armed=True)
    while isinstance(event, Halt):
        place, is_break = Place.of(machine), event.cause is Cause.BREAKPOINT
        if is_break and place == end:
            break
        last = place, event
        if is_break:
            event = yield Step()
            if isinstance(event, Halt):
                continue
        event = yield RunTo(instructions, armed=True)
    return last


def way_to(goal: Goal) -> Run:
    """The run that leads to a goal which is ahead."""
    return RunTo(goal.instructions) if isinstance(goal, Place) else goal


def go_to(machine: Machine, history: History, goal: Goal) -> Journey:
    """Go to a place, or so far into the run: back, or on past all breakpoints."""
    now = Place.of(machine)
    if goal == now:
        return Stop(SIGNONE)
    way = way_to(goal)
    left = way.left(machine)
    if left < 0 or (left == 0 and way is not goal):  # of the same count, which came first?
        if isinstance(goal, RunUntil):
            checkpoint = history.last(lambda place: place.now_ns <= goal.now_ns)
        else:
            checkpoint = _start(history, goal.instructions)
        if checkpoint is None:
            return (yield from _to_begin(history))
        yield Restore(checkpoint)
    event = yield way
    if isinstance(goal, Place):
        while event is not Simple.ENDED and Place.of(machine) != goal and way.left(machine) >= 0:
            event = yield Step(goal)
    return None if event is Simple.ENDED else Stop(SIGNONE)


def _start(history: History, instructions: int) -> Checkpoint | None:
    """From where to go to a place after so many: a checkpoint after as many may be later."""
    return history.before(instructions - 1) or history.before(instructions)


def _to_begin(history: History) -> Journey:
    if history.checkpoints:
        yield Restore(history.checkpoints[0])
    return BEGIN
