"""A run of a machine: the guest takes turns with what waits for it.

Due timers, what comes from outside and dom0's backends wait for the guest. Virtual time passes with
the guest's instructions. When every vcpu is blocked, time is moved to the next timer, or passes as
the host's does if somebody outside may call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field, replace
from typing import Final

from xenemu.abi.sched import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_suspend,
    SHUTDOWN_watchdog,
)
from xenemu.errors import DomainCrash
from xenemu.hv import scheduler, timers
from xenemu.hv.clock import refresh_time
from xenemu.hv.debug import Debugger, RunEnded, WentBack
from xenemu.machine.core import Core
from xenemu.machine.ends import Action, Life
from xenemu.machine.outside import Idle, Outside
from xenemu.machine.reset import soft_reset
from xenemu.outcome import End, Outcome
from xenemu.pvh.exits import TripleFault
from xenemu.records import dataclass

SHUTDOWNS = {
    SHUTDOWN_poweroff: (End.POWEROFF, "the guest powered off"),
    SHUTDOWN_reboot: (End.REBOOT, "the guest asked to be rebooted"),
    SHUTDOWN_suspend: (End.SUSPEND, "the guest suspended itself"),
    SHUTDOWN_crash: (End.GUEST_CRASH, "the guest crashed, by its own account"),
    SHUTDOWN_watchdog: (End.WATCHDOG, "a watchdog that the guest had set ran out"),
    SHUTDOWN_soft_reset: (End.SOFT_RESET, "the guest asked for a soft reset"),
}
UNDEFINED_REASON: Final = (
    "look at its last call, with --trace hypercalls; SHUTDOWN_* in public/sched.h are 0 to 5. If"
    " sched_op_compat gets a pointer, as from GNU Mach, the pointer's lowest byte is the reason"
)


@dataclass
class Run:
    """A run of a machine until its guest ends, or one of these says to stop."""

    machine: Core
    outside: Outside
    debugger: Debugger | None = None
    keep: Callable[[], None] | None = None  # called between slices: may take a snapshot
    life: Life = field(default_factory=Life)

    def run(self, audit_ns: int | None) -> Outcome:
        """Run it; with `audit_ns`, audit the domain each time that so much has passed."""
        self._told = self.machine.printed
        while True:
            try:
                outcome = self._run_to_end(audit_ns)
                wrong = self._audit() if audit_ns is not None else None
                try:
                    if self._goes_on(wrong or outcome):
                        continue
                except DomainCrash as crash:  # xl cannot do what it should do
                    outcome = Outcome(End.REFUSED, str(crash))
                outcome = self.outside.over(wrong or outcome)
                if self.debugger:
                    self.debugger.ended(outcome)
            except WentBack:
                continue
            except RunEnded as ended:
                outcome = replace(ended.outcome, held=True)
            return outcome

    def _run_to_end(self, audit_ns: int | None) -> Outcome:
        try:
            outcome = self._take_turns(audit_ns)
            while outcome.end is End.SUSPEND and self._resumes():
                outcome = self._take_turns(audit_ns)
            return outcome
        except TripleFault as fault:
            crashed = Outcome(End.TRIPLE_FAULT, self._whose(fault), fault.advice)
        except DomainCrash as crash:
            crashed = Outcome(End.REFUSED, self._whose(crash), crash.advice)
        self.machine.console.pump(self.machine.domain)
        self.machine.control.crash()
        self._show_output()
        self.outside.send()
        return self.outside.check() or crashed

    def _resumes(self) -> bool:
        """Whether a domain lives after a suspend; it may have been kept until somebody said so."""
        if self.life.keeps_suspended:
            self._preserve()
            if not self.machine.control.wish:
                return False
        return self.life.suspended(self.machine)

    def _goes_on(self, outcome: Outcome) -> bool:
        """Whether a domain lives after an end; it may have been kept for a while, too."""
        match self.life.after(outcome):
            case Action.RESTART:
                self.machine.control.say("restart", reason=outcome.end.value)
                self.outside.send()
                self.life.last_look(outcome)
                self.machine.start_again()
                return True
            case Action.PRESERVE if self.debugger is None:
                self._preserve()
            case Action.SOFT_RESET:
                self.life.last_look(outcome)
                soft_reset(self.machine)
                self.machine.control.say("soft-reset")
                return True
        return False

    def _preserve(self) -> None:
        """Keep a domain that has ended for whoever wants to look at it, as long as one may."""
        control = self.machine.control
        while not (control.wish or control.is_destroyed or self.outside.check()):
            self._pump()
            self.outside.begin_turn()
            if self.outside.expired() or self.outside.wait(None) is Idle.NOT:
                return

    def _whose(self, error: Exception) -> str:
        """A sentence about the current vcpu, with its number if there are others."""
        current = self.machine.current
        vcpu = f"vcpu {current.vcpu.vcpu_id}: " if len(current.domain.vcpus) > 1 else ""
        return f"{vcpu}{error}"

    def _audit(self) -> Outcome | None:
        """Audit the domain; an end of the run if its books are wrong."""
        faults = self.machine.personality.audit(self.machine.domain)
        faults += self.machine.engine.audit()
        if not faults:
            return None
        more = f"; and {len(faults) - 1} more faults" if faults[1:] else ""
        at_s = self.machine.engine.now_ns / 1e9
        return Outcome(
            End.INCONSISTENT, f"bug in xenemu: the audit at {at_s:.3f} s: {faults[0]}{more}"
        )

    def _take_turns(self, audit_ns: int | None) -> Outcome:
        machine, debugger = self.machine, self.debugger
        domain, engine = machine.domain, machine.engine
        engine.look = self._look_at_host
        run = debugger.run if debugger else machine.sampler or engine.run
        if audit_ns is None:  # nor one that an earlier run wanted
            machine.next_audit_ns = math.inf
        else:
            machine.next_audit_ns = min(machine.next_audit_ns, engine.now_ns + audit_ns)
        if machine.slice_ends_ns is not None:  # a snapshot was taken within it
            self._run_slice(run, machine.slice_ends_ns)
        while True:
            if audit_ns is not None and engine.now_ns >= machine.next_audit_ns:
                machine.next_audit_ns = engine.now_ns + audit_ns
                if wrong := self._audit():
                    return wrong
            timers.fire_due(machine.current, machine.timers)
            self._pump()
            if self.keep is not None:
                self.keep()
            ended = self._ended()
            if ended:
                return ended
            if debugger:
                debugger.look()
            self.outside.begin_turn()
            vcpu = scheduler.next_vcpu(domain, machine.current.vcpu, machine.let_run)
            if vcpu is None:
                idle = self.outside.wait(machine.next_wake_ns())
                if idle is Idle.NOT and not (debugger and debugger.idle()):
                    if domain.paused:
                        return Outcome(End.IDLE, "the guest is paused, and nobody can unpause it")
                    return Outcome(End.IDLE, "the guest waits for an event that nothing can send")
                if idle is Idle.SKIPPED:  # mostly the timer wakes a vcpu: that has the same turn
                    timers.fire_due(machine.current, machine.timers)
                    if domain.shutdown_code is None:
                        vcpu = scheduler.next_vcpu(domain, machine.current.vcpu, machine.let_run)
            if vcpu is None:
                continue
            machine.switch_to(vcpu)
            refresh_time(machine.current)
            machine.exits.deliver_events()
            domain.timers.moved = False
            next_ns = domain.timers.next_ns()
            deadline = engine.now_ns + scheduler.begin_slice(machine.current, machine.slice_ns)
            deadline = deadline if next_ns is None else min(deadline, next_ns)
            self._run_slice(run, deadline)

    def _run_slice(self, run: Callable[[int], None], deadline_ns: int) -> None:
        machine = self.machine
        machine.slice_ends_ns = deadline_ns
        try:
            self.outside.run_slice(run, deadline_ns)
        finally:
            machine.slice_ends_ns = None
        machine.exits.stopped()
        machine.samples.take(machine.current)

    def _look_at_host(self) -> None:
        """End the slice if the host wants the run to end; pause it if a debugger has a word."""
        if self.outside.calls_off():
            self.machine.engine.stop()
        elif self.debugger and self.debugger.calls():
            self.machine.debug.request_halt()

    def _ended(self) -> Outcome | None:
        code = self.machine.current.domain.shutdown_code
        finished = self.outside.check()
        if finished:
            return finished
        if self.machine.control.is_destroyed:
            return Outcome(End.STOPPED, "destroyed by the toolstack")
        if code is not None:
            if code not in SHUTDOWNS:
                reason = f"shutdown reason {code}, which Xen does not define"
                return Outcome(End.GUEST_CRASH, reason, UNDEFINED_REASON)
            end, reason = SHUTDOWNS[code]
            if end is End.SOFT_RESET and self.machine.personality.soft_reset is None:
                return Outcome(End.REFUSED, f"{reason}, which Xen refuses to PV domains")
            return Outcome(end, self.machine.domain.shutdown_why or reason)
        return self.outside.expired()

    def _pump(self) -> None:
        """Take what has come, and let each backend do what it could not before."""
        domain = self.machine.current.domain
        if domain.output:
            self._show_output()
        self.outside.take()
        for served in domain.backends.values():
            served.pump(domain)
        self.outside.send()
        if domain.output:
            self._show_output()

    def _show_output(self) -> None:
        output = self.machine.domain.output
        if output:
            machine = self.machine
            machine.samples.spoke(machine.engine.now_ns)
            repeated = max(0, self._told - machine.printed)  # by a run that a debugger took back
            machine.printed += len(output)
            if fresh := bytes(output[repeated:]):
                self._told = machine.printed
                for observer in machine.current.watch or ():
                    observer.printed(machine.current, fresh)
                self.outside.show(fresh)
            output.clear()
