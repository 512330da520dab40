"""A guest in a process of its own, for a program to talk to: what the pytest fixtures return.

The guest's time stands still while nobody waits for the guest. So a test is as repeatable as a
boot. A copy of a guest is a copy of its process.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import field, replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from xenemu.confine import confine
from xenemu.errors import UsageError, XenemuError
from xenemu.options import parse_pattern
from xenemu.outcome import End
from xenemu.records import dataclass
from xenemu.smoke import copies, wire, worker
from xenemu.smoke.asking import Asking
from xenemu.smoke.copies import ANSWERS, Copy, Lost, Original
from xenemu.smoke.ending import console_end
from xenemu.smoke.nursery import Nursery
from xenemu.smoke.plan import Boot, Step, outliving
from xenemu.smoke.results import Result
from xenemu.smoke.runner import ENDING_S, GRACE_S
from xenemu.smoke.session import Session
from xenemu.smoke.wire import Inbox, Nonsense

__tracebackhide__ = True  # pytest shows the test's own line


@dataclass(frozen=True)
class Found:
    """What an expectation matched: the text, its groups, and the named ones of them."""

    text: str
    groups: tuple[str | None, ...] = ()
    named: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A request that could not be done: the asker's mistake, or a bug's traceback."""

    sentence: str
    usage: bool


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

    keeps_console = False  # when it is closed; its copies do as it does

    def __init__(self, boot: Boot) -> None:
        """Load and build it, or have it go on where its origin is at its snapshot.

        UsageError if that cannot be; GuestFailed if its origin does not get there.
        """
        home = _home(os.getpid())
        if boot.origin:
            origin = home.at_snapshot(boot.origin)._original
            self._take(boot, lambda errors: origin.copy(boot, errors))
        else:
            self._take(boot, lambda errors: home.nursery.start(_serve, boot, errors=errors))
        try:
            self._ask("mode", None)
        except BaseException:
            self.close()
            raise

    def _take(self, boot: Boot, start: Callable[[int], tuple[Copy, Connection]]) -> None:
        """Have the process that `start` makes, with a descriptor for its last words."""
        self.boot = boot
        self.copies: list[Guest] = []
        self._is_asked = False
        self._kept: str | None = None
        self._scratch = tempfile.NamedTemporaryFile(prefix="xenemu-")  # noqa: SIM115
        try:
            self._process, self._pipe = start(self._scratch.fileno())
        except Lost as lost:
            raise RuntimeError(f"there is no process for {boot}: {lost}") from None
        kinds = (str, type(None), Found, Result, Problem, *ANSWERS)
        self._inbox = Inbox(self._pipe, *kinds)

    def fork(self) -> Guest:
        """A copy of the guest as it is now: both go on from here, each by itself.

        It takes milliseconds, and little memory. UsageError if the guest has what copies cannot
        share: a share, a network interface, a disk in qcow2 or one that is written to.
        """
        if lasting := outliving(self.boot):
            raise UsageError(f"{self.boot} has {lasting}, which copies cannot share")
        self._may_ask()
        copy = Guest.__new__(Guest)
        copy.keeps_console = self.keeps_console
        copy._take(self.boot, lambda errors: self._original.copy(None, errors))
        self.copies.append(copy)
        return copy

    @property
    def _original(self) -> Original:
        return Original(self._process.pid, self._pipe, self._inbox)

    def expect(self, pattern: str, timeout: float | None = None) -> Found:
        """Run until the console shows `pattern` after what was found before.

        GuestFailed if it ends first, or if a limit of the boot's or `timeout` host seconds pass;
        UsageError for a pattern that is none, or that matches no text at all.
        """
        patience = timeout or self.boot.timeout
        found = self._ask("expect", (pattern, patience), patience)
        if isinstance(found, Result):
            raise GuestFailed(f"{found.verdict.value}: {found.sentence}", found)
        assert isinstance(found, Found)
        return found

    def send(self, text: str) -> None:
        """Type `text`; the guest reads it when it runs again."""
        self._ask("send", text)

    def sendline(self, text: str = "") -> None:
        """Type `text` and a line end."""
        self.send(f"{text}\n")

    def ask(self, do: str, **fields: object) -> dict[str, Any]:
        """Have the toolstack do something, as `xenemu control` does, and run until it answers.

        What it answers. GuestFailed if it refuses, or if the guest does not do it in time;
        UsageError for a verb that there is not.
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
        """What is known of the guest now, with its console."""
        result = self._ask("result", None)
        assert isinstance(result, Result)
        return result

    @property
    def console(self) -> str:
        """What it has printed, before each line the virtual time; if closed, if that was kept."""
        return self.result.log if self._kept is None else self._kept

    def close(self) -> None:
        """End the guest's process, whatever it does."""
        if not self.is_closed:
            if self.keeps_console:
                with suppress(RuntimeError):
                    self._kept = self.console
            self._process.kill()
            self._process.join()
            self._process.close()
            self._pipe.close()
            self._scratch.close()

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
            raise UsageError(answer.sentence) if answer.usage else RuntimeError(answer.sentence)
        return replace(answer, boot=self.boot) if isinstance(answer, Result) else answer

    @property
    def is_closed(self) -> bool:
        """Whether it can be asked nothing any more, except for its console if that was kept."""
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
                guest.close()
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
                guest.close()
        self._guests = {}
        self.nursery.close()


@cache
def _home(owner: int) -> _Home:
    """One for each process: a fork of this one has another."""
    return _Home()


def close_all() -> None:
    """End the processes that guests come from."""
    _home(os.getpid()).close()


# In the guest's process.


def _serve(connection: Connection, boot: Boot) -> None:
    """Answer requests until nobody can ask any more; in copies of this process, too."""
    worker.isolate()
    session: Session | None = None
    while True:
        try:
            request, argument = connection.recv()
        except EOFError:
            return
        try:
            if request in copies.REQUESTS:
                if own := copies.REQUESTS[request](connection, argument):
                    connection = own
                    if session and argument:
                        session.turn_to(argument)
                continue
            if session is None:
                session = Session(boot, is_asked=True)
                confine(session.callers, session.calls, copied=not outliving(boot))
            answer = REQUESTS[request](session, argument)
        except XenemuError as error:
            answer = Problem(str(error), usage=True)
        except Exception:
            answer = Problem(traceback.format_exc(), usage=False)
        wire.send(connection, answer)


def _expect(session: Session, argument: Any) -> object:
    pattern, timeout = argument
    try:
        parse_pattern(pattern)
    except ValueError as error:
        raise UsageError(f"expect: {error}") from None
    outcome = session.run([Step(pattern)], timeout, to_end=False)
    if outcome.end is not End.EXPECTED:
        return _result(session, None)
    match = session.matches[-1]
    return Found(match[0], match.groups(), match.groupdict())


def _ask(session: Session, request: Any) -> object:
    if request["do"] not in session.machine.control.verbs:
        known = ", ".join(session.machine.control.verbs)
        raise UsageError(f"there is no verb {request['do']!r}; there are {known}")
    return json.dumps(session.ask(request, session.boot.timeout))


def _snapshot(session: Session, _: Any) -> object:
    return None if session.run_to_snapshot() else _result(session, None)


def _finish(session: Session, _: Any) -> object:
    session.run_plan()
    return _result(session, None)


def _result(session: Session, _: Any) -> object:
    result = Result(session.boot)
    result.mode = session.machine.entry.name
    if session.outcome is not None:
        result.findings = session.judge(session.outcome)
        result.reason = session.reason
    worker.add_session(result, session)
    return result


def _send(session: Session, text: Any) -> object:
    session.send(text.encode())
    return None


REQUESTS: Final[dict[str, Callable[[Session, Any], object]]] = {
    "mode": lambda session, _: session.machine.entry.name,
    "expect": _expect,
    "send": _send,
    "ask": _ask,
    "snapshot": _snapshot,
    "finish": _finish,
    "result": _result,
}
