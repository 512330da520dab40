"""`xenemu hypercalls`: Xen's hypercall table, and how much of it xenemu does."""

from __future__ import annotations

import json as json_codec
from typing import Annotated, Any

import typer

from xenemu.abi.errno import NAMES
from xenemu.hv.dispatch import Hypercall, SubOp
from xenemu.machine import TABLE

ENVIRONMENTS = ("pv64", "pv32", "pvh64", "pvh32")


def hypercalls(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List Xen's hypercalls, who may call each, and how xenemu answers.

    What Xen refuses to an unprivileged guest shows Xen's error, and why. DIVERGES says where
    xenemu knowingly answers otherwise.
    """
    rows = describe()
    typer.echo(json_codec.dumps(rows, indent=2) if json else _text(rows))


def describe() -> list[dict[str, Any]]:
    """The table in number order, as JSON has it."""
    return [_row(row) for _, row in sorted(TABLE.rows.items())]


def _row(row: Hypercall) -> dict[str, Any]:
    return {
        "number": row.number,
        "callers": [name for name in ENVIRONMENTS if name in row.callers],
        **_answer(row),
        "operations": [
            {"number": command, **_answer(operation)}
            for command, operation in sorted(row.operations.items())
        ],
    }


def _answer(entry: Hypercall | SubOp) -> dict[str, Any]:
    implemented = not entry.note
    return {
        "name": entry.name.rstrip("_"),  # Python's keywords
        "implemented": implemented,
        "answer": None if implemented else NAMES[entry.answer],
        "note": entry.note,
        "diverges": entry.diverges,
    }


def _text(rows: list[dict[str, Any]]) -> str:
    heads = "  ".join(f"{name:<5}" for name in ENVIRONMENTS)
    lines = [f" nr  {'hypercall':<28}  {heads}  answer"]
    for row in rows:
        callers = "  ".join(f"{'yes' if n in row['callers'] else '-':<5}" for n in ENVIRONMENTS)
        lines.append(f"{row['number']:>3}  {row['name']:<28}  {callers}  {_words(row)}")
        lines += [
            f"     {operation['number']:>4}  {operation['name']:<50}  {_words(operation)}"
            for operation in row["operations"]
        ]
    operations = [operation for row in rows for operation in row["operations"]]
    return "\n".join([*lines, "", _count("hypercalls", rows), _count("sub-operations", operations)])


def _words(entry: dict[str, Any]) -> str:
    words = "implemented" if entry["implemented"] else f"-{entry['answer']}: {entry['note']}"
    return f"{words}; DIVERGES: {entry['diverges']}" if entry["diverges"] else words


def _count(what: str, entries: list[dict[str, Any]]) -> str:
    """The share that is implemented; no entry is unknown, since the rest is Xen's own answer."""
    done = sum(entry["implemented"] for entry in entries)
    share = 100 * done // len(entries)
    diverging = sum(bool(entry["diverges"]) for entry in entries)
    return (
        f"{what}: {done} of {len(entries)} implemented ({share}%),"
        f" {len(entries) - done} refused as Xen refuses them; {diverging} diverge"
    )
