"""Run a matrix: as many boots at a time as there are jobs, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final, Protocol

from xenemu.smoke import worker
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result, never_run
from xenemu.smoke.verdict import Finding, Verdict
from xenemu.smoke.wire import Inbox, Nonsense
from xenemu.smoke.worker import Progress

# A worker looks at its clock between slices. One that does not come back is stuck in the engine.
GRACE_S: Final = 60.0
STOP_S: Final = 3.0  # how long boots may take to stop
ENDING_S: Final = 1.0  # how long a process may take that has said its last
SPAWN: Final = multiprocessing.get_context("spawn")  # the engine must be loaded before all else
Main = Callable[[Boot, Connection, str], None]


class Watcher(Protocol):
    """An object that shows how the boots go."""

    def began(self, boot: Boot) -> None: ...

    def progress(self, boot: Boot, progress: Progress) -> None: ...

    def finished(self, result: Result) -> None: ...


class Interruption(Protocol):
    """A signal that may come: something to wait for."""

    signum: int  # 0: none has come

    def fileno(self) -> int: ...


@dataclass
class _Running:
    boot: Boot
    process: SpawnProcess
    connection: Connection
    errors: Path
    began_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.inbox = Inbox(self.connection, Progress, Result)

    @property
    def left_s(self) -> float:
        return self.began_s + self.boot.timeout + GRACE_S - time.monotonic()


def run(
    boots: Sequence[Boot],
    jobs: int,
    watcher: Watcher,
    fail_fast: bool = False,
    main: Main = worker.main,
    interruption: Interruption | None = None,
) -> list[Result]:
    """Run every boot; the results in the order of `boots`.

    With `fail_fast`, everything stops after the first boot that does not pass. An interruption
    stops everything, too. What has not ended by then is skipped. `main` is what each process calls.
    """
    waiting, running = list(reversed(boots)), dict[str, _Running]()
    results: dict[str, Result] = {}
    why = ""  # everything is to stop

    def ended(result: Result) -> None:
        if why and result.stopped:
            result.skip(why)
        results[result.boot.name] = result
        _end(running.pop(result.boot.name))
        watcher.finished(result)

    with tempfile.TemporaryDirectory(prefix="xenemu-") as scratch:
        try:
            while (waiting or running) and not why:
                while waiting and len(running) < jobs:
                    boot = waiting.pop()
                    running[boot.name] = _start(boot, main, Path(scratch) / str(len(waiting)))
                    watcher.began(boot)
                found = _wait(running, watcher, interruption)
                if interruption and interruption.signum:
                    why = f"stopped by {signal.Signals(interruption.signum).name}"
                for result in found:
                    ended(result)
                    if fail_fast and result.exit_code:
                        why = why or f"--fail-fast, and {result.boot.name} did not pass"
            for result in _stop(running, watcher):
                ended(result)
        finally:
            for left in running.values():
                _kill(left)
    return [results.get(boot.name) or never_run(boot, why) for boot in boots]


def _start(boot: Boot, main: Main, errors: Path) -> _Running:
    errors.touch()
    ours, theirs = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=main, args=(boot, theirs, str(errors)), name=boot.name)
    worker.start(process)
    theirs.close()
    return _Running(boot, process, ours, errors)


def _wait(
    running: dict[str, _Running], watcher: Watcher, interruption: Interruption | None
) -> list[Result]:
    """Wait until something happens; the results that came of it."""
    patience = max(0.0, min(one.left_s for one in running.values()))
    others = [interruption.fileno()] if interruption else []
    ready = wait([*(one.connection for one in running.values()), *others], patience)
    results = []
    for one in running.values():
        result = None
        if one.connection in ready:
            result = _receive(one, watcher)
        elif one.left_s <= 0:
            words = f"the engine did not come back within {GRACE_S:g} s after the timeout"
            result = _lost(one, words)
        if result:
            results.append(result)
    return results


def _stop(running: dict[str, _Running], watcher: Watcher) -> Iterator[Result]:
    """Stop what runs; the results, with what was seen of the guest if it stops soon."""
    for one in running.values():
        one.process.terminate()
    deadline = time.monotonic() + STOP_S
    left = list(running.values())
    while left:
        patience = max(0.0, deadline - time.monotonic())
        ready = wait([one.connection for one in left], patience)
        if not ready:
            break
        for one in [one for one in left if one.connection in ready]:
            result = _receive(one, watcher)
            if result:
                left.remove(one)
                yield result
    for one in left:
        one.process.kill()
        result = _lost(one, "")
        result.stopped = True
        yield result


def _receive(one: _Running, watcher: Watcher) -> Result | None:
    try:
        messages = one.inbox.take()
    except (EOFError, OSError):
        one.process.join(timeout=ENDING_S)
        one.process.kill()
        one.process.join()
        return _lost(one, f"the process that ran it ended: {_why(one.process.exitcode)}")
    except Nonsense as nonsense:
        one.process.kill()
        return _lost(one, f"the process that ran it sent nonsense: {nonsense}")
    for message in messages:
        if isinstance(message, Result):
            return replace(message, boot=one.boot)
        watcher.progress(one.boot, message)
    return None


def _why(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _lost(one: _Running, reason: str) -> Result:
    result = Result(one.boot, [Finding(Verdict.XENEMU, reason)])
    result.started, result.host_s = time.time(), time.monotonic() - one.began_s
    result.report = one.errors.read_text(errors="replace")
    return result


def _end(one: _Running) -> None:
    """End a process that has sent its result, and is about to end by itself."""
    if one.process.is_alive():
        one.process.join(timeout=ENDING_S)
    _kill(one)


def _kill(one: _Running) -> None:
    with suppress(OSError):
        one.process.kill()
    one.process.join()
    one.connection.close()
    one.process.close()
