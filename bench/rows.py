"""Rows, which are measured by turns, and the figures that come of them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError

Samples = dict[str, dict[str, list[float]]]  # by row, and by the name of the figure


@dataclass(frozen=True)
class Row:
    """Something that is measured; `figures` does it once, in a folder with the group's files."""

    name: str
    figures: Callable[[Path], Mapping[str, float]]


class Figures:
    """What was measured of a group's rows, as medians."""

    def __init__(self, samples: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        self.samples = samples

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the rows, in order."""
        return tuple(self.samples)

    def median(self, row: str, figure: str) -> float | None:
        """The median of a row's figure; None if it was not measured."""
        values = self.samples.get(row, {}).get(figure)
        return statistics.median(values) if values else None

    def ratio(self, row: str, peers: Iterable[str], figure: str) -> float | None:
        """A row's median as a part of the least of its peers'; None without both."""
        ours = self.median(row, figure)
        theirs = [median for peer in peers if (median := self.median(peer, figure)) is not None]
        return ours / min(theirs) if ours is not None and theirs else None


@dataclass(frozen=True)
class Group:
    """Rows that are compared with each other.

    `prepare` writes the files that the rows need into a folder, and makes the rows. `table` lays
    the figures out as Markdown. `minutes` is how long all rounds take on a quiet machine.
    """

    name: str
    title: str
    minutes: float
    prepare: Callable[[Path], Sequence[Row]]
    table: Callable[[Figures], str]
    rounds: int = 5


def measure_rows(rows: Iterable[Row], rounds: int, folder: Path) -> Samples:
    """Measure every row once a round, in turns; BenchError names the row that failed."""
    samples: Samples = {row.name: {} for row in rows}
    for number in range(1, rounds + 1):
        for row in rows:
            try:
                figures = row.figures(folder)
            except BenchError as error:
                raise BenchError(f"{row.name}, round {number}: {error}") from None
            for name, value in figures.items():
                samples[row.name].setdefault(name, []).append(value)
            shown = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
            print(f"{number}/{rounds}  {row.name}: {shown}", file=sys.stderr, flush=True)
    return samples
