"""A guest under test: what is expected of its console, what is typed, and when to give up.

Wherever possible, the guest's own time decides. A limit in virtual time is met at the same
instruction in every run. A limit in the host's time is not.
"""

from __future__ import annotations

import errno
import math
import os
import re
import select
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Final

from xenemu import image
from xenemu.confine import CALLER_DESCRIPTORS
from xenemu.disks import opened, parse_disk
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.verbs import VERBS
from xenemu.errors import UsageError
from xenemu.hv.current import Current
from xenemu.hv.state.schedule import Schedule
from xenemu.linux import MILESTONES
from xenemu.machine import DomainConfig, Limits, Line, Machine, Source
from xenemu.machine.ends import Life
from xenemu.machine.outside import Outside
from xenemu.network import networked
from xenemu.options import format_size, parse_module, read_module, read_tree
from xenemu.outcome import End, Outcome
from xenemu.records import dataclass
from xenemu.report import GIVEN_UP, report
from xenemu.shares import parse_share, served
from xenemu.smoke import initramfs
from xenemu.smoke.doing import Doing
from xenemu.smoke.ktap import Case, parse
from xenemu.smoke.plan import Boot, Step
from xenemu.smoke.transcript import Transcript
from xenemu.smoke.verdict import Facts, Finding, Verdict, advice, crash, judge, kernel_lines
from xenemu.smoke.witness import Witness

if TYPE_CHECKING:
    from xenemu.coverage import Recording
    from xenemu.dom0.net import Vif
    from xenemu.smoke.recorded import Recorded

PROBE_NS: Final = 100_000_000  # how long a guest is silent before it is asked whether it panicked
LOOK_S: Final = 0.25  # how long it waits before it looks whether it is to stop
IGNORED_CODES: Final = (0, 3)  # after which nobody asks where the guest was
CRASHED_CODES: Final = (4, 5)  # after which the guest's memory tells why
# After which a guest that a program asks can go on: it was only waited for long enough.
GOES_ON: Final = (End.EXPECTED, End.TIMEOUT, End.IDLE, End.STOPPED)
PAUSED: Final = "the guest is paused, and prints nothing before it is unpaused"
MAX_CORE: Final = 64 << 20  # bytes that a core may have, compressed


@dataclass(frozen=True)
class Phase:
    """A point of a boot: the guest's time, and the host's since the boot began."""

    name: str
    virtual_ns: int
    host_s: float


@dataclass
class Session:
    """A guest, driven to what is expected of it next. Implements `xenemu.machine.Terminal`.

    `step` looks at the guest between its slices, to show progress. `is_to_stop` ends a slice, so
    that `step` comes soon.
    """

    boot: Boot
    clock: Callable[[], float] = time.monotonic
    step: Callable[[Session], None] = lambda session: None
    is_to_stop: Callable[[], bool] = bool
    is_asked: bool = False  # a program may have the toolstack do anything
    kernel: image.Image | None = None  # the boot's, if it is loaded already
    transcript: Transcript = field(default_factory=Transcript)
    phases: list[Phase] = field(default_factory=list)
    captures: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    matches: list[re.Match[str]] = field(default_factory=list)
    outcome: Outcome | None = None  # of the last run
    ended: bool = False  # for good

    def __post_init__(self) -> None:
        """Load and build. Raises what `xenemu run` raises for what cannot be had."""
        boot, self._started = self.boot, self.clock()
        self._files = ExitStack()  # for as long as there is the guest
        self._steps: list[tuple[Step, re.Pattern[str]]] = []
        self._reject = _patterns(boot.reject)
        self._input = bytearray(boot.input.encode())
        self._spoke_ns = self._probed_ns = 0
        self._advice = ""  # from what is known of its end
        self._died = ""  # of what, in the kernel's own words
        self._met = ""  # the last step that was met
        self._planned: tuple[list[tuple[Step, re.Pattern[str]]], bool] | None = None  # of the boot
        self._given_up: Finding | None = None  # why it was not waited for any longer
        self._is_dead = False  # it has panicked, and does nothing more
        self._halt: re.Pattern[str] | int | None = None  # stop when this is seen, or then in ns
        self._is_due = False  # that has come
        self._is_timed = False  # somebody has it run for a time, however silent it is
        self._is_between = False  # slices: a guest that has crashed cannot go on
        self._at_snapshot: Facts | None = None
        self._missed = ""  # a sentence, if it ended before its snapshot
        self._before: Facts | None = None  # at the snapshot of the guest that this is a copy of
        self._began_ns = 0  # when it was copied
        self.image = self.kernel or image.load(boot.kernel)
        self._mark("loaded", 0)
        config = DomainConfig(
            boot.memory,
            os.fsencode(boot.full_cmdline),
            _initrd(boot),
            modules=tuple(parse_module("module", text, boot.memory) for text in boot.module),
            vcpus=boot.vcpus,
            maxvcpus=boot.maxvcpus,
            rng_seed=boot.rng_seed,
            efi_root=read_tree("efi_root", boot.efi_root) if boot.efi_root else None,
            slice_ns=boot.slice,
            schedule_seed=boot.schedule_seed,
        )
        disks = [parse_disk("disk", text) for text in boot.disk]
        shares = [parse_share("share", text) for text in boot.share]
        self._disks = self._files.enter_context(opened("disk", disks))
        self.devices: list[BusBackend] = [
            *self._disks,
            *self._files.enter_context(served("share", shares)),
        ]
        for device in self.devices:
            device.leave_if(self.leaves)
        self._wired = self._files.enter_context(networked("net", boot.net, config.name))
        vifs = self._wired.vifs if self._wired else ()
        try:
            self.machine = Machine(self.image, config, boot.mode, [*self.devices, *vifs])
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            size = format_size(boot.memory)
            raise UsageError(f"memory: this host has no {size} to give; try less") from None
        self.machine.control.verbs = VERBS
        self._doing = self._deeds()
        self._witness = Witness(self.machine, lambda: self.image)
        self._mark("built", 0)
        self._recording = _record(boot, self.machine, self.image) if boot.covered else None
        self._dump = _dumper() if boot.dumped else None
        self._core = b""  # of a kernel that has panicked, and started another one
        self._life = self._afterlife()
        self.recorded = _recorded(self, config, vifs) if boot.recorded else None

    def _failed(self, sentence: str) -> None:
        self.findings.append(Finding(Verdict.UNMET, sentence))

    def _deeds(self) -> Doing:
        return Doing(deque(self.boot.do), self._failed)

    def _afterlife(self) -> Life:
        boot, is_kept = self.boot, self.boot.on_suspend == "end"
        if is_kept and not (self.is_asked or boot.do):
            return Life(last_look=self._look)
        from xenemu.smoke.suspends import resumes  # noqa: PLC0415 (few boots pay for it)

        resume = resumes(boot.on_suspend, self._failed)
        return Life(suspended=resume, keeps_suspended=is_kept, last_look=self._look)

    def _look(self, outcome: Outcome) -> None:
        """Another kernel takes the place of the guest's; if that has panicked, keep its core."""
        if self._dump and not self._core and self._witness.panicked:
            self._core = self.core()

    @property
    def calls(self) -> list[str]:
        """The system calls that the guest's devices need; see `confine`."""
        return [call for device in self.devices for call in device.calls]

    @property
    def callers(self) -> int:
        """The descriptors of those who may connect while the guest runs; see `confine`."""
        return CALLER_DESCRIPTORS if self._wired and self._wired.takes_callers else 0

    # What to do with the guest.

    def run(
        self,
        steps: Sequence[Step],
        timeout: float | None,
        to_end: bool = True,
        started: float = math.nan,
    ) -> Outcome:
        """Run until each of `steps` is met in turn; with `to_end`, until the guest ends.

        `timeout` counts from `started`, or from now; with 0, nothing runs. What the console shows
        already is met also after the guest's end.
        """
        self._look_for(steps, to_end)
        if self.ended or timeout == 0 or self._is_paused:
            self._advance()
            if not (self._steps or to_end):
                return Outcome(End.EXPECTED, "every expectation is met")
            if self.outcome is None or not self.ended:
                why = PAUSED if self._is_paused else "the console does not show it yet"
                self.outcome = Outcome(End.TIMEOUT, why)
            return self.outcome
        return self._go_on(timeout, started)

    @property
    def _is_paused(self) -> bool:
        """Whether nothing will be printed before somebody unpauses it."""
        return self.is_asked and self.machine.domain.paused and self._doing.is_over

    def _look_for(self, steps: Sequence[Step], to_end: bool) -> None:
        """Expect something else; that something did not come in time is over."""
        if self._given_up in self.findings:
            self.findings.remove(self._given_up)
            self._spoke_ns = self.machine.engine.now_ns
        self._steps = [(step, re.compile(step.pattern, re.MULTILINE)) for step in steps]
        self._to_end = to_end
        self.matches = []

    def _go_on(self, timeout: float | None, started: float) -> Outcome:
        self._advance()
        limits = Limits(timeout, self.clock, started)
        wires = self._wired.sources() if self._wired else ()
        sources: list[tuple[Line, Source]] = [*wires, (self.machine.control, self._doing)]
        self.outcome = self.machine.run(
            self,
            limits,
            sources=sources,
            keep=self._pass,
            kind=self.recorded.outside if self.recorded else Outside,
            life=self._life,
        )
        if self.outcome.end is End.TIMEOUT:
            reason = self.outcome.reason + self._witness.pattern
            self.outcome = replace(self.outcome, reason=reason)
        if self._is_over(self.outcome):
            self.ended = True
            self._mark("end", self.machine.engine.now_ns)
        if self.outcome.end is not End.EXPECTED:
            for block in self._disks:  # an overlay's file has then also what was not flushed
                block.disk.flush()
        return self.outcome

    def _is_over(self, outcome: Outcome) -> bool:
        """Whether that is the end. A program may go on with a guest that it has waited for."""
        if not self.is_asked:
            return outcome.end is not End.EXPECTED
        is_rejected = any(found.verdict is Verdict.REJECTED for found in self.findings)
        is_gone = self._is_dead or self.machine.control.is_destroyed
        return outcome.end not in GOES_ON or is_rejected or is_gone

    def run_plan(self) -> list[Finding]:
        """Run the boot as its plan says; return what speaks against it."""
        if self._planned:
            self._steps, self._to_end = self._planned
        elif self.boot.is_origin:
            self.run_to_snapshot()
        else:
            self._plan()
        outcome = self.outcome if self.ended else None
        return self.judge(outcome or self._go_on(self.boot.timeout, self._started))

    def run_to_snapshot(self) -> bool:
        """Run the boot to where others start from it; False if it ended before.

        In either case, `run_plan` goes on from there.
        """
        boot = self.boot
        at = boot.expect[0].pattern if boot.snapshot is None else boot.snapshot
        self._plan()
        self._halt = re.compile(at, re.MULTILINE) if isinstance(at, str) else int(at * 1e9)
        outcome = self._go_on(boot.timeout, self._started)
        is_there = self._is_due and outcome.end is End.EXPECTED
        self._halt, self._is_due, self._doing.is_held = None, False, False
        if is_there:
            self._at_snapshot = self._facts(outcome)
        elif boot.snapshot is not None:
            when = repr(at) if isinstance(at, str) else f"{at} s"
            self._missed = f"its snapshot, {when}, never came"
        return is_there

    def run_for(self, ns: int, timeout: float | None) -> bool:
        """Run so much of the guest's own time, and to the end of a slice; whether it can go on.

        It cannot if it has ended, or if a limit came first.
        """
        if self.ended:
            return False
        self._look_for((), to_end=True)
        self._halt, self._is_timed = self.machine.engine.now_ns + ns, True
        self._go_on(timeout, math.nan)
        is_there = self._is_due and not self.ended
        self._halt, self._is_timed, self._is_due = None, False, False
        self._spoke_ns = self.machine.engine.now_ns
        return is_there

    def turn_to(self, boot: Boot) -> None:
        """Be the guest of a boot that starts from this one, at whose snapshot this is."""
        origin, self.boot = self.boot, boot
        machine = self.machine
        self._began_ns = self._spoke_ns = self._probed_ns = machine.engine.now_ns
        self._started = self.clock()
        self._reject = _patterns(boot.reject)
        self._input = bytearray(boot.input.encode())
        self._before, self._planned, self._met = self._at_snapshot, None, ""
        self.phases, self.captures, self.findings = [], {}, []
        self._doing = replace(self._deeds(), who=self._doing.who + 1)
        self.transcript.part(origin.name)
        self._mark("copied", self._began_ns)
        if self.recorded:
            self.recorded.change(machine, boot, origin)
        if (boot.slice, boot.schedule_seed) != (origin.slice, origin.schedule_seed):
            machine.domain.schedule = Schedule(boot.slice, boot.schedule_seed)
        if boot.rng_seed != origin.rng_seed:
            machine.engine.seed_random(boot.rng_seed)

    def _plan(self) -> None:
        boot = self.boot
        to_snapshot = boot.is_origin and boot.snapshot is not None
        self._look_for(boot.expect, bool(boot.exit) or not (boot.expect or to_snapshot))
        self._planned = self._steps, self._to_end

    def send(self, data: bytes) -> None:
        """Type at the guest's console when it runs again."""
        self._input += data

    def ask(self, request: Mapping[str, object], timeout: float | None) -> Mapping[str, Any]:
        """Ask the toolstack for something, and run the guest until it answers.

        The answer is that of `dom0.control`.
        """
        if not self.ended:
            self._look_for((), to_end=True)
            self._doing.ask(request)
            outcome = self._go_on(timeout, math.nan)
            if not self.ended and self._doing.answer is None:
                self._doing.give_up(outcome.reason)
        answer = self._doing.answer or {"ok": False, "error": "the guest has ended"}
        self._doing.answer = None
        return answer

    def judge(self, outcome: Outcome) -> list[Finding]:
        """What speaks against the guest as it is now."""
        facts = self._facts(outcome)
        died = crash(facts)
        self._died = died.reason if died else ""
        self._advice = advice(facts)
        found = judge(facts, self.boot.exit, self.boot.tolerate)
        if self._missed and not found:
            found = [Finding(Verdict.UNMET, f"{self.reason}; {self._missed}")]
        return found

    def _facts(self, outcome: Outcome) -> Facts:
        return self._witness.facts(
            outcome,
            self.transcript.text,
            unmet=[*(step.pattern for step, _ in self._steps), *self._doing.unmet],
            too_early=self._too_early(),
            findings=self.findings,
            cases=self.cases,
            before=self._before,
        )

    @property
    def cases(self) -> list[Case]:
        """The test cases of its KTAP, so far."""
        return parse(self.transcript.text[self.transcript.own :])

    @property
    def reason(self) -> str:
        """How the guest ended; of a kernel that panicked, by which panic."""
        return self._died or (self.outcome.reason if self.outcome else "")

    def _too_early(self) -> str:
        """Where the console has what is expected next, earlier than its turn."""
        found = self.transcript.first(self._steps[0][1]) if self._steps and self._met else None
        if not found:
            return ""
        pattern, (number, line) = self._steps[0][0].pattern, found
        where = f"in line {number} of the console, but not after {self._met!r}"
        return f"{pattern!r} is {where}: {line!r}"

    def coverage(self) -> tuple[str, str]:
        """Which code ran, in lcov's form, and what it lacks; empty if nobody wants to know."""
        if self._recording is None:
            return "", ""
        (file,) = self._recording.files()
        return file.decode(), self._recording.missing

    def core(self) -> bytes:
        """Its core, compressed; nothing if nobody wants it, or if it would be too large."""
        if self._core or self._dump is None:
            return self._core
        return self._dump(self.machine.current, self.image, MAX_CORE)

    def report(self) -> str:
        """Where the guest is, as `xenemu run` would tell, without what the console shows."""
        outcome = self.outcome or Outcome(End.STOPPED, "")
        to_do = outcome.advice or self._advice
        to_do = f"What to do: {to_do}\n" if to_do else ""
        samples = self.machine.samples if outcome.end in GIVEN_UP else None
        shown = frozenset(kernel_lines(self.transcript.text))
        return to_do + report(self.machine.current, self.image, outcome.reason, samples, shown)

    # Terminal.

    def write(self, data: bytes) -> None:
        """Keep what the guest printed, and look for what is expected and what is forbidden."""
        now_ns = self.machine.engine.now_ns
        if not self.transcript.raw and not self.transcript.dropped:
            self._mark("console", now_ns)
        self._spoke_ns = now_ns
        for line in self.transcript.feed(data, now_ns):
            for name, pattern in MILESTONES.items():
                if pattern.match(line) and not any(phase.name == name for phase in self.phases):
                    self._mark(name, now_ns)
        for pattern in self._reject:
            if not self.findings and (found := self.transcript.has(pattern)):
                words = f"the console shows {found[0]!r}, which {pattern.pattern!r} forbids"
                self.findings.append(Finding(Verdict.REJECTED, words))
        if isinstance(self._halt, re.Pattern) and self.transcript.has(self._halt):
            self._is_due = self._doing.is_held = True
        self._doing.shown(data, now_ns)
        self._advance()

    def _advance(self) -> None:
        if self._is_due:  # copies meet it before anything is typed
            return
        while self._steps and (found := self.transcript.find(self._steps[0][1])):
            step, _ = self._steps.pop(0)
            self.matches.append(found)
            self._met = step.pattern
            self.captures |= {k: v for k, v in found.groupdict().items() if v is not None}
            self._input += step.send.encode()
            self._mark(f"expect {len(self.matches)}", self.machine.engine.now_ns)

    def read(
        self,
        room: int,
        wait_ns: int | None,
        reading: Sequence[int] = (),
        writing: Sequence[int] = (),
    ) -> bytes:
        """What is typed; nothing else will be until the guest prints. Waits for others' packets."""
        data = b"" if self._is_due else bytes(self._input[:room])
        del self._input[: len(data)]
        if reading and not data:
            seconds = LOOK_S if wait_ns is None else min(wait_ns / 1e9, LOOK_S)
            select.select(reading, writing, [], seconds)
        return data

    @property
    def interactive(self) -> bool:
        """No person types, so that idle time is skipped."""
        return False

    @property
    def exhausted(self) -> bool:
        """Nothing is to be typed before the guest prints more."""
        return not (self._input or self._doing.waits)

    @property
    def due_ns(self) -> int | None:
        """The time at which to stop, if there is one. Limits are looked at when timers come."""
        return self._halt if isinstance(self._halt, int) else None

    def leaves(self) -> bool:
        """Whether somebody wants it to stop."""
        return self.is_to_stop()

    def _pass(self) -> None:
        self._is_between = True

    def check(self) -> Outcome | None:
        """Why to stop, if the console, the guest's clock or the kernel's memory says so."""
        self.step(self)
        is_between, self._is_between = self._is_between, False
        boot, now_ns = self.boot, self.machine.engine.now_ns
        if self.findings:
            return Outcome(End.STOPPED, self.findings[0].reason)
        if isinstance(self._halt, int) and now_ns >= self._halt:
            self._is_due = True
        if self._is_due and is_between:
            words = "its time is over" if self._is_timed else "others start from here"
            return Outcome(End.EXPECTED, words)
        if self._doing.answer is not None:
            return Outcome(End.EXPECTED, "the toolstack has answered")
        is_over = not self._steps and self._doing.is_over
        if is_over and not self._to_end and self._halt is None:
            return Outcome(End.EXPECTED, "every expectation is met")
        silent_ns = now_ns - self._spoke_ns
        if silent_ns >= PROBE_NS and now_ns - self._probed_ns >= PROBE_NS:
            self._probed_ns = now_ns
            if self._witness.panicked:
                self._is_dead = True
                return Outcome(End.STOPPED, "the kernel panicked, and does nothing more")
        if now_ns - self._began_ns >= boot.virtual_timeout * 1e9:
            words = f"still running after {boot.virtual_timeout:g} s of its own time"
            return self._stop(Verdict.TIMEOUT, words)
        is_waited_for = not (self._doing.is_asking or self._is_timed)
        if silent_ns >= boot.quiet_timeout * 1e9 and is_waited_for:
            words = f"it printed nothing for {boot.quiet_timeout:g} s of its own time"
            return self._stop(Verdict.QUIET, words)
        return None

    def _stop(self, verdict: Verdict, reason: str) -> Outcome:
        reason += self._witness.pattern
        self._given_up = Finding(verdict, reason)
        self.findings.append(self._given_up)
        return Outcome(End.STOPPED, reason)

    def _mark(self, name: str, virtual_ns: int) -> None:
        self.phases.append(Phase(name, virtual_ns, self.clock() - self._started))


def _patterns(texts: Sequence[str]) -> list[re.Pattern[str]]:
    return [re.compile(text, re.MULTILINE) for text in texts]


def _record(boot: Boot, machine: Machine, loaded: image.Image) -> Recording:
    from xenemu.coverage import Recording  # noqa: PLC0415 (few boots pay for it)

    return Recording(machine, loaded, lcov=True, by_vcpu=boot.covered_by_vcpu)


def _recorded(session: Session, config: DomainConfig, vifs: Sequence[Vif]) -> Recorded:
    from xenemu.smoke.recorded import Recorded  # noqa: PLC0415 (few boots pay for it)

    return Recorded.begin(session.boot, config, session.machine, session.devices, vifs)


def _dumper() -> Callable[[Current, image.Image, int], bytes]:
    from xenemu.dump import packed  # noqa: PLC0415 (few boots pay for it, and only before `confine`)

    return packed


def _initrd(boot: Boot) -> bytes:
    if boot.init or boot.rootfs or (boot.busybox and not boot.initrd):
        return initramfs.make(boot.init, boot.rootfs, boot.busybox)
    return read_module("initrd", boot.initrd, boot.memory) if boot.initrd else b""
