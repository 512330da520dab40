"""bench/svg.py and bench/pictures.py: what a chart has, never how it looks."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from bench import boots, pictures, scaling, svg
from bench.results import Record
from bench.svg import Bar

SVG = "{http://www.w3.org/2000/svg}"


def widths(text, kind):
    found = ElementTree.fromstring(text).iter(f"{SVG}rect")
    return [float(r.get("width")) for r in found if r.get("class") == kind and r.get("x") != "14.0"]


def record(samples):
    return Record("2026-01-01", "abc", "3.11", "a CPU", 2, 0.0, {}, 3, samples)


def test_bars_are_as_long_as_their_values():
    groups = [("a <b>", [Bar("ours", 2, "2"), Bar("peer", 4, "4")])]
    text = svg.bars("t", {"ours": "us"}, groups)
    (ours,), (peer,) = widths(text, "ours"), widths(text, "peer")
    assert abs(peer - 2 * ours) < 0.2 and "a &lt;b&gt;" in text


def test_bars_on_a_logarithmic_scale_differ_by_as_much_for_each_factor():
    groups = [("a", [Bar("ours", value, "") for value in (1, 10, 100)])]
    one, ten, hundred = widths(svg.bars("t", {}, groups, logarithmic=True), "ours")
    assert abs((hundred - ten) - (ten - one)) < 0.2


def test_a_mark_is_where_a_bar_of_its_value_ends():
    text = svg.bars("t", {}, [("a", [Bar("ours", 1, "1"), Bar("late", 4, "4")])], mark=1)
    (bar,) = (
        r for r in ElementTree.fromstring(text).iter(f"{SVG}rect") if r.get("class") == "ours"
    )
    x = float(re.search(r'class="mark" d="M([\d.]+)', text)[1])
    assert abs(float(bar.get("x")) + float(bar.get("width")) - x) < 0.2


def test_lines_have_a_point_for_each_tick_and_start_at_zero():
    text = svg.lines("t", {"ours": "us"}, ["a", "b", "c"], {"ours": [1, 2, 3.9]})
    (line,) = ElementTree.fromstring(text).iter(f"{SVG}polyline")
    assert len(line.get("points").split()) == 3
    labels = [t.text for t in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert {"0", "4", "a", "b", "c"} <= set(labels)


def test_every_colour_has_one_for_dark_screens():
    light, dark = svg._style().split("@media (prefers-color-scheme: dark)")
    assert [rule.split()[0] for rule in light.splitlines()[-14:] if rule] == [
        rule.split()[0] for rule in dark.splitlines()[1:-1]
    ]


def test_pictures_are_of_what_was_measured_and_the_same_each_time():
    cost = {boots.TO_INIT: [3.0]}
    sizes = {scaling.size_row(size): {scaling.CPU[m]: [1.5] for m in scaling.MODES}
             for size in (96, 1024)}  # fmt: skip
    found = {
        "boots": record({boots.ours("PV, vmlinux"): cost, boots.peers("PV, vmlinux")[0]: cost}),
        "scaling": record(sizes),
        "micro": record({}),
    }
    drawn = pictures.draw(found)
    assert set(drawn) == {"goals", "boots", "scaling"}
    assert drawn == pictures.draw(found)
    assert len(widths(drawn["boots"], "ours")) == 1
    for text in drawn.values():
        ElementTree.fromstring(text)
