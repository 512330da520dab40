"""A boot in a process of its own, so that whatever happens there harms no other boot."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Event
from typing import Final

from xenemu import __version__
from xenemu.confine import confine
from xenemu.errors import EngineError, FitError, XenemuError, exhaustion
from xenemu.smoke import wire
from xenemu.smoke.ktap import parse
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result
from xenemu.smoke.session import IGNORED_CODES, Session
from xenemu.smoke.verdict import Finding, Verdict

PROGRESS_S: Final = 0.25
PARENTS_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Progress:
    """What a boot does now."""

    words: str
    virtual_ns: int
    instructions: int


class _Stopped(Exception):
    """The boot is to stop before its end."""


def start(process: SpawnProcess) -> None:
    """Start a process that `isolate` is to run in: signals wait until it has."""
    resource_tracker.ensure_running()  # it would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def isolate(stderr: int, stop: Callable[[], None] | None = None) -> None:
    """Be a child: leave signals of the terminal to the parent, core files out, errors in a file.

    SIGTERM calls `stop`, or ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if stop is not None:
        signal.signal(signal.SIGTERM, lambda signum, frame: stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # a diod sets its own, and wants no limit
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    faulthandler.enable(2)


def main(boot: Boot, connection: Connection, errors: str) -> None:
    """Run `boot` and send `Progress`, then a `Result`; `errors` is a file for standard error.

    SIGTERM stops the boot between two slices; there is a result then, too.
    """
    stop = Event()
    isolate(os.open(errors, os.O_WRONLY | os.O_APPEND), stop.set)
    wire.send(connection, boot_once(boot, connection, stop.is_set, confined=True))


def check(boot: Boot, connection: Connection, errors: str) -> None:
    """Send the `Result` of a boot that is over before its first instruction."""
    isolate(os.open(errors, os.O_WRONLY | os.O_APPEND))
    wire.send(connection, boot_once(boot, run=lambda session: []))


def boot_once(
    boot: Boot,
    connection: Connection | None = None,
    is_to_stop: Callable[[], bool] = bool,
    confined: bool = False,
    run: Callable[[Session], list[Finding]] = lambda session: session.run_plan(),
) -> Result:
    """Boot, to a result whatever happens; only a crash of this process gives none.

    With `confined`, this process gives up nearly everything else from then on, if the host can do
    that.
    """
    result = Result(boot, started=time.time())
    began, cpu_began = time.monotonic(), time.process_time()
    session: Session | None = None
    try:
        session = Session(boot, step=_step(connection, is_to_stop), is_to_stop=is_to_stop)
        result.mode = session.machine.entry.name
        if confined:
            confine(callers=session.takes_callers, more=session.calls)
        result.findings = run(session)
        result.reason = session.reason
    except XenemuError as error:
        result.findings = [Finding(_blame(error), str(error))]
    except _Stopped:
        result.stopped = True
        result.findings = [Finding(Verdict.XENEMU, "the process that ran it was told to stop")]
    except Exception as error:
        if exhausted := exhaustion(error):
            result.findings = [Finding(Verdict.IMAGE, exhausted)]
        else:
            result.findings = [Finding(Verdict.XENEMU, describe_bug(error))]
            result.report = traceback.format_exc()
    result.host_s = time.monotonic() - began
    result.cpu_s = time.process_time() - cpu_began
    result.peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if session is not None:
        add_session(result, session)
    return result


def describe_bug(error: Exception) -> str:
    """One line for an exception that should not have happened."""
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"bug in xenemu {__version__}: {what}; please report it"


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
    result.cases = parse(session.transcript.text)
    result.coverage, result.uncovered = session.coverage()
    if result.exit_code not in IGNORED_CODES and not result.report:
        result.report = session.report()


def _step(
    connection: Connection | None, is_to_stop: Callable[[], bool]
) -> Callable[[Session], None]:
    next_s = 0.0

    def step(session: Session) -> None:
        nonlocal next_s
        if is_to_stop():
            raise _Stopped
        now_s = time.monotonic()
        if connection is None or now_s < next_s:
            return
        next_s = now_s + PROGRESS_S
        engine = session.machine.engine
        words = session.transcript.lines[-1][1] if session.transcript.lines else ""
        wire.send(connection, Progress(words, engine.now_ns, engine.instructions))

    return step
