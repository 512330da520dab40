"""bench/goals.py: what is held against what."""

from __future__ import annotations

import pytest

from bench import goals, micro
from bench.goals import GOALS
from bench.groups import GROUPS
from bench.results import Record


def records(group, samples):
    return {group: Record("2026-01-01", "abc", "3.11", "a CPU", 2, 0.0, {}, 3, samples)}


def line_of(text, found):
    (line,) = (line for line in goals.table(found).splitlines() if line.startswith(f"| {text}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(("ours", "met"), [(3.3, "yes"), (3.4, "no")])
def test_a_boot_is_held_against_the_faster_peer(ours, met):
    samples = {
        "PV, bzImage: xenemu": {"CPU s to init": [ours]},
        "PV, bzImage: Xen in QEMU": {"CPU s to init": [12]},
        "PV, bzImage: Xen in newest QEMU": {"CPU s to init": [10]},
    }
    found = records("boots", samples)
    assert line_of("PV, bzImage", found) == ["0.33", f"{ours / 10:.2f}", met]


def test_an_operation_is_in_microseconds():
    found = records("micro", {"pv32": {"hypercall": [990]}})
    assert line_of("hypercall, pv32", found) == ["1.0 us", "1.0 us", "yes"]


def test_what_was_not_measured_is_not_met():
    assert line_of("hello", {}) == ["0.25 s", "", "not measured"]


def test_goals_are_of_groups_and_of_operations_that_there_are():
    assert {goal.group for goal in GOALS} <= set(GROUPS)
    samples = {kind: {name: [1.0] for name in micro.OPERATIONS[kind]} for kind in micro.OPERATIONS}
    found = records("micro", samples)
    named = [goal for goal in GOALS if goal.group == "micro" and goal.unit]
    assert len(named) == 6 and all(goal.now(found) == 0.001 for goal in named)
