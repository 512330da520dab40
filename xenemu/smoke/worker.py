"""A boot in a process of its own, so that whatever happens to it happens to it alone."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from xenemu import __version__
from xenemu.errors import EngineError, FitError, XenemuError
from xenemu.smoke.ktap import parse
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result
from xenemu.smoke.session import IGNORED_CODES, Session
from xenemu.smoke.verdict import Finding, Verdict

PROGRESS_S: Final = 0.25


@dataclass(frozen=True)
class Progress:
    """What a boot does now."""

    words: str
    virtual_ns: int
    instructions: int


def isolate(stderr: int) -> None:
    """Be a child: leave signals of the terminal to the parent, core files out, errors in a file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    faulthandler.enable(2)


def main(boot: Boot, connection: Connection, errors: str) -> None:
    """Run `boot` and send `Progress`, then a `Result`; `errors` is a file for standard error."""
    isolate(os.open(errors, os.O_WRONLY | os.O_APPEND))
    connection.send(boot_once(boot, connection))


def boot_once(boot: Boot, connection: Connection | None = None) -> Result:
    """Boot, to a result whatever happens; only a crash of this process gives none."""
    result = Result(boot, started=time.time())
    began, cpu_began = time.monotonic(), time.process_time()
    session: Session | None = None
    try:
        session = Session(boot, step=_progress(connection))
        result.mode = session.machine.mode.value
        result.findings = session.run_plan()
        result.reason = session.outcome.reason if session.outcome else ""
    except XenemuError as error:
        result.findings = [Finding(_blame(error), str(error))]
    except Exception as error:
        result.findings = [Finding(Verdict.XENEMU, describe_bug(error))]
        result.report = traceback.format_exc()
    result.host_s = time.monotonic() - began
    result.cpu_s = time.process_time() - cpu_began
    result.peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if session is not None:
        add_session(result, session)
    return result


def describe_bug(error: Exception) -> str:
    """One line for an exception that should not have been."""
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
    if result.exit_code not in IGNORED_CODES and not result.report:
        result.report = session.report()


def _progress(connection: Connection | None) -> Callable[[Session], None]:
    next_s = 0.0

    def step(session: Session) -> None:
        nonlocal next_s
        now_s = time.monotonic()
        if connection is None or now_s < next_s:
            return
        next_s = now_s + PROGRESS_S
        engine = session.machine.engine
        words = session.transcript.lines[-1][1] if session.transcript.lines else ""
        connection.send(Progress(words, engine.now_ns, engine.instructions))

    return step
