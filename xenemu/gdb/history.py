"""Where gdb can go back to: checkpoints of the machine, as long as its run can be repeated.

A run from a checkpoint does what it did the first time, to the byte. It no longer does if somebody
has interfered meanwhile: if the guest had input, or gdb wrote to its memory or registers, or held
some of its vcpus while others ran. Then all checkpoints are dropped, and new ones are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xenemu.hv.cpu import Reg
from xenemu.machine import Machine
from xenemu.machine.snapshot import Snapshot

EVERY: Final = 250_000_000  # instructions from one checkpoint to the next
NEAR: Final = 20_000_000  # instructions before a goal, for one more: two long slices
KEPT: Final = 8
MOST_MEMORY: Final = (1 << 30) + (32 << 20)  # with what is not the guest's; more takes seconds
NOT_BEFORE: Final = "from here on the run can be repeated, and not before"
TOO_LARGE: Final = "a guest of more than 1 GiB cannot go back: its checkpoints would take too long"


@dataclass(frozen=True)
class Place:
    """An instant of a run, between two instructions."""

    instructions: int
    now_ns: int
    vcpu_id: int
    rip: int
    rsp: int

    @classmethod
    def of(cls, machine: Machine) -> Place:
        """The present."""
        engine, vcpu = machine.engine, machine.current.vcpu
        return cls(
            engine.instructions, engine.now_ns, vcpu.vcpu_id, engine.rip, engine.regs[Reg.RSP]
        )


@dataclass(frozen=True)
class Checkpoint:
    """A machine between two slices, and how much it had printed."""

    place: Place
    snapshot: Snapshot
    printed: int


class History:
    """The checkpoints of a run, oldest first."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._disturbed = machine.disturbed
        self.checkpoints: list[Checkpoint] = []

    def note(self, goal: int | None = None) -> None:
        """Between two slices: take a checkpoint if there is none.

        On a way to `goal`, so many instructions, take some more: the next way back may begin there.
        """
        machine = self._machine
        self.settle()
        if self._is_too_large:
            return
        done = machine.engine.instructions
        earlier = [kept for kept in self.checkpoints if kept.place.instructions <= done]
        if earlier:
            since = done - earlier[-1].place.instructions
            is_near = goal is not None and 0 < goal - done < NEAR <= since
            if goal is None or not (is_near or since >= EVERY):
                return
        made = Checkpoint(Place.of(machine), machine.snapshot(), machine.printed)
        self.checkpoints.insert(len(earlier), made)
        if len(self.checkpoints) > KEPT:
            self._thin_out()

    @property
    def _is_too_large(self) -> bool:
        return len(self._machine.domain.memory.bytes) > MOST_MEMORY

    @property
    def limit(self) -> str:
        """Why it goes back no further, a sentence for the person."""
        return TOO_LARGE if self._is_too_large else NOT_BEFORE

    def _thin_out(self) -> None:
        """Drop the checkpoint, but for the first, whose neighbours are nearest to each other."""
        at = [kept.place.instructions for kept in self.checkpoints]
        gaps = {n: at[n + 1] - at[n - 1] for n in range(1, len(at) - 1)}
        del self.checkpoints[min(gaps, key=gaps.__getitem__)]

    def settle(self) -> None:
        """Drop the checkpoints if the run cannot be repeated any more."""
        if self._machine.disturbed != self._disturbed:
            self._disturbed = self._machine.disturbed
            self.checkpoints.clear()

    def before(self, instructions: int) -> Checkpoint | None:
        """The last checkpoint with no more instructions behind it."""
        found = [kept for kept in self.checkpoints if kept.place.instructions <= instructions]
        return found[-1] if found else None

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Make the machine what it was; its run loop must begin anew."""
        self._machine.restore(checkpoint.snapshot)
        self._machine.printed = checkpoint.printed
