"""Going back: how a step or a continuation backwards is made of runs forwards from a checkpoint.

A journey is a generator. It yields what the machine is to do next, and is sent what came of that.
It returns the stop at which it ends. The machine is then at that place.

gdb manual: Packets (bc, bs); Stop Reply Packets (replaylog).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from xenemu.gdb.history import Checkpoint, History, Place
from xenemu.gdb.stops import SIGTRAP, Stop, stop_of
from xenemu.hv.debug import Cause, Halt
from xenemu.machine import Machine


@dataclass(frozen=True)
class Restore:
    """Make the machine what it was at a checkpoint."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class RunTo:
    """Run until so many instructions are done; if `armed`, or to a breakpoint or watchpoint."""

    instructions: int
    armed: bool = False


class Simple(Enum):
    """Commands and events without more to them."""

    STEP = "run one instruction, or to where an upcall leads"
    THERE = "the machine did what it should"
    ENDED = "the guest ended"


Command = Restore | RunTo | Simple
Event = Halt | Simple
Journey = Generator[Command, Event, Stop]
BEGIN: Final = Stop(SIGTRAP, "replaylog", "begin")


def step_back(machine: Machine, history: History, origin: Place) -> Journey:
    """Go to the place before `origin`, on whichever vcpu."""
    checkpoint = history.before(origin.instructions - 1)
    if checkpoint is None:
        return (yield from _to_begin(history))
    start, steps = origin.instructions - 1, 0
    yield Restore(checkpoint)
    yield RunTo(start)
    while Place.of(machine) != origin:
        steps += 1
        if (yield Simple.STEP) is Simple.ENDED:
            break
    yield Restore(checkpoint)
    yield RunTo(start)
    for _ in range(steps - 1):
        yield Simple.STEP
    return Stop(SIGTRAP)


def run_back(machine: Machine, history: History, origin: Place, hardware: set[int]) -> Journey:
    """Go to the last breakpoint, or watched access, before `origin`.

    A watchpoint stops before the instruction that made the access, where its value is the old one.
    """
    end = origin
    for checkpoint in reversed(tuple(history.checkpoints)):
        if checkpoint.place.instructions >= end.instructions:
            continue
        hits, _ = yield from _hits(machine, checkpoint, end, None)
        if hits:
            _, halt = yield from _hits(machine, checkpoint, end, hits)
            assert halt is not None
            stop = stop_of(halt, hardware, machine.engine.rip)
            if halt.cause is Cause.WATCHPOINT:
                yield from step_back(machine, history, Place.of(machine))
            return stop
        end = checkpoint.place
    return (yield from _to_begin(history))


def _hits(
    machine: Machine, checkpoint: Checkpoint, end: Place, wanted: int | None
) -> Generator[Command, Event, tuple[int, Halt | None]]:
    """Run from a checkpoint to `end`, or to the hit that is `wanted`; how many, and the last."""
    yield Restore(checkpoint)
    count, last = 0, None
    event = yield RunTo(end.instructions, armed=True)
    while isinstance(event, Halt):
        if event.cause is Cause.BREAKPOINT and Place.of(machine) == end:
            break
        count, last = count + 1, event
        if count == wanted:
            break
        if event.cause is Cause.BREAKPOINT:
            event = yield Simple.STEP
            if isinstance(event, Halt):
                continue
        event = yield RunTo(end.instructions, armed=True)
    return count, last


def _to_begin(history: History) -> Journey:
    if history.checkpoints:
        yield Restore(history.checkpoints[0])
    return BEGIN
