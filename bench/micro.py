"""What single operations cost: ``guests/micro-costs``, timed from outside, line by line."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from bench.measure import Run, measure
from guests import build

GUEST: Final = "micro-costs"
FACTOR: Final = 2000  # of the guest's counts: some tenths of a second for each operation

# How often each operation is done, times the factor; in the guest's order.
COUNTS: Final = {
    "block": 20_000,
    "store": 20_000,
    "hypercall": 20,
    "page fault": 20,
    "mmu_update of 128": 1,
    "baseptr": 20,
    "event upcall": 20,
}
OPERATIONS: Final = {
    "pv64": ("block", "store", "hypercall", "page fault", "mmu_update of 128", "baseptr"),
    "pv32": ("block", "store", "hypercall", "page fault", "mmu_update of 128", "baseptr"),
    "pvh64": ("block", "store", "hypercall", "page fault", "event upcall"),
}
START: Final = "start"


def measure_all(
    rounds: int, scratch: Path, environment: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Nanoseconds of CPU time of each operation, by kind of guest: medians."""
    runs: dict[str, list[Run]] = {name: [] for name in OPERATIONS}
    for _ in range(rounds):
        for name, done in runs.items():
            done.append(_run(name, 64, scratch, environment))
    return {name: dict(_costs(OPERATIONS[name], done)) for name, done in runs.items()}


def measure_one(
    name: str, operation: str, memory_mib: int, scratch: Path, environment: Mapping[str, str]
) -> float:
    """Nanoseconds of CPU time of one operation in a guest with so much memory."""
    run = _run(name, memory_mib, scratch, environment)
    return dict(_costs(OPERATIONS[name], [run]))[operation]


def _run(name: str, memory_mib: int, scratch: Path, environment: Mapping[str, str]) -> Run:
    built, path = build.ENVIRONMENTS[name], scratch / f"{GUEST}-{name}"
    if not path.exists():
        build.build(build.guests()[GUEST], built, path)
    command = (sys.executable, *f"-m xenemu run --mode {built.mode} {path.name}".split())
    command += ("--memory", f"{memory_mib}M", "--cmdline", str(FACTOR))
    milestones = {START: START.encode()}
    milestones |= {operation: f"{operation}: ".encode() for operation in OPERATIONS[name]}
    return measure(command, scratch, environment, milestones)


def _costs(operations: tuple[str, ...], runs: list[Run]) -> Iterator[tuple[str, float]]:
    for before, operation in zip((START, *operations), operations, strict=False):
        costs = [run.at[operation].cpu - run.at[before].cpu for run in runs]
        yield operation, statistics.median(costs) * 1e9 / (COUNTS[operation] * FACTOR)


def table(costs: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """The lines of a table: an operation each, a column for each kind of guest."""
    lines = [["ns of CPU time for a", *costs]]
    for operation in COUNTS:
        cells = [costs[name].get(operation) for name in costs]
        lines.append([operation, *("" if ns is None else _number(ns) for ns in cells)])
    return lines


def _number(ns: float) -> str:
    return f"{ns:.1f}" if ns < 100 else f"{ns:.0f}"
