"""A run that a person attends: from the kernel's file to the exit code and the report."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import typer

from xenemu import image
from xenemu.cli import inherited
from xenemu.cli.afterinput import AfterInput
from xenemu.cli.covering import Covering
from xenemu.cli.escape import Asking, Escape
from xenemu.cli.expect import Expectations
from xenemu.cli.guest import Guest, Load
from xenemu.cli.judge import judge, to_do_in_silence
from xenemu.cli.patience import Patience
from xenemu.cli.screen import is_terminal, redraws
from xenemu.cli.silence import Silence
from xenemu.cli.status import Status
from xenemu.cli.terminal import HostTerminal
from xenemu.cli.watch import Sink, Watching, watching
from xenemu.confine import CALLER_DESCRIPTORS, confine, obstacle
from xenemu.dom0.bus import BusBackend
from xenemu.errors import ImageError, UsageError
from xenemu.machine import Limits, Line, Machine, Source
from xenemu.machine.ends import Life
from xenemu.machine.outside import Outside
from xenemu.options import format_size
from xenemu.outcome import EXIT_BUG, EXIT_CODES, End, Outcome
from xenemu.outputs import Output
from xenemu.records import dataclass
from xenemu.report import GIVEN_UP, report
from xenemu.smoke.verdict import kernel_lines
from xenemu.smoke.witness import Witness

if TYPE_CHECKING:
    from xenemu.cli.channel import Channel
    from xenemu.cli.dumping import Dumping
    from xenemu.cli.keeping import Keeping
    from xenemu.cli.suspending import Suspending
    from xenemu.cli.viewing import Viewing
    from xenemu.dom0.p9 import Share
    from xenemu.explain import Explainer
    from xenemu.gdb.channel import Listener
    from xenemu.gdb.server import Server
    from xenemu.network.wired import Wired
    from xenemu.recording.player import Player
    from xenemu.recording.recorder import Recorder

# Exit codes after which a person wants to know where it was.
CHECKPOINTS: Final = 17  # processes: as many as gdb.history has, and one that is on its way out
REPORTED: Final = {4, 5, 6, EXIT_BUG, 128 + signal.SIGINT, 128 + signal.SIGTERM}


class Confine(Enum):
    """Whether a run gives up what it does not need."""

    AUTO = "auto"
    OFF = "off"
    MUST = "must"


def check_confine(wanted: Confine) -> None:
    """UsageError if a run must be confined, and this host cannot."""
    if wanted is Confine.MUST and (why_not := obstacle()):
        raise UsageError(f"--confine must: this host cannot: {why_not}")


@dataclass(frozen=True)
class AttendedRun:
    """What is to be booted, how, and where the messages about it go."""

    guest: Guest
    symbols: Path | None
    is_shell: bool  # /init is a shell of xenemu's own making
    limits: Limits
    audit_ns: int | None
    fast: bool  # whether C may do what it can
    expectations: Expectations
    watching: Watching
    confined: Confine
    verbose: bool
    log: Output | None = None
    trace_file: Output | None = None
    covering: Covering | None = None
    viewing: Viewing | None = None
    listener: Listener | None = None
    wired: Wired | None = None
    capture: Output | None = None
    devices: Sequence[BusBackend] = ()
    keeping: Keeping | None = None
    channel: Channel | None = None
    life: Life = field(default_factory=Life)
    recorder: Recorder | None = None
    shares: Sequence[Share] = ()  # of the devices, those whose answers are recorded
    player: Player | None = None
    dumping: Dumping | None = None
    suspending: Suspending | None = None
    patience: Patience | None = None
    takes_input: bool = True  # standard input is typed at the console
    one_way: str = ""  # why a debugger cannot take the guest back

    @property
    def _has_stdio(self) -> bool:
        """Whether the console has standard input and output, and gdb has not."""
        return not (self.listener and self.listener.takes_stdio)

    def run(self) -> int:
        """Run the guest to its end, tell what became of it, and return the exit code.

        Raises what loading and building raise: `ImageError`, `FitError`, `UsageError`.
        """
        if self.listener and self.suspending and self.suspending.waits:
            raise UsageError("--on-suspend preserve: with --gdb, nobody would hear gdb meanwhile")
        if self.suspending and self.suspending.waits and self.channel is None:
            raise UsageError(
                "--on-suspend preserve: nobody could say what becomes of the guest: --control PATH"
            )
        if self.suspending:
            self.suspending.is_shell = self.is_shell
        viewed = self.viewing.of_one_boot if self.viewing else ""
        if self.life.restarts_any and (self.listener or viewed or self.covering):
            option = "--gdb" if self.listener else viewed or "--coverage"
            raise UsageError(f"{option}: this is of one boot; leave it out, or --on-... restart")
        stdin, stdout = (_descriptor(stream) for stream in (sys.stdin, sys.stdout))
        if not self._has_stdio:
            stdin, stdout = None, _descriptor(sys.stderr)
        if self.player or not self.takes_input:
            stdin = None  # what is typed is in the recording, or in a script
        is_shared = stdout is not None and os.isatty(stdout)
        status = Status(sys.stderr if redraws() else None, is_shared)
        try:
            status.phase(f"xenemu: loading {self.guest.kernel}")
            load = self.guest.load()
            if self.symbols is not None:
                loaded = _named(load(), self.symbols, status)
                load = lambda: loaded  # noqa: E731 (as those that are not named anew)
            status.phase("xenemu: building the domain")
            vifs = self.wired.vifs if self.wired else ()
            machine = self.guest.build(load, [*self.devices, *vifs])
            if not self.fast:
                machine.leave_to_model()
            witness = Witness(machine, load)
            silence = Silence(
                lambda: machine.engine.now_ns,
                lambda: to_do_in_silence(witness),
                lambda sentence: _tell_amid(status, f"what to do: {sentence}"),
            )
            terminal = self._terminal(machine, silence, stdin, stdout, status)
            write_coverage = self.covering.begin(machine, load()) if self.covering else None
            end_views = self.viewing.begin(machine, load()) if self.viewing else None
            status.make_room()
            if is_terminal() or self.verbose:
                leave = "; Ctrl-] twice leaves" if terminal.interactive else ""
                size, verb = format_size(self.guest.memory), self.guest.verb
                _tell(f"{verb} {self.guest.kernel} as {machine.entry.name}, {size}{leave}")
            if self.dumping is not None:
                self.life.last_look = self._last_look(machine, load, witness, status)
            server = self._serve(machine, load, terminal, witness, status)
            started = time.monotonic()
            with terminal, self._watch(machine, load, terminal, status) as explainer:
                sources = [*self._sources(terminal, status), *self._asking(machine, load, terminal)]
                for device in self.devices:
                    device.leave_if(lambda: terminal.leaves() or self.limits.expired())
                self._confine()
                if self.listener and self._has_stdio:
                    _tell(f"waiting for gdb: target remote {self.listener.address}")
                with closing(server) if server else nullcontext():
                    outcome = machine.run(
                        terminal,
                        self.limits,
                        self.audit_ns,
                        server,
                        sources,
                        self._keep(machine, status),
                        self._kind(machine, terminal, server),
                        self.life,
                    )
            host_s = time.monotonic() - started
            told = end_views() if end_views is not None else ""
        finally:
            typer.echo(status.end(), err=True, nl=False)

        outcome = judge(outcome, self.expectations, witness)
        signum = terminal.signum or (self.player.signum if self.player else 0)
        code = 128 + signum if signum else outcome.exit_code
        if outcome.advice == silence.told:
            outcome = replace(outcome, advice="")
        self._explain_end(machine, load, outcome, code, is_shared and is_terminal())
        typer.echo(told, err=True, nl=False)
        if explainer is not None:
            explainer.close()
        if write_coverage is not None and (missing := write_coverage()):
            _tell(f"--coverage: {missing}")
        if self.wired is not None and self.verbose:
            _tell(self.wired.summary())
        if self.keeping is not None and self.keeping.output is not None:
            _tell(f"--snapshot: not taken: {self.keeping.at!r} never came")
            code = code or EXIT_CODES[End.UNMET]
        if self.suspending is not None and (missing := self.suspending.missing):
            _tell(missing)
            code = code or EXIT_CODES[End.UNMET]
        for output in self.keeping.others if self.keeping else ():
            _tell(f"{output.name}: not taken: nobody has asked for it")
        engine, order = machine.engine, machine.domain.schedule.options
        _tell(
            f"{outcome.end.value}, exit {code}: {outcome.reason}; virtual time"
            f" {engine.now_ns / 1e9:.3f} s, {engine.instructions} instructions, {host_s:.2f} s here"
            f"{f'; the same again: {order}' if order else ''}"
        )
        if self.dumping is not None and (told := self.dumping.end(machine, load(), code)):
            _tell(told)
        return code

    def _kind(
        self, machine: Machine, terminal: HostTerminal, server: Server | None
    ) -> Callable[..., Outside]:
        """Where what comes from outside goes, too, or comes from."""
        if self.player:
            return self.player.outside
        if self.recorder:
            self.recorder.signum = lambda: terminal.signum
            for share in self.shares:
                self.recorder.hear(machine, share)
            return self.recorder.outside
        return server.outside if server else Outside

    @property
    def _takes_callers(self) -> bool:
        """Whether somebody may connect while the guest runs: a gdb, or the end of a wire."""
        return self.listener is not None or (self.wired is not None and self.wired.takes_callers)

    def _sources(self, terminal: HostTerminal, status: Status) -> Sequence[tuple[Line, Source]]:
        """What brings packets, if there is a network."""
        if self.wired is None:
            return ()
        self.wired.tell = lambda sentence: _tell_amid(status, sentence)
        capture = self.capture
        return self.wired.sources(partial(terminal.put, capture) if capture else None)

    def _asking(
        self, machine: Machine, load: Load, terminal: HostTerminal
    ) -> Sequence[tuple[Line, Source]]:
        """What brings requests to the toolstack, if somebody may have some."""
        if not (self.channel or self.player or terminal.interactive):
            return ()
        from xenemu.dom0.verbs import VERBS  # noqa: PLC0415 (nobody else pays for it)

        own = [self.keeping.verb(machine)] if self.keeping else []
        own += [self.dumping.verb(machine, load)] if self.dumping else []
        machine.control.verbs = {**VERBS, **{verb.name: verb for verb in own}}
        return () if self.player else [(machine.control, Asking(terminal.escape, self.channel))]

    def _confine(self) -> None:
        if self.confined is Confine.OFF:
            return
        inherited.close()
        more = [call for device in self.devices for call in device.calls]
        callers = CALLER_DESCRIPTORS if self._takes_callers else 0
        if self.channel is not None:
            callers += self.channel.descriptors
            more += self.channel.calls
        if self.dumping is not None:
            more += self.dumping.calls
        confinement = confine(callers, more, copies=CHECKPOINTS if self.listener else 0)
        if confinement.trouble and self.confined is Confine.MUST:
            raise UsageError(f"--confine must: this host cannot: {confinement.trouble}")
        if self.verbose:
            trouble = f"; {confinement.trouble}" if confinement.trouble else ""
            _tell(f"confined by {confinement}{trouble}")

    def _keep(self, machine: Machine, status: Status) -> Callable[[], None] | None:
        """Takes the snapshot that is asked for, when it is time."""
        keeping = self.keeping
        if keeping is None:
            return None

        def keep() -> None:
            if told := keeping.look(machine):
                _tell_amid(status, told)

        return keep

    def _last_look(
        self, machine: Machine, load: Load, witness: Witness, status: Status
    ) -> Callable[[Outcome], None]:
        """Writes the core of a domain that another one replaces, or another kernel."""

        def look(outcome: Outcome) -> None:
            code = judge(outcome, self.expectations, witness).exit_code
            if self.dumping and (told := self.dumping.look(machine, load(), code)):
                _tell_amid(status, told)

        return look

    def _asked_by_gdb(self, machine: Machine) -> Callable[[], str] | None:
        """Takes a snapshot for `monitor snapshot`; None if there is no file for one."""
        keeping = self.keeping
        if keeping is None:
            return None

        def keep() -> str:
            taken = keeping.ask(machine)
            return f"taken, in {taken['file']}: xenemu resume goes on from it"

        return keep

    def _explain_end(
        self, machine: Machine, load: Load, outcome: Outcome, code: int, is_shared: bool
    ) -> None:
        """Tell what to do, and where the guest was, as far as a person wants to know.

        `is_shared`: the console is on the terminal that this is told on.
        """
        is_reported = code in REPORTED or self.verbose
        if is_reported:
            _tell(outcome.reason)
        if outcome.advice:
            _tell(f"what to do: {outcome.advice}")
        if is_reported:
            samples = machine.samples if outcome.end in GIVEN_UP else None
            shown = self._shown() if is_shared else frozenset()
            typer.echo(report(machine.current, load(), outcome.reason, samples, shown), err=True)

    def _shown(self) -> frozenset[str]:
        """The lines of the kernel's log that the person has just seen on his console."""
        return frozenset(kernel_lines(self.expectations.tail.splitlines()))

    def _terminal(
        self,
        machine: Machine,
        silence: Silence,
        stdin: int | None,
        stdout: int | None,
        status: Status,
    ) -> HostTerminal:
        """The person's side of the console."""
        status.measure = lambda: (machine.engine.now_ns, machine.engine.instructions)
        if self.patience:
            self.patience.begin(lambda: machine.engine.now_ns)
        if self.expectations.script:
            self.expectations.script.begin(
                lambda: machine.engine.now_ns, lambda sentence: _tell_amid(status, sentence)
            )
        is_told = (
            (not self.is_shell or bool(self.expectations.script))
            and self.limits.timeout_s is None
            and not self.player
        )
        self.life.tell = lambda sentence: _tell_amid(status, sentence)
        if self.suspending:
            self.suspending.take_part(self.life)
        after = AfterInput(
            lambda: machine.engine.now_ns,
            self.is_shell and self._has_stdio,
            (lambda sentence: _tell_amid(status, sentence)) if is_told else None,
        )
        escape = Escape(lambda sentence: _tell_amid(status, sentence))
        return HostTerminal(
            *(stdin, stdout, self.expectations, status, self.log, after, silence, escape),
            patience=self.patience,
            keeping=self.keeping,
        )

    def _watch(
        self, machine: Machine, load: Load, terminal: HostTerminal, status: Status
    ) -> AbstractContextManager[Explainer | None]:
        """Explain and trace as asked while the guest runs."""
        errors = _descriptor(sys.stderr)
        told_to = None if errors is None else Output(errors, "standard error")
        stderr = Sink(told_to, terminal, status)
        trace = stderr if self.trace_file is None else Sink(self.trace_file, terminal)
        return watching(self.watching, machine.current, load, stderr, trace)

    def _serve(
        self,
        machine: Machine,
        load: Load,
        terminal: HostTerminal,
        witness: Witness,
        status: Status,
    ) -> Server | None:
        """The server for gdb, if there is to be one."""
        if self.listener is None:
            return None
        from xenemu.gdb.server import Server  # noqa: PLC0415 (nobody else pays for it)
        from xenemu.gdb.target import Target  # noqa: PLC0415

        status.phase("xenemu: reading the kernel's symbols")
        dumping = self.dumping
        dump = partial(dumping.write, machine, load()) if dumping else None
        server = Server(
            Target(machine, load(), self._asked_by_gdb(machine), dump),
            self.listener,
            terminal,
            self.limits,
            _tell,
            lambda outcome: judge(outcome, self.expectations, witness),
            self.one_way,
        )
        terminal.callers = server.descriptors
        status.make_room()
        return server


def _named(loaded: image.Image, symbols: Path, status: Status) -> image.Image:
    """The kernel's image, with the symbols of ``--symbols``."""
    try:
        found = image.with_symbols(loaded, symbols)
    except ImageError as error:
        raise UsageError(f"--symbols {error}") from None
    if found.unchecked:
        _tell_amid(
            status,
            f"--symbols {symbols}: taken unchecked, as {found.unchecked}: if it is of another"
            " build, names are wrong",
        )
    return found.image


@contextmanager
def listening(spec: str | None) -> Iterator[Listener | None]:
    """Listen for gdb, if there is an address to listen at; see `xenemu.gdb.channel.listen`."""
    if spec is None:
        yield None
        return
    from xenemu.gdb.channel import listen  # noqa: PLC0415 (nobody else pays for it)

    listener = listen(spec)
    try:
        yield listener
    finally:
        listener.close()


@contextmanager
def controlled(option: str, path: Path | None) -> Iterator[Channel | None]:
    """Listen for toolstacks, if there is a path to listen at; see `xenemu.cli.channel.listen`."""
    if path is None:
        yield None
        return
    from xenemu.cli.channel import listen  # noqa: PLC0415 (nobody else pays for it)

    channel = listen(option, path)
    try:
        yield channel
    finally:
        channel.close()


def _descriptor(stream: TextIO | None) -> int | None:
    """The descriptor of a standard stream; None if it was closed when this process began."""
    try:
        return stream.fileno() if stream else None
    except OSError:  # a stream that a test put there
        return None


def _tell_amid(status: Status, sentence: str) -> None:
    """Tell while the guest runs, on a line of its own."""
    typer.echo(status.new_line(), err=True, nl=False)
    _tell(sentence)


def _tell(sentence: str) -> None:
    typer.echo(f"xenemu: {sentence}", err=True)
