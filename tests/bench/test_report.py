"""bench/report.py: medians, ratios, and the block in the README."""

from __future__ import annotations

import pytest

from bench import report
from bench.measure import BANNER, EXIT, INIT, BenchError, Cost, Run
from bench.subjects import OURS, SUBJECTS, Subject

XENEMU, PEER = Subject("PV", OURS, ("a",)), Subject("PV", "Xen", ("b",))
ALONE = Subject("PVH", "QEMU", ("c",))


def run(seconds):
    cost = Cost(seconds, 2 * seconds)
    return Run({BANNER: cost, INIT: cost, EXIT: cost}, int(seconds * 2**20))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_row_has_the_medians():
    _, _, row = report.table({ALONE: [run(3), run(9), run(4)]}).splitlines()
    assert cells(row) == ["PVH", "QEMU", *["4.00"] * 3, *["8.00"] * 3, "4"]


def test_ratio_is_ours_to_the_peer_of_the_same_boot():
    results = {XENEMU: [run(3)], PEER: [run(4)], ALONE: [run(2)]}
    *_, ratio, last = report.table(results).splitlines()
    assert cells(ratio) == ["PV", "xenemu / Xen", *["0.75"] * 7]
    assert cells(last)[:2] == ["PVH", "QEMU"]


def test_lines_are_equally_long():
    lines = report.table({XENEMU: [run(300)], PEER: [run(0.5)]}).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_spread_is_the_widest_range_over_its_median():
    results = {XENEMU: [run(9), run(10), run(11)], PEER: [run(4), run(4)]}
    assert report.spread(results) == pytest.approx(0.2)


def test_subjects_of_a_boot_stand_together_and_are_distinct():
    boots = [subject.boot for subject in SUBJECTS]
    assert boots == sorted(boots, key=boots.index)
    assert len({(subject.boot, subject.name) for subject in SUBJECTS}) == len(SUBJECTS)


def test_block_replaces_what_is_between_the_markers_only():
    text = report.replace_block(f"before {report.BEGIN}\nold\n{report.END} after", "\nnew\n")
    assert text == f"before {report.BEGIN}\nnew\n{report.END} after"


@pytest.mark.parametrize(
    "text",
    [
        "",
        report.BEGIN,
        report.END + report.BEGIN,
        report.BEGIN + report.BEGIN + report.END,
        report.BEGIN + report.END + report.BEGIN + report.END,
        report.END + report.BEGIN + report.END,
    ],
)
def test_markers_that_are_not_there_once_in_order_are_refused(text):
    with pytest.raises(BenchError, match="once each"):
        report.replace_block(text, "new")


def test_figures_have_medians_spreads_ratios_and_costs():
    results = {XENEMU: [run(3), run(6), run(4)], PEER: [run(8)]}
    figures = report.figures(results, 0.25, {"pv64": {"block": 1.5}})
    assert figures["PV: xenemu, peak MiB"] == 4
    assert figures["PV: xenemu, peak MiB, spread"] == 0.75
    assert figures["PV: xenemu / Xen, CPU s to `Linux version`"] == 0.5
    assert figures["xenemu --help, CPU s"] == 0.25
    assert figures["pv64: block, ns of CPU time"] == 1.5
