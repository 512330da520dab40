"""`xenemu hypercalls`: Xen's hypercall table, and how much of it xenemu does."""

from __future__ import annotations

import json as json_codec
from typing import Annotated, Any

import typer

from xenemu.abi.errno import NAMES
from xenemu.hv.dispatch import Hypercall, SubOp, SubOps
from xenemu.machine import TABLE

ENVIRONMENTS = ("pv64", "pv32", "pvh64", "pvh32")


def hypercalls(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List Xen's hypercalls, who may call each, and how xenemu answers.

    One that is not implemented gets the error that Xen gives an unprivileged guest, and why.
    """
    rows = describe()
    typer.echo(json_codec.dumps(rows, indent=2) if json else _text(rows))


def describe() -> list[dict[str, Any]]:
    """The table in number order, as JSON has it."""
    return [_row(row) for _, row in sorted(TABLE.rows.items())]


def _row(row: Hypercall) -> dict[str, Any]:
    operations = row.handler.table if isinstance(row.handler, SubOps) else {}
    return {
        "number": row.number,
        "callers": [name for name in ENVIRONMENTS if name in row.callers],
        **_answer(row),
        "operations": [
            {"number": command, **_answer(operation)}
            for command, operation in sorted(operations.items())
        ],
    }


def _answer(entry: Hypercall | SubOp) -> dict[str, Any]:
    implemented = entry.handler is not None
    return {
        "name": entry.name.rstrip("_"),  # Python's keywords
        "implemented": implemented,
        "answer": None if implemented else NAMES[entry.answer],
        "note": entry.note,
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
    return "implemented" if entry["implemented"] else f"-{entry['answer']}: {entry['note']}"


def _count(what: str, entries: list[dict[str, Any]]) -> str:
    done = sum(entry["implemented"] for entry in entries)
    return f"{what}: {done} implemented, {len(entries) - done} refused as Xen refuses them"
