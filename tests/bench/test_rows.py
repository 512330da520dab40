"""bench/rows.py: turns, medians and ratios."""

from __future__ import annotations

import pytest

from bench.groups import GROUPS
from bench.measure import BenchError
from bench.rows import Figures, Row, measure_rows


def test_rows_take_turns(tmp_path):
    done = []

    def row(name):
        return Row(name, lambda folder: {"s": done.append(name) or len(done)})

    samples = measure_rows([row("a"), row("b")], 3, tmp_path)
    assert done == ["a", "b"] * 3
    assert samples == {"a": {"s": [1, 3, 5]}, "b": {"s": [2, 4, 6]}}


def test_a_row_that_fails_is_named(tmp_path):
    def fail(_):
        raise BenchError("exit code 7")

    with pytest.raises(BenchError, match="a boot, round 1: exit code 7"):
        measure_rows([Row("a boot", fail)], 2, tmp_path)


def test_ratio_is_to_the_least_of_the_peers_that_were_measured():
    figures = Figures({"ours": {"s": [3, 3, 9]}, "old": {"s": [6]}, "new": {"s": [4]}})
    assert figures.ratio("ours", ["old", "new", "none"], "s") == pytest.approx(0.75)
    assert figures.ratio("ours", ["none"], "s") is None
    assert figures.ratio("none", ["old"], "s") is None
    assert figures.median("ours", "MiB") is None


def test_each_group_says_how_long_it_takes_and_what_it_is():
    assert all(group.minutes > 0 and group.title and group.rounds for group in GROUPS.values())
