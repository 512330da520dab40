"""What a debugger may ask of a CPU and of a machine, and what the machine asks of a debugger.

A debugger holds the guest between two instructions. Meanwhile nothing of the guest's changes, not
even its time. So a run with a debugger prints and counts the same as a run without one.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, IntFlag
from typing import Final, Protocol

from xenemu.outcome import Outcome
from xenemu.records import dataclass

MAX_BREAKPOINTS: Final = 256  # as in cpu/native/debug.c
MAX_WATCHPOINTS: Final = 16


class Access(IntFlag):
    """What a watchpoint watches for."""

    READ = 1
    WRITE = 2


NO_ACCESS = Access(0)


class Cause(Enum):
    """Why the CPU gave the guest to the debugger."""

    BREAKPOINT = "breakpoint"  # before the instruction at RIP
    WATCHPOINT = "watchpoint"  # after the instruction that made the access
    FAULT = "fault"  # before the guest has it: the instruction is at RIP, and will fault again


@dataclass(frozen=True)
class Halt:
    """Why the guest is where it is.

    `vaddr` is the watchpoint's address, `access` what it watches for; `vector` is the fault's.
    """

    cause: Cause
    vaddr: int = 0
    access: Access = NO_ACCESS
    vector: int = 0


@dataclass(frozen=True)
class Watchpoint:
    """A watchpoint: `size` bytes at a linear address."""

    vaddr: int
    size: int
    access: Access


class DebugCpu(Protocol):
    """The verbs of a CPU that only a debugger needs.

    A slice of the guest's time is begun once, and then run and stepped to its end. The machine
    looks at the console and at other vcpus only at that end, as it would without a debugger.
    """

    over: bool  # the slice has ended: its time is up, or the vcpu blocked, halted or died

    def begin(self, deadline_ns: int) -> None:
        """Begin a slice that ends at virtual time `deadline_ns`."""

    def run(self, instructions: int | None = None) -> Halt | None:
        """Run to the end of the slice, or to a halt; None also if `request_halt` was called.

        With `instructions`, run no more than so many, or fewer.
        """

    def step(self) -> Halt | None:
        """Run one instruction, or less: to where its fault or a forestalling interrupt leads."""

    def request_halt(self) -> None:
        """Leave `run` before the next instruction; from within an exit of the guest's."""

    def set_breakpoints(self, vaddrs: Collection[int]) -> bool:
        """Halt before the instructions at these linear addresses; False if there are too many."""

    def set_watchpoints(self, watches: Collection[Watchpoint]) -> bool:
        """Halt after these accesses; False if there are too many."""

    def catch_faults(self, vectors: Collection[int]) -> None:
        """Halt at these faults, before the guest has them."""


class Debugger(Protocol):
    """An object that may hold the guest still.

    Each method may hold the guest for as long as it likes, and may raise `RunEnded` or `WentBack`.
    """

    def run(self, deadline_ns: int) -> None:
        """Run the current vcpu to the end of its slice."""

    def look(self) -> None:
        """Hold the guest if somebody wants it, though no vcpu may be runnable."""

    def calls(self) -> bool:
        """Whether somebody wants the guest held: a wait for idle time then ends early."""

    def idle(self) -> bool:
        """Nothing can wake the guest: wait for somebody to do so; False if nobody can."""

    def ended(self, outcome: Outcome) -> None:
        """The guest has ended, and can still be looked at."""


class WentBack(Exception):
    """A debugger has restored the machine to a snapshot: the run goes on from there."""


class RunEnded(Exception):
    """The person ended the run from the debugger."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome
