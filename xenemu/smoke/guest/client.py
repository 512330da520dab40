"""A guest in a process of its own, for a program to talk to: `xenemu.boot`, and pytest's fixtures.

The guest's time stands still while nobody waits for the guest. So a program is as repeatable as a
boot. A copy of a guest is a copy of its process, and so is a snapshot.

The guest's process is confined. This process is not: all that comes from the other one is data of
kinds that are expected.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Unpack

from xenemu.errors import UsageError, XenemuError
from xenemu.options import parse_pattern
from xenemu.smoke.copies import Copy, Lost, Original
from xenemu.smoke.ending import console_end
from xenemu.smoke.guest.asking import Asking
from xenemu.smoke.guest.checking import Plain, Seconds, Text, Wait, checked
from xenemu.smoke.guest.describing import Keys, describe
from xenemu.smoke.guest.kernel import KernelView
from xenemu.smoke.guest.memory import Memory, Symbols
from xenemu.smoke.guest.messages import KINDS, Found, Moment, Problem, raised
from xenemu.smoke.guest.serving import LOOK, serve
from xenemu.smoke.nursery import Nursery
from xenemu.smoke.plan import Boot, outliving
from xenemu.smoke.results import Result
from xenemu.smoke.runner import ENDING_S, GRACE_S
from xenemu.smoke.wire import Inbox, Nonsense

__tracebackhide__ = True  # pytest shows the test's own line


class GuestFailed(AssertionError):
    """The guest did not do what was expected; `result` is what became of it."""

    def __init__(self, problem: str, result: Result) -> None:
        lines = console_end(result.log)
        console = ("Console, with the guest's time:", *lines) if lines else ()
        parts = (problem, *console, result.report)
        super().__init__("\n".join(filter(None, parts)))
        self.result = result


class Guest(Asking):
    """A booted guest. Use as a context, or `close` it."""

    keeps_console = False  # for a test that fails, if it is closed; its copies do as it does

    def __init__(self, boot: Boot) -> None:
        """Load and build it, or have it go on where its origin is at its snapshot.

        UsageError if that cannot be; GuestFailed if its origin does not get there.
        """
        home = _home(os.getpid())
        if boot.origin:
            origin = home.at_snapshot(boot.origin)._original
            self._take(boot, lambda errors: origin.copy(boot, errors))
        else:
            self._take(boot, lambda errors: home.nursery.start(serve, boot, errors=errors))
        try:
            self._ask("mode", None)
        except BaseException:
            self._end_process()
            raise

    def _take(self, boot: Boot, start: Callable[[int], tuple[Copy, Connection]]) -> None:
        """Have the process that `start` makes, with a descriptor for its last words."""
        self.boot = boot
        self.copies: list[Guest] = []
        self._snapshots: list[Snapshot] = []
        self._is_asked = False
        self._kept: Result | None = None  # when it was closed
        self._scratch = tempfile.NamedTemporaryFile(prefix="xenemu-")  # noqa: SIM115
        try:
            self._process, self._pipe = start(self._scratch.fileno())
        except Lost as lost:
            raise RuntimeError(f"there is no process for {boot}: {lost}") from None
        self._inbox = Inbox(self._pipe, *KINDS)

    def fork(self) -> Guest:
        """A copy of the guest as it is now: both go on from here, each by itself.

        It takes milliseconds, and little memory. UsageError if the guest has what copies cannot
        share: a share, a network interface, a disk in qcow2 or one that is written to.
        """
        copy = self._copy()
        copy.keeps_console = self.keeps_console
        self.copies.append(copy)
        return copy

    def _copy(self) -> Guest:
        if lasting := outliving(self.boot):
            raise UsageError(f"{self.boot} has {lasting}, which copies cannot share")
        self._may_ask()
        copy = Guest.__new__(Guest)
        copy._take(self.boot, lambda errors: self._original.copy(None, errors))
        return copy

    def snapshot(self) -> Snapshot:
        """The guest as it is now, to go back to; it is closed with the guest. UsageError as `fork`.

        It takes milliseconds, and as much memory as the guest changes from then on.
        """
        self._snapshots.append(Snapshot(self._copy()))
        return self._snapshots[-1]

    @checked
    def restore(self, snapshot: Snapshot) -> None:
        """Be as the guest was at a snapshot, with its console, time and memory; also after an end.

        The snapshot may be another guest's, of the same boot or not.
        """
        if self.is_closed:
            raise RuntimeError("the guest is closed")
        held = snapshot._copy()
        self._end_process()
        self.boot, self._is_asked = held.boot, False
        self._process, self._pipe = held._process, held._pipe
        self._inbox, self._scratch = held._inbox, held._scratch

    @property
    def _original(self) -> Original:
        return Original(self._process.pid, self._pipe, self._inbox)

    @checked
    def expect(self, pattern: Text, timeout: Wait | None = None) -> Found:
        """Run until the console shows `pattern` after what was found before.

        GuestFailed if it ends first, or if a limit of the boot's or `timeout` host seconds pass;
        with a `timeout` of 0, nothing runs. If it has not ended, it can be asked for something else
        then. UsageError for a pattern that is none, or that matches no text at all.
        """
        try:
            parse_pattern(pattern)
        except ValueError as error:
            raise UsageError(f"expect: {error}") from None
        patience = self.boot.timeout if timeout is None else timeout
        found = self._ask("expect", (pattern, patience), patience)
        if isinstance(found, Result):
            raise GuestFailed(f"{found.verdict.value}: {found.sentence}", found)
        assert isinstance(found, Found)
        return found

    @checked
    def run(self, seconds: Seconds) -> bool:
        """Run so many seconds of the guest's own time; False if it ended, or met a limit, before.

        It runs on to the end of a slice, so up to 10 ms longer. A guest that waits for input waits
        on; it may be silent for as long as it likes. The boot's `timeout` is for the host's time.
        """
        patience = self.boot.timeout
        return self._ask("run", (round(seconds * 1e9), patience), patience) != "ended"

    @checked
    def send(self, text: Text) -> None:
        """Type `text`; the guest reads it when it runs again. GuestFailed if it has ended."""
        ended = self._ask("send", text)
        if isinstance(ended, Result):
            raise GuestFailed(f"send: the guest has ended: {ended.sentence}", ended)

    @checked
    def sendline(self, text: Text = "") -> None:
        """Type `text` and a line end."""
        self.send(f"{text}\n")

    @checked
    def ask(self, do: Text, **fields: Plain) -> dict[str, Any]:
        """Have the toolstack do something, as `xenemu control` does, and run until it answers.

        What it answers. GuestFailed if the guest does not do it in time, or ends; UsageError if
        the toolstack refuses, or has no such verb.
        """
        said = {name: value for name, value in fields.items() if value is not None}
        answer = json.loads(str(self._ask("ask", {"do": do, **said}, self.boot.timeout)))
        if not answer.pop("ok"):
            raise GuestFailed(f"{do}: {answer['error']}", self.result)
        answer.pop("id", None)
        return dict(answer)

    def finish(self, check: bool = True) -> Result:
        """Run as the boot's plan says, or without a plan to the end; what became of the guest.

        GuestFailed if something speaks against the guest, unless `check` is False.
        """
        result = self._ask("finish", None)
        assert isinstance(result, Result)
        if check and result.findings:
            raise GuestFailed(f"{result.verdict.value}: {result.sentence}", result)
        return result

    @property
    def result(self) -> Result:
        """What is known of the guest now, with its console; or was when it was closed."""
        if self._kept is not None:
            return self._kept
        result = self._ask("result", None)
        assert isinstance(result, Result)
        return result

    @property
    def console(self) -> str:
        """What it has printed, before each line the virtual time."""
        return self.result.log

    @property
    def output(self) -> str:
        """What it has printed, as it is."""
        return self.result.raw.decode(errors="replace")

    @property
    def virtual_ns(self) -> int:
        """The guest's time since its boot began, in nanoseconds."""
        return self._moment.virtual_ns

    @property
    def instructions(self) -> int:
        """How many instructions it has run."""
        return self._moment.instructions

    @property
    def _moment(self) -> Moment:
        found = self._look("moment")
        assert isinstance(found, Moment)
        return found

    def report(self) -> str:
        """Where it is now: its last hypercalls, registers, backtrace and page walk.

        Of a closed guest it is its result's, if something speaks against the guest.
        """
        if self._kept is not None and self._kept.report:
            return self._kept.report
        return str(self._look("report"))

    @property
    def memory(self) -> Memory:
        """Its memory, by the addresses of the vcpu that ran last, and by the kernel's."""
        return Memory(self._look, "virtual")

    @property
    def physical(self) -> Memory:
        """Its memory, by the physical addresses that its kernel knows."""
        return Memory(self._look, "physical")

    @property
    def symbols(self) -> Symbols:
        """The names of its kernel's addresses."""
        return Symbols(self._look)

    @property
    def kernel(self) -> KernelView:
        """Its kernel's tasks, modules, log and variables, if it is a Linux."""
        return KernelView(self._look)

    def _look(self, what: str, *arguments: object) -> object:
        return self._ask(LOOK, (what, *arguments))

    def close(self) -> None:
        """End the guest's process, whatever it does, and those of its snapshots.

        `result`, `output` and `console` are kept.
        """
        if not self.is_closed:
            with suppress(RuntimeError):
                self._kept = self.result
            self._end_process()
        for snapshot in self._snapshots:
            snapshot.close()

    def _end_process(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()
        self._scratch.close()

    def __repr__(self) -> str:
        return f"<xenemu.Guest {str(self.boot)!r}{', closed' if self.is_closed else ''}>"

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.keeps_console |= error is not None
        self.close()

    def _ask(self, request: str, argument: object, patience: float = 0) -> object:
        self._may_ask()
        self._is_asked = True
        try:
            self._pipe.send((request, argument))
            answer = self._answer((patience or self.boot.timeout) + GRACE_S)
        except Nonsense as nonsense:
            raise RuntimeError(f"the guest's process sent nonsense: {nonsense}") from None
        except (EOFError, OSError):
            self._process.join(timeout=ENDING_S)
            code = self._process.exitcode or 0
            why = signal.Signals(-code).name if code < 0 else f"exit {code}"
            errors = Path(self._scratch.name).read_text(errors="replace")
            raise RuntimeError(f"the guest's process ended: {why}\n{errors}") from None
        self._is_asked = False
        if isinstance(answer, Problem):
            raise raised(answer)
        return replace(answer, boot=self.boot) if isinstance(answer, Result) else answer

    @property
    def is_closed(self) -> bool:
        """Whether it can be asked nothing any more, except for what was kept: `result`."""
        return self._pipe.closed

    def _may_ask(self) -> None:
        if self.is_closed:
            raise RuntimeError("the guest is closed")
        if self._is_asked:
            raise RuntimeError("the guest was interrupted, and cannot be asked any more")

    def _answer(self, patience: float) -> object:
        deadline = time.monotonic() + patience
        while self._pipe.poll(max(0.0, deadline - time.monotonic())):
            if answers := self._inbox.take():
                return answers[0]
        raise RuntimeError("the engine does not come back")


class Snapshot:
    """A guest as it was: a process that waits to be copied. `close` it, or its guest."""

    def __init__(self, held: Guest) -> None:
        self._held = held

    def fork(self) -> Guest:
        """Another guest, which goes on from here by itself."""
        return self._copy()

    def _copy(self) -> Guest:
        if self._held.is_closed:
            raise RuntimeError("the snapshot is closed")
        return self._held._copy()

    def close(self) -> None:
        """Forget it."""
        if not self._held.is_closed:
            self._held._end_process()


def boot(kernel: Boot | str | Path, **keys: Unpack[Keys]) -> Guest:
    """Load a kernel into a process of its own, ready to run: no instruction has run yet.

    The keys are those of a plan's ``[[boot]]`` (docs/ci.md), such as ``mode="pv"``. Paths are
    relative to the current directory. Use the guest as a context, or `close` it.

    UsageError, ImageError or FitError, in one line, if it cannot be booted so.
    """
    try:
        return Guest(describe(kernel, Path(), **keys))
    except XenemuError as error:
        raise error.with_traceback(None) from None  # the caller's line is the one to look at


class _Home:
    """Where the guests of this process come from: a nursery, and guests at their snapshots."""

    def __init__(self) -> None:
        self.nursery = Nursery()
        self._guests: dict[Boot, Guest | GuestFailed] = {}
        atexit.register(self.close)

    def at_snapshot(self, boot: Boot) -> Guest:
        """The guest of a boot that others start from; GuestFailed if it ends before."""
        if boot not in self._guests:
            guest = Guest(boot)
            result = guest._ask("snapshot", None)
            if isinstance(result, Result):
                guest._end_process()
                words = f"{boot} did not reach its snapshot: {result.sentence}"
                self._guests[boot] = GuestFailed(words, result)
            else:
                self._guests[boot] = guest
        found = self._guests[boot]
        if isinstance(found, GuestFailed):
            raise found
        return found

    def close(self) -> None:
        """End it, until there is another guest."""
        for guest in self._guests.values():
            if isinstance(guest, Guest):
                guest._end_process()
        self._guests = {}
        self.nursery.close()


@cache
def _home(owner: int) -> _Home:
    """One for each process: a fork of this one has another."""
    return _Home()


def close_all() -> None:
    """End the processes that guests come from."""
    _home(os.getpid()).close()
