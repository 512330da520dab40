"""`xenemu control`: ask the toolstack of a guest that runs, as xl does on a Xen host."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from xenemu.cli.completing import among
from xenemu.errors import UsageError
from xenemu.options import parse_request, parse_seconds

HELP_EPILOG: Final = """\b
Examples:
  xenemu run vmlinuz --cmdline console=hvc0 --control guest.sock
  xenemu control guest.sock                            lists the verbs
  xenemu control guest.sock status
  xenemu control guest.sock shutdown reboot
  xenemu control guest.sock memory 128M within=60
  xenemu control guest.sock xenstore watch control     until the guest ends

\b
Exit codes:
  0    done
  3    refused, or the guest has not done it in time; a sentence says which
  7    there is no guest at PATH, or no such verb
"""
EXIT_REFUSED: Final = 3
AGAIN_S: Final = 0.05
UNSURE: Final = ("snapshot", "dump")  # verbs that a guest has only by an option of its run
LISTENING: Final = ("events",)  # verbs after which lines come until the guest ends


def _completed(ctx: typer.Context, incomplete: str) -> list[str]:
    """The verbs that a word may become, where one stands."""
    from xenemu.dom0.verbs import VERBS  # noqa: PLC0415 (else the guest is asked for them)

    return [] if ctx.params.get("words") else among(["help", *VERBS])(incomplete)


def control(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The socket of run's --control.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VERB [WORD...]]",
            help="What to do, and to what; a word may be a field by name, such as within=5.",
            autocompletion=_completed,
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(help="Wait up to so long for a guest to be there.", metavar="SECONDS"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Show answers and events as they come: lines of JSON.")
    ] = False,
) -> None:
    """Ask a guest that xenemu runs to do something, as xl does.

    The guest was started with --control PATH. Without a verb, the verbs are listed.
    """
    connection = _connect(path, 0 if wait is None else parse_seconds("--wait", wait))
    with connection, connection.makefile("rb") as lines:
        verbs = _ask(connection, lines, {"do": "help"})["verbs"]
        if not words or (words == ["help"] and not as_json):
            _show_verbs(verbs)
            return
        if words[0] in UNSURE and words[0] not in verbs:
            request = {"do": words[0]}  # the guest's own answer says what it lacks
        else:
            request = parse_request(verbs, words)
        answer = _ask(connection, lines, request)
        is_told = not (answer["ok"] or as_json)  # a refusal, to a person
        typer.echo(json.dumps(answer) if as_json else "\n".join(described(answer)), err=is_told)
        if not answer["ok"]:
            raise typer.Exit(EXIT_REFUSED)
        if request["do"] in LISTENING or request.get("op") == "watch":
            for line in lines:
                event = json.loads(line)
                typer.echo(json.dumps(event) if as_json else " ".join(described(event)))


def _connect(path: Path, wait_s: float) -> socket.socket:
    """Connect to the guest that is controlled at a path; UsageError."""
    until = time.monotonic() + wait_s
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() >= until:
                said = f"{path}: no guest is controlled there: {error.strerror or error}"
                raise UsageError(said) from None
        time.sleep(AGAIN_S)


def _ask(connection: socket.socket, lines: Any, request: Mapping[str, str]) -> dict[str, Any]:
    """Send a request, and wait for its answer; UsageError: there is none."""
    try:
        connection.sendall(json.dumps({"id": 1, **request}).encode() + b"\n")
        for line in lines:
            answer: dict[str, Any] = json.loads(line)
            if "ok" in answer:
                return answer
    except OSError:
        pass
    raise UsageError("the guest has ended, and left no answer")


def _show_verbs(verbs: Mapping[str, Any]) -> None:
    for verb in verbs.values():
        typer.echo(f"{verb['usage']}\n    {verb['help']}")


def described(answer: Mapping[str, Any]) -> Iterator[str]:
    """An answer or an event, for a person."""
    if "error" in answer:
        yield f"xenemu: {answer['error']}"
        return
    shown = {name: value for name, value in answer.items() if name not in ("id", "ok")}
    if not shown:
        yield "done"
    for name, value in shown.items():
        if isinstance(value, list):
            yield f"{name}:"
            yield from (f"  {_short(each)}" for each in value)
        elif name == "nodes":
            yield from (f"{path} = {json.dumps(each)}" for path, each in value.items())
        elif not (name == "truncated" and not value):
            yield value if name == "value" else f"{name}: {_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(each)}" for name, each in value.items())
    if value is None:
        return "none"
    return str(value) if not isinstance(value, bool) else ("yes" if value else "no")
