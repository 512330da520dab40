"""Boots on whatever machines there are: by any executor, as `concurrent.futures` defines them.

An executor takes calls and returns futures; Dask has one, and so have others. What it calls is in
`hand`. Boots that start from another one go together with it. A worker that lacks a file says so,
and the boots wait until the file was sent, once for each place that files are kept in.

A worker boots in processes of its own, so a boot that dies has a verdict as ever. What comes as an
exception is the executor's: its worker died, say. Then the boots are tried once more.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from dataclasses import field, replace
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import wait
from queue import SimpleQueue
from signal import Signals
from typing import Any, Final

from xenemu import __version__
from xenemu.errors import UsageError
from xenemu.records import dataclass
from xenemu.smoke import cargo, hand
from xenemu.smoke.cargo import Packer
from xenemu.smoke.hand import Lacks
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result, never_run
from xenemu.smoke.runner import Interruption, Watcher
from xenemu.smoke.verdict import Finding, Verdict

TRIES: Final = 2
BREAKS: Final = 3  # in a row, without a result between them: the executor is no good
Make = Callable[[], Executor]


def named(text: str) -> Make:
    """The function that ``MODULE:FUNCTION`` names; UsageError."""
    module, colon, name = text.partition(":")
    said = f"--executor {text}"
    if not (module and colon and name):
        raise UsageError(f"{said}: give MODULE:FUNCTION")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as for `python -m`
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the person's own code
        raise UsageError(f"{said}: {_words(error)}") from None

    def make() -> Executor:
        try:
            made = found()
        except (Exception, SystemExit) as error:
            raise UsageError(f"{said}: {_words(error)}") from error
        if not isinstance(made, Executor):
            kind = type(made).__name__
            raise UsageError(f"{said}: it returned a {kind}, not a concurrent.futures.Executor")
        return made

    return make


def run(
    make: Make,
    boots: Sequence[Boot],
    jobs: int | None,
    watcher: Watcher,
    fail_fast: bool = False,
    interruption: Interruption | None = None,
) -> list[Result]:
    """As `runner.run`; without `jobs`, the executor has all boots at once; UsageError.

    Boots that run when everything is to stop go on where they are, and nobody waits for them.
    """
    cargo.check(boots)
    matrix = _Matrix(make, boots, watcher, Packer())
    try:
        matrix.run(jobs, fail_fast, interruption)
    finally:
        matrix.end()
    return [matrix.results.get(boot.name) or never_run(boot, matrix.why) for boot in boots]


@dataclass(eq=False)
class _Group:
    """A boot, and those that start from it."""

    boots: list[Boot]
    tries: int = 0
    again: str = ""  # why it is tried again
    is_begun: bool = False


@dataclass(frozen=True)
class _Parcel:
    """A file on its way, to a place that lacks it; maybe it comes to another one."""

    place: str
    digest: str


@dataclass
class _Matrix:
    make: Make
    boots: Sequence[Boot]
    watcher: Watcher
    packer: Packer
    why: str = ""  # everything is to stop
    failed: str = ""  # the first boot that did not pass
    results: dict[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = deque(_groups(self.boots))
        self.running: dict[Future[Any], _Group] = {}
        self.parcels: dict[Future[Any], _Parcel] = {}
        self.held: list[_Group] = []  # until parcels have come
        self.done: SimpleQueue[Future[Any]] = SimpleQueue()
        self.not_begun: set[Future[Any]] = set()  # when their executor broke
        self.numbers = count()
        self.breaks = 0
        self.is_rung = False
        self.bell, self.ringing = Pipe(duplex=False)
        self.executor = self.make()

    def run(self, jobs: int | None, fail_fast: bool, interruption: Interruption | None) -> None:
        others = [interruption.fileno()] if interruption else []
        while not self.why:
            while self.waiting and (jobs is None or self.under_way < jobs):
                self.start(self.waiting.popleft())
            if not (self.running or self.parcels):
                return
            wait([self.bell, *others])
            if interruption and interruption.signum:
                self.why = f"stopped by {Signals(interruption.signum).name}"
                return
            self.take()
            if fail_fast and self.failed:
                self.why = f"--fail-fast, and {self.failed} did not pass"

    @property
    def under_way(self) -> int:
        """How many boots the executor has."""
        return sum(len(group.boots) for group in (*self.running.values(), *self.held))

    def start(self, group: _Group) -> None:
        if not group.is_begun:
            group.is_begun = True
            for boot in group.boots:
                self.watcher.began(boot)
        if self.breaks >= BREAKS:
            self.give_up(group, Verdict.XENEMU, "the executor breaks again and again")
            return
        try:
            load = self.packer.pack(group.boots)
        except UsageError as error:
            self.give_up(group, Verdict.IMAGE, str(error))
        else:
            if future := self.submit(hand.boot, __version__, load):
                self.running[future] = group
            else:
                self.waiting.appendleft(group)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any] | None:
        """Have the executor call something; None if it is broken, and now there is another one."""
        try:
            future = self.executor.submit(function, next(self.numbers), *arguments)
        except BrokenExecutor:
            self.renew()
            return None
        future.add_done_callback(self.ring)
        return future

    def ring(self, future: Future[Any]) -> None:
        """A future is done: called in any thread."""
        if not future.cancelled() and isinstance(future.exception(), BrokenExecutor):
            # All get that exception now, also those that no worker has begun with.
            pending = [one for one in list(self.running) if not (one.running() or one.done())]
            self.not_begun.update(pending)
        self.done.put(future)
        if not self.is_rung:
            self.is_rung = True
            with suppress(OSError):  # nobody waits any more
                self.ringing.send_bytes(b"!")

    def take(self) -> None:
        """Take what is done."""
        broken = False
        while self.bell.poll():
            self.bell.recv_bytes()
        self.is_rung = False
        while not self.done.empty():
            future = self.done.get()
            error = _error(future)
            broken = broken or isinstance(error, BrokenExecutor)
            if parcel := self.parcels.pop(future, None):
                self.arrived(parcel.digest, "" if error else future.result())
                continue
            group = self.running.pop(future)
            if not error:
                self.breaks = 0
                self.came(group, future.result())
            elif future in self.not_begun:
                self.waiting.appendleft(group)
            else:
                self.lost(group, error)
        if broken:
            self.not_begun.clear()
            self.renew()

    def came(self, group: _Group, found: list[Result] | Lacks) -> None:
        """Take what `hand.boot` has returned."""
        if isinstance(found, Lacks):
            self.held.append(group)
            self.send(found)
        else:
            self.finish(group, found)

    # Files.

    def send(self, lacks: Lacks) -> None:
        """Send the files that are not on their way to there."""
        under_way = set(self.parcels.values())
        for digest in lacks.digests:
            parcel = _Parcel(lacks.place, digest)
            if parcel not in under_way:
                try:
                    data = self.packer.data(digest)
                except UsageError as error:
                    self.arrived(digest, str(error))
                    return
                if future := self.submit(hand.keep, digest, data):
                    self.parcels[future] = parcel
                else:
                    self.arrived(digest, "")

    def arrived(self, digest: str, trouble: str) -> None:
        """A place keeps a file, or there is trouble; who still lacks one says so again."""
        if trouble:
            held, self.held = self.held, []
            for group in held:
                self.give_up(group, Verdict.IMAGE, f"{self.packer.files[digest]}: {trouble}")
        elif not self.parcels:
            self.waiting.extendleft(reversed(self.held))
            self.held.clear()

    # Ends.

    def lost(self, group: _Group, error: BaseException) -> None:
        """Try once more what the executor could not do."""
        group.tries += 1
        words = _words(error)
        if group.tries < TRIES:
            group.again = f"this is its second try, as its worker was lost ({words})"
            self.waiting.appendleft(group)
        else:
            group.again = ""
            self.give_up(group, Verdict.XENEMU, f"its worker was lost, twice: {words}")

    def give_up(self, group: _Group, verdict: Verdict, why: str) -> None:
        results = [Result(boot, [Finding(verdict, why)]) for boot in group.boots]
        for result in results:
            result.started = time.time()
        self.finish(group, results)

    def finish(self, group: _Group, results: Sequence[Result]) -> None:
        for boot, result in zip(group.boots, results, strict=True):
            known = replace(result, boot=boot, again=group.again)
            self.results[boot.name] = known
            self.watcher.finished(known)
            if known.exit_code:
                self.failed = self.failed or boot.name

    def renew(self) -> None:
        """Take another executor, as this one is broken for good."""
        self.breaks += 1
        self.executor.shutdown(wait=False)
        self.executor = self.make()

    def end(self) -> None:
        """Skip what has no result, and let go of the executor."""
        for group in (*self.running.values(), *self.held, *self.waiting):
            if group.is_begun:
                self.finish(group, [never_run(boot, self.why) for boot in group.boots])
        self.bell.close()
        self.ringing.close()
        for future in (*self.running, *self.parcels):
            future.cancel()
        self.executor.shutdown(wait=False)


def _groups(boots: Sequence[Boot]) -> list[_Group]:
    found: dict[str, _Group] = {}
    for boot in boots:
        first = boot
        while first.origin:
            first = first.origin
        found.setdefault(first.name, _Group([])).boots.append(boot)
    return list(found.values())


def _error(future: Future[Any]) -> BaseException | None:
    if future.cancelled():
        return RuntimeError("the executor cancelled it")
    return future.exception()


def _words(error: BaseException) -> str:
    """An exception, as far as its first sentence."""
    return f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
