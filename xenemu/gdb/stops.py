"""Why the guest stopped, as gdb is told, and how it goes on, as gdb says.

gdb manual: Stop Reply Packets; the vCont packet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xenemu.hv.debug import Access, Cause, Halt
from xenemu.records import dataclass
from xenemu.x86 import flags

SIGNONE, SIGINT, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGSEGV = 0, 2, 4, 5, 6, 8, 11
FAULT_SIGNALS: Final = {flags.UD: SIGILL, 0: SIGFPE, 1: SIGTRAP, 3: SIGTRAP}
WATCHES: Final = {
    Access.WRITE: "watch",
    Access.READ: "rwatch",
    Access.READ | Access.WRITE: "awatch",
}


@dataclass(frozen=True)
class Stop:
    """A stop: its signal, and what gdb calls the reason, with its value."""

    signal: int
    reason: str = ""
    value: str = ""


def stop_of(halt: Halt, hardware: set[int], pc: int) -> Stop:
    """What gdb is told of a halt; `hardware` are the breakpoints that it set as such."""
    if halt.cause is Cause.WATCHPOINT:
        return Stop(SIGTRAP, WATCHES[halt.access], f"{halt.vaddr:x}")
    if halt.cause is Cause.FAULT:
        return Stop(FAULT_SIGNALS.get(halt.vector, SIGSEGV))
    return Stop(SIGTRAP, "hwbreak" if pc in hardware else "swbreak")


@dataclass(frozen=True)
class Action:
    """How a thread goes on: freely, by an instruction, or while it is in a range of addresses."""

    stepping: bool = False
    within: range | None = None

    def is_done(self, pc: int) -> bool:
        """Whether a step that led to `pc` was the last."""
        return self.within is None or pc not in self.within


FREELY: Final = Action()
STEP: Final = Action(stepping=True)


@dataclass(frozen=True)
class Go:
    """How the guest goes on: what each thread does, and what the others do.

    A thread without an action is held while the others go on. A detached guest runs on alone.
    """

    threads: Mapping[int, Action | None]
    others: Action | None = None
    detached: bool = False

    def action(self, thread: int) -> Action | None:
        """What a thread does."""
        return self.threads.get(thread, self.others)

    @property
    def is_free(self) -> bool:
        """Whether gdb wants to hear of the guest only when something holds it."""
        actions = (*self.threads.values(), self.others)
        return not self.detached and not any(action and action.stepping for action in actions)


@dataclass(frozen=True)
class Back:
    """The guest goes back: by an instruction, or to a breakpoint or watchpoint."""

    stepping: bool


CONTINUE: Final = Go({}, FREELY)
CONTINUE_BACK: Final = Back(stepping=False)
DETACHED: Final = Go({}, FREELY, detached=True)
