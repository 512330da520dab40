"""bench/micro.py: what it takes from the guest that it times."""

from __future__ import annotations

import pytest

from bench import micro
from bench.measure import Cost, Run
from guests import build


@pytest.mark.parametrize("name", micro.OPERATIONS)
def test_operations_and_counts_are_the_guests(name):
    console = build.guests()[micro.GUEST].expected(name)
    told = [line.split(": ") for line in console.splitlines() if ": " in line]
    counts = {operation: int(count) for operation, count in told if count.isdigit()}
    assert list(counts.items()) == [(one, micro.COUNTS[one]) for one in micro.OPERATIONS[name]]


def test_a_cost_is_the_time_since_the_line_before():
    def run(block, store):
        return Run({"start": Cost(1, 1), "block": Cost(block, 2), "store": Cost(store, 3)}, 0)

    runs = [run(2, 2.5), run(3, 4), run(5, 7)]
    each = micro.COUNTS["block"] * micro.FACTOR
    assert dict(micro._costs(("block", "store"), runs)) == {
        "block": pytest.approx(2e9 / each),
        "store": pytest.approx(1e9 / each),
    }


def test_table_has_a_column_for_each_guest():
    lines = micro.table({"pv64": {"block": 1.25, "hypercall": 4000.4}, "pvh64": {"block": 2}})
    assert lines[:2] == [["ns of CPU time for a", "pv64", "pvh64"], ["block", "1.2", "2.0"]]
    assert ["hypercall", "4000", ""] in lines
