"""Run a matrix: as many boots at a time as there are jobs, each in a process of its own.

Each process is a copy of the `nursery`, or if several boots have one kernel, of a process that has
loaded it. A boot with an origin is a copy of that boot's process instead, which waits at its
snapshot until no more boots start from it.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final, Protocol

from xenemu.records import dataclass
from xenemu.smoke import worker
from xenemu.smoke.copies import ANSWERS, Copy, Lost, Original
from xenemu.smoke.nursery import Nursery
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result, never_run
from xenemu.smoke.verdict import Finding, Verdict
from xenemu.smoke.wire import Inbox, Nonsense
from xenemu.smoke.worker import AtSnapshot, Progress

# A worker looks at its clock between slices. One that does not come back is stuck in the engine.
GRACE_S: Final = 60.0
STOP_S: Final = 3.0  # how long boots may take to stop
ENDING_S: Final = 1.0  # how long a process may take that has said its last
Main = Callable[..., None]  # of a connection, a boot and, maybe, its kernel


class Watcher(Protocol):
    """An object that shows how the boots go."""

    def began(self, boot: Boot) -> None: ...

    def progress(self, boot: Boot, progress: Progress) -> None: ...

    def finished(self, result: Result) -> None: ...


class Unseen:
    """Nothing is shown."""

    def began(self, boot: Boot) -> None:
        pass

    def progress(self, boot: Boot, progress: Progress) -> None:
        pass

    def finished(self, result: Result) -> None:
        pass


class Interruption(Protocol):
    """A signal that may come: something to wait for."""

    @property
    def signum(self) -> int:
        """Its number; 0: none has come."""

    def fileno(self) -> int: ...


@dataclass
class _Running:
    boot: Boot
    process: Copy
    connection: Connection
    errors: Path
    began_s: float
    copied_from: str = ""  # the boot at its snapshot

    def __post_init__(self) -> None:
        self.inbox = Inbox(self.connection, Progress, AtSnapshot, Result, *ANSWERS)

    @property
    def original(self) -> Original:
        """Its process, when it is at its snapshot."""
        return Original(self.process.pid, self.connection, self.inbox)

    @property
    def left_s(self) -> float:
        return self.began_s + self.boot.timeout + GRACE_S - time.monotonic()


@dataclass
class _Loaded:
    """A process that has loaded a kernel."""

    process: Copy
    connection: Connection

    def __post_init__(self) -> None:
        inbox = Inbox(self.connection, *ANSWERS)
        self.original = Original(self.process.pid, self.connection, inbox)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.process.close()


def run(
    boots: Sequence[Boot],
    jobs: int,
    watcher: Watcher,
    fail_fast: bool = False,
    main: Main = worker.main,
    interruption: Interruption | None = None,
    nursery: Nursery | None = None,
) -> list[Result]:
    """Run every boot; the results in the order of `boots`, which has the origin of each, too.

    With `fail_fast`, everything stops after the first boot that does not pass. An interruption
    stops everything, too. What has not ended by then is skipped. `main` is what each process calls.
    A `nursery` that is given stays open.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="xenemu-"))
        nursery = nursery or stack.enter_context(Nursery())
        matrix = _Matrix(boots, watcher, main, nursery, Path(scratch))
        try:
            return matrix.run(jobs, fail_fast, interruption)
        finally:
            matrix.end()


@dataclass
class _Matrix:
    """The boots of a run: those that wait, those that run, and those that others start from."""

    boots: Sequence[Boot]
    watcher: Watcher
    main: Main
    nursery: Nursery
    scratch: Path

    def __post_init__(self) -> None:
        self.waiting = list(self.boots)
        self.running: dict[str, _Running] = {}
        self.at_snapshot: dict[str, _Running] = {}
        self.kernels: dict[Path, _Loaded] = {}
        self.results: dict[str, Result] = {}
        self.why = ""  # everything is to stop

    def run(self, jobs: int, fail_fast: bool, interruption: Interruption | None) -> list[Result]:
        while not self.why:
            while len(self.running) < jobs and (boot := self.next()):
                self.watcher.began(boot)
                self.start(boot, self.scratch / str(len(self.waiting)))
            if not self.running:
                break
            found = self.wait(interruption)
            if interruption and interruption.signum:
                self.why = f"stopped by {signal.Signals(interruption.signum).name}"
            for result in found:
                self.ended(result)
                if fail_fast and result.exit_code:
                    self.why = self.why or f"--fail-fast, and {result.boot.name} did not pass"
        for result in self.stop():
            self.ended(result)
        return [self.results.get(boot.name) or never_run(boot, self.why) for boot in self.boots]

    def next(self) -> Boot | None:
        """Take the boot that is to begin next: if there is one, from where others wait."""
        ready = (boot for boot in self.waiting if _origin(boot) in self.at_snapshot)
        found = next(ready, None) or next((boot for boot in self.waiting if not boot.origin), None)
        if found:
            self.waiting.remove(found)
        return found

    def start(self, boot: Boot, errors: Path, began_s: float | None = None) -> None:
        """Begin a boot, or go on with one that began then and is at its snapshot."""
        name = boot.name if boot.name in self.at_snapshot else _origin(boot)
        origin = self.at_snapshot.get(name)
        descriptor = os.open(errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        began_s = began_s or time.monotonic()
        try:
            if origin:
                process, connection = origin.original.copy(boot, descriptor)
            else:
                process, connection = self.born(boot, descriptor)
        except Lost as lost:
            whose = f"the process of {name}" if name else "the process that starts boots"
            self.finish(_nothing(boot, f"{whose}: {lost}", began_s))
            if origin:
                _kill(self.at_snapshot.pop(origin.boot.name))
                self.orphan(origin.boot, str(lost))
        else:
            one = _Running(boot, process, connection, errors, began_s, name)
            self.running[boot.name] = one
        finally:
            os.close(descriptor)

    def born(self, boot: Boot, errors: int) -> tuple[Copy, Connection]:
        """A process for a boot that starts from its kernel; Lost."""
        kernel = boot.kernel
        if kernel not in self.kernels and any(
            other.kernel == kernel and not other.origin for other in self.waiting
        ):
            process, connection = self.nursery.start(worker.load, kernel, errors=errors)
            self.kernels[kernel] = _Loaded(process, connection)
        if kernel in self.kernels:
            try:
                return self.kernels[kernel].original.copy((self.main, boot), errors)
            except Lost:  # loading was too much for it: this boot is to meet that itself
                self.kernels.pop(kernel).end()
        return self.nursery.start(self.main, boot, errors=errors)

    def reached(self, one: _Running) -> None:
        """A boot is where others start: its process waits for them, and a copy goes on."""
        self.at_snapshot[one.boot.name] = self.running.pop(one.boot.name)
        self.start(one.boot, one.errors, one.began_s)

    def release(self) -> None:
        """End what nobody starts from any more; it knows how its copies end."""
        needed = {*map(_origin, self.waiting), *(one.copied_from for one in self.running.values())}
        for name in self.at_snapshot.keys() - needed:
            _kill(self.at_snapshot.pop(name))
        boots = [*self.waiting, *(one.boot for one in self.running.values())]
        for kernel in self.kernels.keys() - {boot.kernel for boot in boots}:
            self.kernels.pop(kernel).end()

    def orphan(self, origin: Boot, why: str) -> None:
        """Skip the boots that cannot start any more."""
        for boot in [boot for boot in self.waiting if _origin(boot) == origin.name]:
            self.waiting.remove(boot)
            result = never_run(boot, f"{origin.name} did not reach its snapshot: {why}")
            self.finish(result)
            self.orphan(boot, result.sentence)

    def ended(self, result: Result) -> None:
        """A boot has a result, and its process may go."""
        if self.why and result.stopped:
            result.skip(self.why)
        one = self.running.pop(result.boot.name)
        one.process.join(timeout=ENDING_S)  # it is about to end by itself
        _kill(one)
        self.finish(result)
        if not self.why and result.boot.name not in self.at_snapshot:
            self.orphan(result.boot, result.sentence)
        self.release()

    def finish(self, result: Result) -> None:
        self.results[result.boot.name] = result
        self.watcher.finished(result)

    def wait(self, interruption: Interruption | None) -> list[Result]:
        """Wait until something happens; the results that came of it."""
        running = list(self.running.values())
        patience = max(0.0, min(one.left_s for one in running))
        others = [interruption.fileno()] if interruption else []
        ready = wait([*(one.connection for one in running), *others], patience)
        results = []
        for one in running:
            result = None
            if one.connection in ready:
                result = self.receive(one)
            elif one.left_s <= 0:
                words = f"the engine did not come back within {GRACE_S:g} s after the timeout"
                result = _lost(one, words)
            if result:
                results.append(result)
        return results

    def receive(self, one: _Running) -> Result | None:
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
            match message:
                case Result():
                    return replace(message, boot=one.boot)
                case Progress():
                    self.watcher.progress(one.boot, message)
                case AtSnapshot() if one.boot.is_origin and one.boot.name not in self.at_snapshot:
                    self.reached(one)
                case _:
                    one.process.kill()
                    return _lost(one, "the process that ran it sent what nobody had asked for")
        return None

    def stop(self) -> Iterator[Result]:
        """Stop what runs; the results, with what was seen of the guest if it stops soon."""
        left = list(self.running.values())
        for one in left:
            one.process.terminate()
        deadline = time.monotonic() + STOP_S
        while left:
            patience = max(0.0, deadline - time.monotonic())
            ready = wait([one.connection for one in left], patience)
            if not ready:
                break
            for one in [one for one in left if one.connection in ready]:
                result = self.receive(one)
                if result:
                    left.remove(one)
                    yield result
        for one in left:
            one.process.kill()
            result = _lost(one, "")
            result.stopped = True
            yield result

    def end(self) -> None:
        """End whatever is left, if an exception ends the run."""
        for left in (*self.running.values(), *self.at_snapshot.values()):
            _kill(left)
        for loaded in self.kernels.values():
            loaded.end()


def _origin(boot: Boot) -> str:
    return boot.origin.name if boot.origin else ""


def _why(code: int | None) -> str:
    if code is None:
        return "nobody knows how"
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _lost(one: _Running, reason: str) -> Result:
    result = _nothing(one.boot, reason, one.began_s)
    result.report = one.errors.read_text(errors="replace")
    return result


def _nothing(boot: Boot, reason: str, began_s: float) -> Result:
    """The result of a boot whose process has none."""
    result = Result(boot, [Finding(Verdict.XENEMU, reason)])
    result.started, result.host_s = time.time(), time.monotonic() - began_s
    return result


def _kill(one: _Running) -> None:
    with suppress(OSError):
        one.process.kill()
    one.process.join()
    one.connection.close()
    one.process.close()
