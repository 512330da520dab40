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
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from xenemu.confine import confine
from xenemu.errors import UsageError, XenemuError
from xenemu.options import parse_pattern
from xenemu.outcome import End
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

    def __init__(self, boot: Boot) -> None:
        """Load and build it; UsageError if that cannot be."""
        self._take(boot, lambda errors: _nursery(os.getpid()).start(_serve, boot, errors=errors))
        try:
            self._ask("mode", None)
        except BaseException:
            self.close()
            raise

    def _take(self, boot: Boot, start: Callable[[int], tuple[Copy, Connection]]) -> None:
        """Have the process that `start` makes, with a descriptor for its last words."""
        self.boot = boot
        self._is_asked = False
        self._scratch = tempfile.NamedTemporaryFile(prefix="xenemu-")  # noqa: SIM115
        self._process, self._pipe = start(self._scratch.fileno())
        kinds = (str, type(None), Found, Result, Problem, *ANSWERS)
        self._inbox = Inbox(self._pipe, *kinds)

    def fork(self) -> Guest:
        """A copy of the guest as it is now: both go on from here, each by itself.

        It takes milliseconds, and little memory. The time of the copy's limits begins anew.
        UsageError if the guest has what copies cannot share: a share, a network interface, a disk
        that is written to or in qcow2.
        """
        if lasting := outliving(self.boot):
            raise UsageError(f"{self.boot} has {lasting}, which copies cannot share")
        self._may_ask()
        copy = Guest.__new__(Guest)
        original = Original(self._process.pid, self._pipe, self._inbox)
        try:
            copy._take(self.boot, lambda errors: original.copy(None, errors))
        except Lost as lost:
            raise RuntimeError(f"the guest cannot be copied: {lost}") from None
        return copy

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
        """What it has printed, before each line the virtual time."""
        return self.result.log

    def close(self) -> None:
        """End the guest's process, whatever it does."""
        if not self._pipe.closed:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._pipe.close()
            self._scratch.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exception: object) -> None:
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

    def _may_ask(self) -> None:
        if self._is_asked:
            raise RuntimeError("the guest was interrupted, and cannot be asked any more")

    def _answer(self, patience: float) -> object:
        deadline = time.monotonic() + patience
        while self._pipe.poll(max(0.0, deadline - time.monotonic())):
            if answers := self._inbox.take():
                return answers[0]
        raise RuntimeError("the engine does not come back")


@cache
def _nursery(owner: int) -> Nursery:
    """Where the guests of a process come from; one that was forked from it has another."""
    nursery = Nursery()
    atexit.register(nursery.close)
    return nursery


def end_nursery() -> None:
    """End the process that guests come from, until there is another guest."""
    _nursery(os.getpid()).close()


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
        if request in copies.REQUESTS:
            connection = copies.REQUESTS[request](connection, argument) or connection
            continue
        try:
            if session is None:
                session = Session(boot)
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
    "finish": _finish,
    "result": _result,
}
