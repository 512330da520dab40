"""A boot in a process of its own, so that whatever happens there harms no other boot."""

from __future__ import annotations

import faulthandler
import gc
import resource
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Final

from xenemu import __version__, image, kaslr
from xenemu.confine import confine, confine_copy
from xenemu.errors import EngineError, FitError, XenemuError, exhaustion
from xenemu.image import Image
from xenemu.records import dataclass
from xenemu.smoke import copies, wire
from xenemu.smoke.nursery import PARENTS_SIGNALS
from xenemu.smoke.plan import Boot, in_keys
from xenemu.smoke.results import Result
from xenemu.smoke.session import CRASHED_CODES, IGNORED_CODES, Session
from xenemu.smoke.verdict import Finding, Verdict

PROGRESS_S: Final = 0.25


@dataclass(frozen=True)
class Progress:
    """What a boot does now."""

    words: str
    virtual_ns: int
    instructions: int


@dataclass(frozen=True)
class AtSnapshot:
    """A boot is where others start from it; from now on its process is an `copies.Original`."""


class _Stopped(Exception):
    """The boot is to stop before its end."""


def isolate(stop: Callable[[], None] | None = None) -> None:
    """Be a child: leave signals of the terminal to the parent, and core files out.

    SIGTERM calls `stop`, or ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if stop is not None:
        signal.signal(signal.SIGTERM, lambda signum, frame: stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # a diod sets its own, and wants no limit
    faulthandler.enable(2)


def load(connection: Connection, kernel: Path) -> None:
    """Load a kernel, and be copied for its boots, to call a function as `main` with each of them.

    So the kernel, and its names, are read once for them all. No guest ever runs in this process.
    """
    loaded = None
    with suppress(XenemuError):  # which each boot then meets by itself
        loaded = image.load(kernel)
        loaded.symbols.address("")  # which reads all names
        kaslr.anchor_of(loaded)
    gc.freeze()
    if born := copies.serve(connection):
        (function, boot), own = born
        function(own, boot, loaded)


def main(connection: Connection, boot: Boot, kernel: Image | None = None) -> None:
    """Run `boot` and send `Progress`, then a `Result`; its kernel may be loaded already.

    If others start from it, send `AtSnapshot` when it is there, and be copied: for `boot` itself,
    which goes on, and for the others. SIGTERM stops the boot between two slices; there is a result
    then, too.
    """
    stop = Event()
    isolate(stop.set)
    work = Work(boot, connection, kernel, stop.is_set, confined=True)
    if result := work.done():
        wire.send(work.connection, result)


def check(connection: Connection, boot: Boot, kernel: Image | None = None) -> None:
    """Send the `Result` of a boot that is over before its first instruction."""
    isolate()
    work = Work(boot, connection, kernel)
    wire.send(connection, work.done(lambda session: []))


@dataclass
class Work:
    """A boot that is to be done in this process, to a result whatever happens.

    With `confined`, this process gives up nearly everything else when the guest begins, if the host
    can do that.
    """

    boot: Boot
    connection: Connection
    kernel: Image | None = None
    is_to_stop: Callable[[], bool] = bool
    confined: bool = False

    def __post_init__(self) -> None:
        self._begin(self.boot)

    def _begin(self, boot: Boot) -> None:
        self._result = Result(boot, started=time.time())
        self._began, self._cpu_began = time.monotonic(), time.process_time()
        self._next_s = 0.0  # when to tell of progress

    def done(
        self, run: Callable[[Session], list[Finding]] = lambda session: session.run_plan()
    ) -> Result | None:
        """Boot; None if this is the process that others were copied from, and they all were.

        Only a crash of this process gives neither.
        """
        session: Session | None = None
        try:
            session = Session(
                self.boot, step=self._step, is_to_stop=self.is_to_stop, kernel=self.kernel
            )
            self._result.mode = session.machine.entry.name
            if self.confined:
                copied = self.boot.is_origin
                confine(session.callers, session.calls, copied)
                if copied and not self._is_one_that_runs(session):
                    return None
            self._result.findings = run(session)
            self._result.reason = session.reason
        except Exception as error:
            self._note(error)
        result = self._result
        result.host_s = time.monotonic() - self._began
        result.cpu_s = time.process_time() - self._cpu_began
        result.peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if session is not None:
            add_session(result, session)
        return result

    def _is_one_that_runs(self, session: Session) -> bool:
        """Be copied where others start; True in the copies, and if the guest never gets there."""
        is_copy = False
        while self.boot.is_origin and session.run_to_snapshot():
            spent_s = time.process_time() - self._cpu_began
            gc.freeze()  # else each copy would touch, and so copy, all that is there
            wire.send(self.connection, AtSnapshot())
            born = copies.serve(self.connection)
            if born is None:
                return False
            boot, self.connection = born
            is_copy = True
            if boot.name == self.boot.name:
                self._cpu_began = time.process_time() - spent_s
                break
            session.turn_to(boot)
            self.boot = boot
            self._begin(boot)
            self._result.mode = session.machine.entry.name
        if is_copy:
            confine_copy(session.calls)
        return True

    def _step(self, session: Session) -> None:
        """Show progress now and then, between slices, and stop if that is wanted."""
        if self.is_to_stop():
            raise _Stopped
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + PROGRESS_S
        engine = session.machine.engine
        words = session.transcript.lines[-1][1] if session.transcript.lines else ""
        wire.send(self.connection, Progress(words, engine.now_ns, engine.instructions))

    def _note(self, error: Exception) -> None:
        """Make an exception the result."""
        result = self._result
        if isinstance(error, XenemuError):
            result.findings = [Finding(_blame(error), _told(result.boot, error))]
        elif isinstance(error, _Stopped):
            result.stopped = True
            words = "the process that ran it was told to stop"
            result.findings = [Finding(Verdict.XENEMU, words)]
        elif exhausted := exhaustion(error):
            result.findings = [Finding(Verdict.IMAGE, exhausted)]
        else:
            result.findings = [Finding(Verdict.XENEMU, describe_bug(error))]
            result.report = "".join(traceback.format_exception(error))


def describe_bug(error: Exception) -> str:
    """One line for an exception that should not have happened."""
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"bug in xenemu {__version__}: {what}; please report it"


def _told(boot: Boot, error: XenemuError) -> str:
    """What is wrong, in words that stand after the boot's name, which may be its kernel's."""
    words = in_keys(str(error)) if boot.place else str(error)
    is_said = boot.name.startswith(boot.kernel.name)
    return words.removeprefix(f"{boot.kernel}: ") if is_said else words


def _blame(error: XenemuError) -> Verdict:
    if isinstance(error, EngineError):
        return Verdict.XENEMU
    return Verdict.FIT if isinstance(error, FitError) else Verdict.IMAGE


def add_session(result: Result, session: Session) -> None:
    """Add what a session has seen to its result."""
    engine = session.machine.engine
    result.virtual_ns, result.instructions = engine.now_ns, engine.instructions
    result.phases, result.captures = session.phases, session.captures
    result.raw, result.log = bytes(session.transcript.raw), session.transcript.stamped()
    result.cases = session.cases
    result.coverage, result.uncovered = session.coverage()
    if session.recorded and result.exit_code:
        result.recording = bytes(session.recorded.data)
    if result.exit_code not in IGNORED_CODES and not result.report:
        result.report = session.report()
    if result.exit_code in CRASHED_CODES:
        result.core = session.core()
