"""The commands: ``python -m bench list | measure | table | compare | gate``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench import documents, gate, qemu, results
from bench.groups import GROUPS
from bench.measure import BenchError
from bench.rows import Group, measure_rows
from guests import fetch
from xenemu.errors import XenemuError

APT_INSTALL: Final = f"apt-get install -y --no-install-recommends {qemu.PACKAGE}"


def main() -> int:
    """Do what is asked; 1 after one line that says why it cannot be done."""
    arguments = _parse()
    try:
        return int(arguments.command(arguments) or 0)
    except (BenchError, XenemuError, *fetch.FAILURES) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure xenemu and its peers, on a quiet machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="the groups, and how long each takes")
    command.set_defaults(command=_list)

    command = commands.add_parser("measure", help=f"measure groups, and keep {results.FILE.name}")
    command.set_defaults(command=_measure)
    command.add_argument("group", nargs="*", help=f"default: all, which are {', '.join(GROUPS)}")
    rounds = command.add_mutually_exclusive_group()
    rounds.add_argument("--rounds", type=int, metavar="N", help="default: each group's own")
    rounds.add_argument("--quick", dest="rounds", action="store_const", const=1, help="one round")
    command.add_argument("--row", metavar="TEXT", help="only rows with TEXT in the name; not kept")
    command.add_argument("--install", action="store_true", help="install QEMU if it is missing")

    command = commands.add_parser("table", help="the tables of what was measured")
    command.set_defaults(command=_table)
    command.add_argument("--update", action="store_true", help="the documents and pictures, too")

    command = commands.add_parser("compare", help="how the medians differ from a revision's")
    command.set_defaults(command=_compare)
    command.add_argument("revision", nargs="?", default="HEAD", help="default: HEAD")

    command = commands.add_parser("gate", help="a few minutes: has something become slower?")
    command.set_defaults(command=lambda arguments: gate.main(arguments.store))
    command.add_argument("--store", action="store_true", help="measure anew what is compared with")

    arguments = parser.parse_args()
    if getattr(arguments, "rounds", None) is not None and arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    for name in getattr(arguments, "group", ()):
        if name not in GROUPS:
            parser.error(f"no group {name!r}; there are: {', '.join(GROUPS)}")
    return arguments


def _list(_: argparse.Namespace) -> None:
    for group in GROUPS.values():
        print(f"{group.name:10} {group.minutes:4g} min, {group.rounds} rounds  {group.title}")
    print(f"{'in all':10} {sum(group.minutes for group in GROUPS.values()):4g} min")


def _measure(arguments: argparse.Namespace) -> None:
    if arguments.install:
        _install()
    for name in arguments.group or GROUPS:
        group = GROUPS[name]
        found = _measured(group, arguments.rounds or group.rounds, arguments.row or "")
        if not arguments.row:  # what is measured at different times is not compared
            results.store(name, found)
        print(f"\n{group.title}\n\n{group.table(found.figures)}\n", flush=True)
        print(f"{found.conditions()}\n", flush=True)


def _measured(group: Group, rounds: int, wanted: str) -> results.Record:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix=f"xenemu-{group.name}-") as folder:
        rows = [row for row in group.prepare(Path(folder)) if wanted in row.name]
        if not rows:
            raise BenchError(f"{group.name} has no row with {wanted!r} in its name")
        samples = measure_rows(rows, rounds, Path(folder))
    return results.record(samples, qemu.versions(), load, rounds)


def _install() -> None:
    try:
        qemu.installed()
    except BenchError:
        if subprocess.run(APT_INSTALL.split(), stdout=sys.stderr, check=False).returncode:
            raise BenchError(f"{APT_INSTALL} failed") from None


def _table(arguments: argparse.Namespace) -> None:
    records = results.load()
    for text in documents.blocks(records).values():
        print(f"{text}\n")
    if arguments.update:
        for path in documents.update(records):
            print(f"bench: {path} is new", file=sys.stderr)


def _compare(arguments: argparse.Namespace) -> None:
    lines = list(results.compare(arguments.revision))
    print("\n".join(lines) or f"nothing was measured since {arguments.revision}")


if __name__ == "__main__":
    sys.exit(main())
