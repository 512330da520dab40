"""The composition root: an image, a personality, a CPU and the hypercalls make a machine.

`Machine.run` alternates between the guest and what waits for it: due timers, the console, dom0's
backends. Virtual time passes with the guest's instructions; when every vcpu is blocked, it is
moved to the next timer.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from hypercalls import TABLE
from xenemu import boot
from xenemu.abi.sched import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_suspend,
    SHUTDOWN_watchdog,
)
from xenemu.cpu.coverage import BlockLog
from xenemu.cpu.debug import DebugPort
from xenemu.cpu.engine import Engine, EngineState
from xenemu.dom0 import toolstack
from xenemu.dom0.console import Console
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_tree import Store
from xenemu.errors import DomainCrash
from xenemu.hv import backend, scheduler, timers
from xenemu.hv.building import DomainConfig
from xenemu.hv.clock import refresh_time
from xenemu.hv.current import Current
from xenemu.hv.debug import Debugger, RunEnded
from xenemu.hv.personality import Personality
from xenemu.hv.prices import PRICES_NS
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.domain import Backend, Domain
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.image import Image
from xenemu.outcome import End, Outcome
from xenemu.pvh.entry import PORTS, TripleFault
from xenemu.sampling import Samples

__all__ = ["TABLE", "DomainConfig", "Limits", "Machine", "Terminal"]

SLICE_NS = 10_000_000  # how long a guest runs before the console and other vcpus are looked at
SHUTDOWNS = {
    SHUTDOWN_poweroff: (End.POWEROFF, "the guest powered off"),
    SHUTDOWN_reboot: (End.REBOOT, "the guest asked to be rebooted"),
    SHUTDOWN_suspend: (End.SUSPEND, "the guest suspended itself"),
    SHUTDOWN_crash: (End.GUEST_CRASH, "the guest crashed, by its own account"),
    SHUTDOWN_watchdog: (End.WATCHDOG, "a watchdog that the guest had set ran out"),
    SHUTDOWN_soft_reset: (End.REBOOT, "the guest asked for a soft reset"),
}


class Terminal(Protocol):
    """The person's side of the console."""

    def write(self, data: bytes) -> None:
        """Show what the guest printed."""

    def read(self, room: int, wait_ns: int | None) -> bytes:
        """Up to `room` bytes of input, none if there are none.

        With `wait_ns`, wait that long (0: do not; None: for ever, or until no more can come).
        """

    @property
    def interactive(self) -> bool:
        """A person types: idle time then passes as the host's does."""

    @property
    def exhausted(self) -> bool:
        """No more input can come."""

    def check(self) -> Outcome | None:
        """Why to stop, if what was printed or typed says so; asked between slices."""

    def leaves(self) -> bool:
        """Whether a person or a signal wants the guest to stop at once; then `check` says why.

        Asked within slices, by the host's clock. Nothing else may come of it.
        """


@dataclass
class Limits:
    """When to give up: host seconds since `started`, or since now, by the caller's clock."""

    timeout_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    started: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.started):
            self.started = self.clock()

    def left_s(self) -> float | None:
        """Seconds until `expired`; None if that is never."""
        if self.timeout_s is None:
            return None
        return max(0.0, self.timeout_s - (self.clock() - self.started))

    def expired(self) -> bool:
        return self.timeout_s is not None and self.clock() - self.started > self.timeout_s


@dataclass(frozen=True)
class Snapshot:
    """A machine as it was once: all that decides how its run goes on.

    A machine that is restored and runs on does to the byte what it did when it was not stopped.
    What belongs to the caller is not in it: the terminal, a debugger, what observers have noted.
    It is of use to the machine that took it, and to no other.
    """

    domain: DomainSnapshot
    vcpu_id: int  # who was in the CPU,
    engine: EngineState  # and what was there
    samples: Samples
    next_audit_ns: float


class Machine:
    """A domain on an engine."""

    slice_ns = SLICE_NS

    def __init__(
        self,
        image: Image,
        config: DomainConfig,
        mode: str = boot.AUTO,
        backends: Iterable[Backend] = (),
    ) -> None:
        """Build the domain by an entry of `mode`, the one that auto takes if it is not said.

        `backends` are what dom0 has for the domain besides a console and the store.
        """
        self.entry = boot.choose(image, mode)
        self.domain: Domain = self.entry.build(image, config)
        image.forget_pages()
        store, self.console = Store(), Console()
        toolstack.create(
            self.domain, config, store, [XenstoreRing(store=store), self.console, *backends]
        )
        self.personality: Personality = self.entry.platform.personality
        self.engine = Engine(self.domain.memory, self.domain.p2m, PORTS)
        self.current = Current(
            self.domain,
            self.domain.vcpus[0],
            self.engine,
            self.personality.translate,
            TABLE,
        )
        self.engine.set_prices(PRICES_NS)
        self.engine.seed_random(config.rng_seed)
        self.samples = Samples()
        self.timers = timers.join(
            scheduler.TIMERS, self.personality.timers, backend.timers(self.domain)
        )
        self.next_audit_ns = math.inf
        self.exits = self.personality.exits(self.current)
        self.engine.attach(self.exits)
        if self.entry.platform.paged:
            root = self.personality.address_space(self.current)
            self.engine.turn_paging_on(root << 12, long_mode=self.domain.width == 8)
        self.engine.set_task_switched(False)
        self._untouched = self.engine.store()  # how each vcpu finds the CPU
        self.entry.start(self.current)

    def snapshot(self) -> Snapshot:
        """Keep what the machine is now; not while it runs."""
        return Snapshot(
            DomainSnapshot(self.domain),
            self.current.vcpu.vcpu_id,
            self.engine.keep(),
            copy.deepcopy(self.samples),
            self.next_audit_ns,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Make the machine what it was at a snapshot that it took; not while it runs."""
        current = self.current
        self.domain = current.domain = snapshot.domain.restore(self.domain)
        current.vcpu = self.domain.vcpus[snapshot.vcpu_id]
        self.engine.put_back(snapshot.engine)
        self.exits = self.personality.exits(current)
        self.engine.attach(self.exits)
        self.samples = copy.deepcopy(snapshot.samples)
        self.next_audit_ns = snapshot.next_audit_ns

    def run(
        self,
        terminal: Terminal,
        limits: Limits | None = None,
        audit_ns: int | None = None,
        debugger: Debugger | None = None,
    ) -> Outcome:
        """Run the guest to its end, or until `terminal`, `limits` or `debugger` say to stop.

        With `audit_ns`, audit the domain each time that so much virtual time has passed, and in
        the end.
        """
        limits = limits or Limits()
        try:
            outcome = self._run_to_end(terminal, limits, audit_ns, debugger)
            wrong = self._audit() if audit_ns is not None else None
            outcome = wrong or outcome
            if debugger:
                debugger.ended(outcome)
        except RunEnded as ended:
            outcome = replace(ended.outcome, held=True)
        return outcome

    def _run_to_end(
        self,
        terminal: Terminal,
        limits: Limits,
        audit_ns: int | None,
        debugger: Debugger | None,
    ) -> Outcome:
        try:
            return self._run(terminal, limits, audit_ns, debugger)
        except TripleFault as fault:
            crashed = Outcome(End.TRIPLE_FAULT, str(fault), fault.advice)
        except DomainCrash as crash:
            crashed = Outcome(End.REFUSED, str(crash), crash.advice)
        self.console.pump(self.domain)
        self._show_output(terminal)
        return terminal.check() or crashed

    def _audit(self) -> Outcome | None:
        """Audit the domain; an end of the run if its books are wrong."""
        faults = self.personality.audit(self.domain)
        if not faults:
            return None
        more = f"; and {len(faults) - 1} more faults" if faults[1:] else ""
        at_s = self.engine.now_ns / 1e9
        return Outcome(
            End.INCONSISTENT, f"bug in xenemu: the audit at {at_s:.3f} s: {faults[0]}{more}"
        )

    def _run(
        self,
        terminal: Terminal,
        limits: Limits,
        audit_ns: int | None,
        debugger: Debugger | None,
    ) -> Outcome:
        domain, engine = self.domain, self.engine
        engine.look = lambda: self._look_at_host(terminal, limits, debugger)
        run = debugger.run if debugger else engine.run
        every_ns = math.inf if audit_ns is None else audit_ns
        if audit_ns is None:  # nor one that an earlier run wanted
            self.next_audit_ns = math.inf
        else:
            self.next_audit_ns = min(self.next_audit_ns, engine.now_ns + audit_ns)
        while True:
            if engine.now_ns >= self.next_audit_ns:
                self.next_audit_ns = engine.now_ns + every_ns
                if wrong := self._audit():
                    return wrong
            timers.fire_due(self.current, self.timers)
            self._pump(terminal)
            ended = self._ended(terminal, limits)
            if ended:
                return ended
            if debugger:
                debugger.look()
            vcpu = self._next_vcpu()
            if vcpu is None:
                waited = self._wait(terminal, limits, debugger)
                if not (waited or (debugger and debugger.idle())):
                    return Outcome(End.IDLE, "the guest waits for an event that nothing can send")
                continue
            self._switch_to(vcpu)
            refresh_time(self.current)
            self.exits.deliver_events()
            domain.timers.moved = False
            next_ns = domain.timers.next_ns()
            deadline = engine.now_ns + self.slice_ns
            run(deadline if next_ns is None else min(deadline, next_ns))
            self.exits.stopped()
            self.samples.take(self.current)

    @cached_property
    def debug(self) -> DebugPort:
        """The CPU's verbs for a debugger."""
        return DebugPort(self.engine)

    def record_blocks(self) -> BlockLog:
        """Note which code the guest runs from now on."""
        return BlockLog(self.engine)

    def _look_at_host(self, terminal: Terminal, limits: Limits, debugger: Debugger | None) -> None:
        """End the slice if the host wants the run to end; pause it if a debugger has a word."""
        if terminal.leaves() or limits.expired():
            self.engine.stop()
        elif debugger and debugger.calls():
            self.debug.request_halt()

    def _ended(self, terminal: Terminal, limits: Limits) -> Outcome | None:
        code = self.domain.shutdown_code
        finished = terminal.check()
        if finished:
            return finished
        if code is not None:
            end, reason = SHUTDOWNS.get(code, (End.GUEST_CRASH, f"shutdown reason {code}"))
            return Outcome(end, self.domain.shutdown_why or reason)
        if limits.expired():
            return Outcome(End.TIMEOUT, f"still running after {limits.timeout_s:g} s")
        return None

    def _next_vcpu(self) -> Vcpu | None:
        """The next runnable vcpu, round-robin from the one after the current."""
        vcpus = self.domain.vcpus
        first = self.current.vcpu.vcpu_id + 1
        order = vcpus[first:] + vcpus[:first]
        return next((vcpu for vcpu in order if vcpu.runnable), None)

    def _switch_to(self, vcpu: Vcpu) -> None:
        current, engine = self.current, self.engine
        if vcpu is not current.vcpu:
            if current.vcpu.runnable:
                scheduler.preempt(current)
            self.personality.leave(current)
            current.vcpu.saved = engine.store()
            current.vcpu = vcpu
            if vcpu.saved is None:
                engine.load(self._untouched)
                self.personality.start(current)
            else:
                engine.load(vcpu.saved)
                vcpu.saved = None
            self.personality.enter(current)
        if vcpu.runstate is not RunState.RUNNING:
            scheduler.run(current)

    def _wait(self, terminal: Terminal, limits: Limits, debugger: Debugger | None) -> bool:
        """Let idle time pass, to the next timer or to input; False if neither can come."""
        domain, engine = self.domain, self.engine
        next_ns = domain.timers.next_ns()
        if next_ns is None and (terminal.exhausted or not self.console.input_room):
            return False
        if next_ns is not None and not terminal.interactive:
            engine.skip_to(next_ns)
            return True
        wait_ns = None if next_ns is None else next_ns - engine.now_ns
        left_s = limits.left_s()
        if left_s is not None:
            left_ns = int(left_s * 1e9)
            wait_ns = left_ns if wait_ns is None else min(left_ns, wait_ns)
        before = limits.clock()
        data = terminal.read(self.console.input_room, wait_ns)
        passed = int((limits.clock() - before) * 1e9)
        if data:
            self.console.feed(domain, data)
            if terminal.interactive:
                engine.skip_to(engine.now_ns + passed)
        elif debugger and debugger.calls():
            engine.skip_to(engine.now_ns + min(passed, wait_ns or 0))
        elif next_ns is not None:
            engine.skip_to(next_ns)
        return True

    def _pump(self, terminal: Terminal) -> None:
        """Move console bytes both ways, and let each backend do what it could not before."""
        domain = self.domain
        self._show_output(terminal)
        room = self.console.input_room
        if room and not terminal.exhausted:
            data = terminal.read(room, 0)
            if data:
                self.console.feed(domain, data)
        for served in domain.backends.values():
            served.pump(domain)
        self._show_output(terminal)

    def _show_output(self, terminal: Terminal) -> None:
        output = self.domain.output
        if output:
            self.samples.spoke(self.engine.now_ns)
            terminal.write(bytes(output))
            output.clear()
