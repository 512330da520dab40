"""In a guest's process: answers what the program asks that has booted the guest."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Final

from xenemu.confine import confine
from xenemu.errors import UsageError, XenemuError
from xenemu.outcome import End
from xenemu.smoke import copies, wire, worker
from xenemu.smoke.guest.looking import Looking
from xenemu.smoke.guest.messages import Found, Problem, problem
from xenemu.smoke.plan import Boot, Step, in_keys, outliving
from xenemu.smoke.results import Result
from xenemu.smoke.session import Session

LOOK: Final = "look"


def serve(connection: Connection, boot: Boot) -> None:
    """Answer requests until nobody can ask any more; in copies of this process, too."""
    worker.isolate()
    session: Session | None = None
    looking: Looking | None = None
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
                looking = Looking(session)
                confine(session.callers, session.calls, copied=not outliving(boot))
            if request == LOOK:
                assert looking is not None
                answer = looking.answer(*argument)
            else:
                answer = REQUESTS[request](session, argument)
        except XenemuError as error:
            found = problem(error)
            answer = replace(found, sentence=in_keys(found.sentence))
        except Exception:
            answer = Problem(traceback.format_exc())
        wire.send(connection, answer)


def _expect(session: Session, argument: Any) -> object:
    pattern, timeout = argument
    outcome = session.run([Step(pattern)], timeout, to_end=False)
    if outcome.end is not End.EXPECTED:
        return _result(session, None)
    match = session.matches[-1]
    return Found(match[0], match.groups(), match.groupdict())


def _run(session: Session, argument: Any) -> object:
    ns, timeout = argument
    return "" if session.run_for(ns, timeout) else "ended"


def _ask(session: Session, request: Any) -> object:
    if request["do"] not in session.machine.control.verbs:
        known = ", ".join(session.machine.control.verbs)
        raise UsageError(f"there is no verb {request['do']!r}; there are {known}")
    waited = session.machine.control.number
    answer = session.ask(request, session.boot.timeout)
    if not (answer["ok"] or session.ended or session.machine.control.number != waited):
        raise UsageError(f"{request['do']}: {answer['error']}")  # at once, whatever the guest does
    return json.dumps(answer)


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
    if session.ended:
        return _result(session, None)
    session.send(text.encode())
    return None


REQUESTS: Final[dict[str, Callable[[Session, Any], object]]] = {
    "mode": lambda session, _: session.machine.entry.name,
    "expect": _expect,
    "run": _run,
    "send": _send,
    "ask": _ask,
    "snapshot": _snapshot,
    "finish": _finish,
    "result": _result,
}
