"""What it takes to start: `--help`, and a guest that says hello and powers off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import files, report
from bench.files import XENEMU
from bench.measure import EXIT, measure
from bench.rows import Figures, Group, Row

HELP: Final = "`xenemu --help`"
CPU: Final = "CPU s"
KINDS: Final = ("pv64", "pv32", "pvh64")


def hello(kind: str) -> str:
    """The row of the guest that says hello."""
    return f"`xenemu run hello`, {kind}"


def _row(name: str, *words: str) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        done = measure((*XENEMU, *words), folder, files.environment(), {})
        end = done.at[EXIT]
        return {CPU: end.cpu, "wall s": end.wall, "peak MiB": done.peak_mib}

    return Row(name, run)


def _prepare(folder: Path) -> Sequence[Row]:
    guests = {kind: files.put_guest(folder, "hello", kind) for kind in KINDS}
    run = ("run", "--memory", "64M")
    rows = [_row(HELP, "--help"), *(_row(hello(kind), *run, guests[kind]) for kind in KINDS)]
    for row in rows:  # fills the caches
        row.figures(folder)
    return rows


def _table(figures: Figures) -> str:
    return report.plain(figures, ((CPU, 2), ("wall s", 2), ("peak MiB", 0)))


GROUP: Final = Group(
    "start",
    "from the start of the process to its end: --help, hello",
    minutes=0.2,
    prepare=_prepare,
    table=_table,
    rounds=9,
)
