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
        for ours, peer in _pairs(subjects):
            ratio = [f"{_ratio(column, results, ours, peer):.2f}" for column in COLUMNS]
            lines.append([boot, f"{ours.name} / {peer.name}", *ratio])
    return markdown(lines, names=2)


def figures(
    results: Results, startup_s: float, costs: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """All medians and ratios, and the spreads, by a name that says what and in which unit."""
    found = {}
    for boot, group in itertools.groupby(results, key=lambda subject: subject.boot):
        subjects = list(group)
        for column in COLUMNS:
            for subject in subjects:
                values = [column.value(run) for run in results[subject]]
                found[f"{boot}: {subject.name}, {column.title}"] = column.median(results[subject])
                found[f"{boot}: {subject.name}, {column.title}, spread"] = _range(values)
            for ours, peer in _pairs(subjects):
                found[f"{boot}: {ours.name} / {peer.name}, {column.title}"] = _ratio(
                    column, results, ours, peer
                )
    found["xenemu --help, CPU s"] = startup_s
    for guest, operations in costs.items():
        for operation, ns in operations.items():
            found[f"{guest}: {operation}, ns of CPU time"] = ns
    return found


def _pairs(subjects: Sequence[Subject]) -> list[tuple[Subject, Subject]]:
    """Ours, each with each of its peers."""
    ours = [subject for subject in subjects if subject.name == OURS]
    return [(one, peer) for one in ours for peer in subjects if peer.name != OURS]


def _range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


def spread(results: Results) -> float:
    """Return the widest range of a subject's CPU seconds, as a part of their median."""
    return max(_range([run.at[EXIT].cpu for run in runs]) for runs in results.values())


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


def markdown(lines: list[list[str]], names: int) -> str:
    """Lay out a table; the first columns are `names`, the others numbers."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rule = ["-" * width if i < names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join(
        "| " + " | ".join(_aligned(*cell, i < names) for i, cell in enumerate(row)) + " |"
        for row in (list(zip(line, widths, strict=True)) for line in [lines[0], rule, *lines[1:]])
    )


def _aligned(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)
