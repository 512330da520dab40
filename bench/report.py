"""From runs to a table in Markdown, and from there into a file."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.measure import BANNER, EXIT, INIT, BenchError, Run
from bench.subjects import OURS, Subject

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

Results = Mapping[Subject, Sequence[Run]]


@dataclass(frozen=True)
class Column:
    """A figure of a run; `digits` after its point."""

    title: str
    value: Callable[[Run], float]
    digits: int = 2

    def median(self, runs: Sequence[Run]) -> float:
        """Return the median over `runs`."""
        return statistics.median(self.value(run) for run in runs)


COLUMNS = (
    Column("CPU s to `Linux version`", lambda run: run.at[BANNER].cpu),
    Column("to init", lambda run: run.at[INIT].cpu),
    Column("to exit", lambda run: run.at[EXIT].cpu),
    Column("wall s to `Linux version`", lambda run: run.at[BANNER].wall),
    Column("to init", lambda run: run.at[INIT].wall),
    Column("to exit", lambda run: run.at[EXIT].wall),
    Column("peak MiB", lambda run: run.peak_bytes / 2**20, digits=0),
)


def table(results: Results) -> str:
    """Lay out a line for each subject, and one for each ratio of ours to a peer's."""
    lines = [["boot", "by", *(column.title for column in COLUMNS)]]
    for boot, group in itertools.groupby(results, key=lambda subject: subject.boot):
        subjects = list(group)
        lines += [[boot, subject.name, *_medians(results[subject])] for subject in subjects]
        for ours in (subject for subject in subjects if subject.name == OURS):
            for peer in (subject for subject in subjects if subject.name != OURS):
                ratio = [f"{_ratio(column, results, ours, peer):.2f}" for column in COLUMNS]
                lines.append([boot, f"{ours.name} / {peer.name}", *ratio])
    return _markdown(lines)


def spread(results: Results) -> float:
    """Return the widest range of a subject's CPU seconds, as a part of their median."""
    return max(
        (max(costs) - min(costs)) / statistics.median(costs)
        for runs in results.values()
        if (costs := [run.at[EXIT].cpu for run in runs])
    )


def replace_block(text: str, block: str) -> str:
    """Put `block` between the markers in `text`.

    Raises `BenchError` unless each marker is there once, in order.
    """
    if not text.count(BEGIN) == text.count(END) == 1 or text.index(BEGIN) > text.index(END):
        raise BenchError(f"{BEGIN} and, after it, {END} must be there, once each")
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    return f"{before}{BEGIN}\n{block.strip()}\n{END}{after}"


def _medians(runs: Sequence[Run]) -> list[str]:
    return [f"{column.median(runs):.{column.digits}f}" for column in COLUMNS]


def _ratio(column: Column, results: Results, ours: Subject, peer: Subject) -> float:
    return column.median(results[ours]) / column.median(results[peer])


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    # The first two columns are names, the others numbers.
    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(
        "| " + " | ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(row)) + " |"
        for row in (list(zip(line, widths, strict=True)) for line in [lines[0], rule, *lines[1:]])
    )


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
