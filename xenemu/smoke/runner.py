"""Run a matrix: as many boots at a time as there are jobs, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final, Protocol

from xenemu.smoke import worker
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result
from xenemu.smoke.verdict import Finding, Verdict
from xenemu.smoke.worker import Progress

# A worker looks at its clock between slices. One that does not come back is stuck in the engine.
GRACE_S: Final = 60.0
SPAWN: Final = multiprocessing.get_context("spawn")  # the engine must be loaded before all else
Main = Callable[[Boot, Connection, str], None]


class Watcher(Protocol):
    """Whoever shows how it goes."""

    def began(self, boot: Boot) -> None: ...

    def progress(self, boot: Boot, progress: Progress) -> None: ...

    def finished(self, result: Result) -> None: ...


@dataclass
class _Running:
    boot: Boot
    process: SpawnProcess
    connection: Connection
    errors: Path
    began_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        return self.began_s + self.boot.timeout + GRACE_S - time.monotonic()


def run(
    boots: Sequence[Boot],
    jobs: int,
    watcher: Watcher,
    fail_fast: bool = False,
    main: Main = worker.main,
) -> list[Result]:
    """Run every boot; the results in the order of `boots`.

    With `fail_fast`, begin nothing after the first that does not pass, and end what runs; what
    then has no result is left out. `main` is what each process calls.
    """
    waiting, running = list(reversed(boots)), dict[str, _Running]()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="xenemu-") as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    boot = waiting.pop()
                    running[boot.name] = _start(boot, main, Path(scratch) / str(len(waiting)))
                    watcher.began(boot)
                for result in _wait(running, watcher):
                    results[result.boot.name] = result
                    _end(running.pop(result.boot.name))
                    watcher.finished(result)
                    if fail_fast and result.exit_code:
                        return [results[boot.name] for boot in boots if boot.name in results]
        finally:
            for left in running.values():
                _end(left)
    return [results[boot.name] for boot in boots]


def _start(boot: Boot, main: Main, errors: Path) -> _Running:
    errors.touch()
    ours, theirs = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=main, args=(boot, theirs, str(errors)), name=boot.name)
    process.start()
    theirs.close()
    return _Running(boot, process, ours, errors)


def _wait(running: dict[str, _Running], watcher: Watcher) -> list[Result]:
    """Wait until something happens; the results that came of it."""
    patience = max(0.0, min(one.left_s for one in running.values()))
    ready = wait([one.connection for one in running.values()], timeout=patience)
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


def _receive(one: _Running, watcher: Watcher) -> Result | None:
    try:
        message = one.connection.recv()
    except (EOFError, OSError):
        one.process.join()
        return _lost(one, f"the process that ran it ended: {_why(one.process.exitcode)}")
    if isinstance(message, Progress):
        watcher.progress(one.boot, message)
        return None
    assert isinstance(message, Result)
    return message


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
    if one.process.is_alive():
        one.process.join(timeout=1.0)  # it has sent its result, and is about to end
    with suppress(OSError):
        one.process.kill()
    one.process.join()
    one.connection.close()
    one.process.close()
