"""The engine for a debugger: slices in pieces, single steps, breakpoints that nobody else sees.

A slice keeps its deadline, however often it is interrupted. For a step, the guest gets a deadline
one instruction away, and the rest of the slice is put off.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection

from xenemu.cpu.engine import Engine
from xenemu.hv.debug import Access, Cause, Halt, Watchpoint

MAX_RETRIES = 8  # how often an instruction can fault, be helped by the hypervisor, and start anew


class DebugPort:
    """Implements `xenemu.hv.debug.DebugCpu` on an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shim = shim = engine._shim
        self._clock, self._exit, self._debug = shim.clock, shim.exit, shim.debug
        self._constants = shim.constants
        self._breakpoints: frozenset[int] = frozenset()
        self._watches: frozenset[Watchpoint] = frozenset()
        self.over = True

    def begin(self, deadline_ns: int) -> None:
        """Begin a slice that ends at virtual time `deadline_ns`."""
        self._engine.set_deadline(deadline_ns)
        self.over = self._clock.left <= 0

    def run(self, instructions: int | None = None) -> Halt | None:
        """Run to the end of the slice, or to a halt; see `DebugCpu.run`."""
        if instructions is not None:
            return self._run_for(instructions)
        self._engine.resume()
        return self._take_halt()

    def step(self) -> Halt | None:
        """Run one instruction; one that the hypervisor helps unseen is started again."""
        engine = self._engine
        before = (engine.instructions, engine.rip, engine.regs[4])
        for _ in range(MAX_RETRIES):
            halt = self._step()
            if halt or self.over or (engine.instructions, engine.rip, engine.regs[4]) != before:
                break
        return halt

    def _step(self) -> Halt | None:
        self._debug.stepping = 1
        try:
            return self._run_for(1)
        finally:
            self._debug.stepping = 0

    def _run_for(self, instructions: int) -> Halt | None:
        """Run with a deadline so many instructions away, and put the rest of the slice off."""
        engine, clock = self._engine, self._clock
        engine.put_off = max(0, clock.left - instructions)
        clock.end -= engine.put_off
        clock.left -= engine.put_off
        try:
            engine.resume()
        finally:
            clock.end += engine.put_off
            clock.left += engine.put_off
            engine.put_off = 0
        return self._take_halt()

    def _take_halt(self) -> Halt | None:
        debug = self._debug
        self.over = self._engine.slice_over
        stop, debug.stop = debug.stop, 0
        if stop == self._constants.STOP_WATCHPOINT:
            return Halt(Cause.WATCHPOINT, debug.address, Access(debug.access))
        if stop == self._constants.STOP_FAULT:
            return Halt(Cause.FAULT, vector=debug.access)
        return Halt(Cause.BREAKPOINT) if stop else None

    def request_halt(self) -> None:
        """Leave `run` before the next instruction of the guest."""
        self._exit.stop |= self._constants.STOP_DEBUGGER

    def set_breakpoints(self, vaddrs: Collection[int]) -> bool:
        """Halt before these instructions. A change drops all translated code."""
        wanted = frozenset(vaddrs)
        if wanted != self._breakpoints:
            array = (ctypes.c_uint64 * len(wanted))(*sorted(wanted))
            if not self._shim.set_breakpoints(array, len(wanted)):
                return False
            self._breakpoints = wanted
        return True

    def set_watchpoints(self, watches: Collection[Watchpoint]) -> bool:
        """Halt after these accesses; False, and none is watched for, if there are too many."""
        wanted = frozenset(watches)
        if wanted == self._watches:
            return True
        self._shim.unwatch_all()
        self._watches = frozenset()
        for watch in sorted(wanted, key=lambda w: (w.vaddr, w.size, w.access)):
            if not self._shim.watch(watch.vaddr, watch.size, watch.access):
                self._shim.unwatch_all()
                return False
        self._watches = wanted
        return True

    def catch_faults(self, vectors: Collection[int]) -> None:
        """Halt at these faults, before the guest has them."""
        self._debug.caught_faults = sum(1 << vector for vector in set(vectors))
