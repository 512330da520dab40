"""Where gdb can go back to: checkpoints of the machine, as long as its run can be repeated.

A run from a checkpoint does what it did the first time, to the byte, with the same input
(`recording.rewinding`). It no longer does if somebody has interfered meanwhile: if gdb wrote to the
guest's memory or registers, or held some of its vcpus while others ran. Then all checkpoints are
dropped, and new ones are taken.

A checkpoint is a copy of this process, which costs milliseconds and little memory. They are as far
from each other as one wants to wait for a run from one to the next. So the host's clock says when,
and nothing of the guest depends on it. Where a person goes back step by step, one more is a
snapshot, which takes longer to make but is here already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from xenemu.gdb.copies import Copy, Lost
from xenemu.hv.cpu import Reg
from xenemu.machine import Machine
from xenemu.machine.snapshot import Snapshot
from xenemu.records import dataclass

EVERY_S: Final = 0.6  # of this process's time, from one checkpoint to the next
COPY_IS: Final = 1 / 150  # at most so much of this process's time goes into copies
FAR_S: Final = 0.1  # from the last checkpoint: worth a snapshot
NEAR: Final = 20_000_000  # instructions before a goal, for a snapshot: two long slices
NEAR_ONES: Final = 2
FEWEST, MOST = 4, 16  # copies
MOST_HELD: Final = 2 << 30  # by copies, if the guest writes to all of its memory again and again
MOST_MEMORY: Final = (1 << 30) + (32 << 20)  # with what is not the guest's; more takes seconds
NOT_BEFORE: Final = "from here on the run can be repeated, and not before"
TOO_LARGE: Final = "a guest of more than 1 GiB cannot go back: its checkpoints would take too long"
LOST: Final = "the host has ended the processes that kept what was before; is its memory full?"


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

    def __str__(self) -> str:
        return f"after {self.instructions} instructions, at {self.now_ns / 1e9:.9f} s"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A machine between two slices, and how much it had printed."""

    place: Place
    kept: Copy | Snapshot
    printed: int
    is_near: bool  # to where a person was

    def snapshot(self) -> Snapshot:
        """The machine as it was; Lost."""
        return self.kept.fetch() if isinstance(self.kept, Copy) else self.kept


class History:
    """The checkpoints of a run, oldest first, and the places that the person has marked.

    `obstacle` is a sentence for the person if the run cannot be repeated at all.
    """

    def __init__(
        self,
        machine: Machine,
        obstacle: str = "",
        clock: Callable[[], float] = time.process_time,
        copy: Callable[[Machine], Copy] = Copy.of,
    ) -> None:
        self._machine, self._clock, self._copy = machine, clock, copy
        self._disturbed = machine.disturbed
        size = len(machine.domain.memory.bytes)
        self._obstacle = obstacle or (TOO_LARGE if size > MOST_MEMORY else "")
        self._most = max(FEWEST, min(MOST, MOST_HELD // size))
        self._every_s = EVERY_S
        self._since_s = 0.0  # when this process came by the last checkpoint
        self._last: Checkpoint | None = None
        self._fetched: tuple[Checkpoint, Snapshot] | None = None
        self._has_lost = False
        self._ending: list[Copy] = []
        self.checkpoints: list[Checkpoint] = []
        self.marks: list[Place] = []

    def note(self, goal: int | None = None) -> None:
        """Between two slices: take a checkpoint if there is none, or the last one is long ago.

        On a way to `goal`, so many instructions, take one more: other ways back will begin there.
        """
        self.settle()
        if self._obstacle:
            return
        done = self._machine.engine.instructions
        last = self.before(done)
        if last is not self._last:
            self._last, self._since_s = last, self._clock()
        since_s = self._clock() - self._since_s
        if last is None:
            self._keep(done, self._copied())
        elif goal is not None and 0 < goal - done < NEAR and since_s >= FAR_S:
            self._keep(done, self._machine.snapshot(), is_near=True)
        elif since_s >= self._every_s and not self._comes_soon(done):
            self._keep(done, self._copied())

    def _comes_soon(self, done: int) -> bool:
        """Whether the next checkpoint, on a way that was gone already, is near."""
        later = (kept.place.instructions for kept in self.checkpoints)
        return any(done <= at < done + NEAR for at in later)

    def _copied(self) -> Copy | Snapshot:
        before_s = self._clock()
        try:
            return self._copy(self._machine)
        except OSError:  # the host allows no more processes
            return self._machine.snapshot()
        finally:
            self._every_s = max(EVERY_S, (self._clock() - before_s) / COPY_IS)

    def _keep(self, done: int, kept: Copy | Snapshot, is_near: bool = False) -> None:
        place = sum(one.place.instructions <= done for one in self.checkpoints)
        made = Checkpoint(Place.of(self._machine), kept, self._machine.printed, is_near)
        self._last, self._since_s = made, self._clock()
        self.checkpoints.insert(place, made)
        same = [one for one in self.checkpoints if one.is_near == is_near]
        if len(same) > (NEAR_ONES if is_near else self._most):
            self._drop(_farthest(same, done) if is_near else self._densest(same, done))

    def _densest(self, found: list[Checkpoint], now: int) -> Checkpoint:
        """The one to do without: the nearer they are to the present, the denser they may be.

        The first is kept, because no way leads to before the second. The last is new, or the person
        comes from there.
        """
        at = [one.place.instructions for one in found]
        gaps = {
            n: (at[n + 1] - at[n - 1]) / (abs(now - at[n]) + NEAR)
            for n in range(1, len(at) - 1)
            if found[n] is not self._last
        }
        return found[min(gaps, key=gaps.__getitem__)]

    def _drop(self, *dropped: Checkpoint) -> None:
        self.checkpoints = [kept for kept in self.checkpoints if kept not in dropped]
        if self._fetched and self._fetched[0] in dropped:
            self._fetched = None
        for checkpoint in dropped:
            if isinstance(checkpoint.kept, Copy):
                checkpoint.kept.end()
                self._ending.append(checkpoint.kept)
        self._ending = [copy for copy in self._ending if not copy.has_ended()]

    @property
    def limit(self) -> str:
        """Why it goes back no further, a sentence for the person."""
        return self._obstacle or (LOST if self._has_lost else NOT_BEFORE)

    def settle(self) -> None:
        """Drop the checkpoints if the run cannot be repeated any more."""
        if self._machine.disturbed != self._disturbed:
            self._disturbed = self._machine.disturbed
            self.clear()

    def clear(self) -> None:
        """Drop all: nobody goes back, or nobody can."""
        self._drop(*self.checkpoints)
        self.marks.clear()
        self._last, self._has_lost = None, False

    def close(self) -> None:
        """Drop all, and wait until no copy is there any more."""
        self.clear()
        for copy in self._ending:
            copy.wait()

    def before(self, instructions: int) -> Checkpoint | None:
        """The last checkpoint with no more instructions behind it."""
        return self.last(lambda place: place.instructions <= instructions)

    def last(self, is_early: Callable[[Place], bool]) -> Checkpoint | None:
        """The last checkpoint whose place is early enough."""
        return next((kept for kept in reversed(self.checkpoints) if is_early(kept.place)), None)

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Make the machine what it was; its run loop must begin anew.

        Lost: it is no longer there, and the machine stays as it is.
        """
        if self._fetched is None or self._fetched[0] is not checkpoint:
            try:
                self._fetched = checkpoint, checkpoint.snapshot()
            except Lost:
                self._has_lost = True
                self._drop(checkpoint)
                raise
        self._machine.restore(self._fetched[1])
        self._machine.printed = checkpoint.printed
        self._last, self._since_s = checkpoint, self._clock()


def _farthest(found: list[Checkpoint], now: int) -> Checkpoint:
    return max(found, key=lambda one: abs(now - one.place.instructions))
