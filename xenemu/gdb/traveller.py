"""Takes a machine along a journey, slice by slice, and knows which one it is on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from xenemu.gdb.copies import Lost, would
from xenemu.gdb.history import History, Place
from xenemu.gdb.stops import Stop
from xenemu.gdb.target import Target
from xenemu.gdb.travel import Command, Event, Journey, Restore, Simple, Step, Try
from xenemu.hv.debug import Watchpoint, WentBack

MOST_PASSED: Final = 256


class Traveller:
    """One at a time. `arrived` is called at the end of a journey, with the stop that gdb is told.

    That is None if the guest ended before. The machine may have been restored meanwhile. Then
    `WentBack` is raised out of the method that did it, after `arrived`.
    """

    def __init__(
        self, target: Target, history: History, arrived: Callable[[Stop | None], None]
    ) -> None:
        self._target, self._history, self._arrived = target, history, arrived
        self._plan: Callable[[], Journey] | None = None
        self._journey: Journey | None = None
        self._command: Command = Step()
        self._passed = 0  # breakpoints, which are not meant, since the command
        self._left: dict[int, int] = {}  # where each thread was when a step began

    @property
    def is_away(self) -> bool:
        """Whether a journey is under way."""
        return self._journey is not None

    @property
    def goal(self) -> int | None:
        """After how many instructions the machine is to halt for a while, on its way."""
        command = self._command
        return None if isinstance(command, Restore | Step | Try) else command.goal

    def set_out(self, plan: Callable[[], Journey]) -> None:
        """Begin the journey that `plan` makes. `plan` may be called again, from another place."""
        self._plan, self._journey = plan, plan()
        self.go_on(None)

    def stay(self) -> None:
        """End the journey where the machine is."""
        self._journey = None

    def go_on(self, event: Event | None) -> None:
        """Tell the journey what came of its last command, and hear the next."""
        restored = False
        assert self._journey is not None and self._plan is not None
        try:
            while isinstance(command := self._journey.send(event), Restore):  # type: ignore[arg-type]
                try:
                    self._history.go_back(command.checkpoint)
                    restored, event = True, Simple.THERE
                except Lost:  # the history has another one, or none
                    self._journey, event = self._plan(), None
            self._command, self._passed = command, 0
            if isinstance(command, Step):
                target = self._target
                self._left = {thread: target.pc_of(thread) for thread in target.threads}
        except StopIteration as end:
            self._journey = None
            self._arrived(end.value)
        if restored:
            raise WentBack

    def begin_slice(self) -> None:
        """A slice begins: a step may have ended by that, at the door of a handler."""
        command, target = self._command, self._target
        if isinstance(command, Step):
            has_moved = self._left.get(target.current_thread) != target.pc
            if has_moved or command.at == Place.of(target.machine):
                self.go_on(Simple.THERE)

    def run(self, breakpoints: Collection[int], watches: Collection[Watchpoint]) -> None:
        """Do what the journey has asked for, as far as the slice goes."""
        machine, command = self._target.machine, self._command
        debug = machine.debug
        if isinstance(command, Try):
            leads_there = would(lambda: self._leads_to(command.place))
            self.go_on(Simple.THERE if leads_there else Simple.ELSEWHERE)
            return
        if isinstance(command, Restore | Step):
            self.go_on(debug.step() or Simple.THERE)
            return
        if command.armed:
            debug.set_breakpoints(breakpoints)
        elif self._passed > MOST_PASSED:
            debug.set_breakpoints(())
        debug.set_watchpoints(watches if command.armed else ())
        left = command.left(machine)
        halt = debug.run(left) if left > 0 else None
        if halt and not command.armed:
            halt = None
            self._pass_by()
        if halt or command.left(machine) <= 0:
            self.go_on(halt or Simple.THERE)

    def _leads_to(self, place: Place) -> bool:
        """Run one instruction, unseen by observers."""
        machine = self._target.machine
        machine.domain.watch = None
        machine.debug.step()
        return Place.of(machine) == place

    def _pass_by(self) -> None:
        """Go on past a breakpoint that is not meant: to take them all away would cost more.

        All translated code would be dropped.
        """
        self._passed += 1
        self._target.machine.debug.step()
