"""Read and change the xenstore as dom0: `xenstore-read`, `-write`, `-rm`, `-ls` and `-watch`.

A path without a slash at its beginning is below the guest's own directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from xenemu.dom0.control import Answer, Ask, Control, Verb

OPERATIONS: Final = ("read", "write", "rm", "ls", "watch")
MAX_SHOWN: Final = 128 << 10  # characters in one answer: what somebody has yet to read is bounded


def do(control: Control, ask: Ask) -> Answer:
    """Do one of the operations; Refused, XenError."""
    store, session = control.store, control.connection
    operation, path = check(ask), _absolute(control, ask)
    match operation:
        case "read":
            return {"value": store.read(session, path).decode("latin-1")}
        case "write":
            store.write(session, path, ask.text("value").encode("latin-1"))
        case "rm":
            store.rm(session, path)
        case "ls":
            store.directory(session, path)
            nodes: dict[str, str] = {}
            shown = 0
            for at, value in _below(control, path):
                shown += len(at) + len(value)
                if shown > MAX_SHOWN:
                    return {"nodes": nodes, "truncated": True}
                nodes[at] = value
            return {"nodes": nodes, "truncated": False}
        case _:
            control.watch(ask, path)
    return {}


def check(ask: Ask) -> str:
    """The operation; Refused if there is no such one, or a word is missing."""
    operation = ask.one_of("op", OPERATIONS)
    ask.text("path")
    if operation == "write":
        ask.text("value")
    return operation


def _absolute(control: Control, ask: Ask) -> str:
    path = ask.text("path")
    return path if path.startswith(("/", "@")) else f"{control.home}/{path}".removesuffix("/.")


def _below(control: Control, path: str) -> Iterator[tuple[str, Any]]:
    """All nodes from a path on, each with its value, parents first."""
    store, todo = control.store, [path]
    while todo:
        at = todo.pop()
        yield at, store.read(control.connection, at).decode("latin-1")
        names = store.directory(control.connection, at)
        todo += [f"{at.rstrip('/')}/{name}" for name in reversed(names)]


VERB: Final = Verb(
    "xenstore",
    "read|write|rm|ls|watch PATH [VALUE]",
    "Read or change the xenstore as dom0; a relative PATH is below the guest's own directory.",
    do,
    fields=("op", "path", "value"),
    check=check,
)
