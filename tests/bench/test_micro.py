"""bench/micro.py: what it takes from the guest that it times."""

from __future__ import annotations

import pytest

from bench import micro
from bench.measure import Cost, Run
from bench.rows import Figures
from guests import build


@pytest.mark.parametrize("name", micro.OPERATIONS)
def test_operations_and_counts_are_the_guests(name):
    console = build.guests()[micro.GUEST].expected(name)
    told = [line.split(": ") for line in console.splitlines() if ": " in line]
    counts = {operation: int(count) for operation, count in told if count.isdigit()}
    assert list(counts.items()) == [(one, micro.COUNTS[one]) for one in micro.OPERATIONS[name]]


def test_a_cost_is_the_time_since_the_line_before():
    names = ("start", *micro.OPERATIONS["pvh64"])
    run = Run({name: Cost(n * n, 0) for n, name in enumerate(names)}, 0)
    costs = micro._costs("pvh64", run, factor=3)
    assert costs["block"] == pytest.approx(1e9 / (micro.COUNTS["block"] * 3))
    assert costs["store"] == pytest.approx(3e9 / (micro.COUNTS["store"] * 3))


def test_table_has_a_column_for_each_guest():
    figures = Figures({"pv64": {"block": [1.25], "hypercall": [4000.4]}, "pvh64": {"block": [2]}})
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in micro.GROUP.table(figures).splitlines()]  # fmt: skip
    assert [lines[0], lines[2]] == [
        ["ns of CPU time for a", "pv64", "pvh64"],
        ["block", "1.2", "2.0"],
    ]
    assert ["hypercall", "4000", ""] in lines
