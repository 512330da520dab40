"""bench/report.py and bench/documents.py: tables, and their places in the documents."""

from __future__ import annotations

import pytest

from bench import documents, report
from bench.measure import BenchError
from bench.results import Record
from bench.rows import Figures

BEGIN, END = report.markers("boots")
COLUMNS = (("CPU s", 2), ("peak MiB", 0))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_row_has_the_medians_and_nothing_where_nothing_was_measured():
    figures = Figures({"one": {"CPU s": [3, 9, 4], "peak MiB": [7.6]}, "other": {"CPU s": [300]}})
    lines = report.plain(figures, COLUMNS).splitlines()
    assert [cells(line) for line in (lines[0], *lines[2:])] == [
        ["", "CPU s", "peak MiB"],
        ["one", "4.00", "8"],
        ["other", "300.00", ""],
    ]
    assert len({len(line) for line in lines}) == 1


def test_block_replaces_what_is_between_its_markers_only():
    other = "".join(report.markers("micro"))
    text = report.replace_block(f"{other} before {BEGIN}\nold\n{END} after", "boots", "\nnew\n")
    assert text == f"{other} before {BEGIN}\nnew\n{END} after"


@pytest.mark.parametrize(
    "text",
    ["", BEGIN, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + BEGIN + END, END + BEGIN + END],
)
def test_markers_that_are_not_there_once_in_order_are_refused(text):
    with pytest.raises(BenchError, match="once each"):
        report.replace_block(text, "boots", "new")


def test_documents_get_the_groups_that_they_have_a_place_for(tmp_path):
    samples = {"`xenemu --help`": {"CPU s": [0.25]}}
    record = Record("2026-01-02T03:04", "abc", "3.11", "a CPU", 2, 0.0, {}, 3, samples)
    place = "\n".join(report.markers("start"))
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    readme.write_text("no place\n")
    page.write_text(f"before\n{place}\nafter\n")
    assert page in list(documents.update({"start": record}, tmp_path))
    assert readme.read_text() == "no place\n"
    text = page.read_text()
    assert "0.25" in text and "2026-01-02, commit abc" in text
    assert not list(documents.update({"start": record}, tmp_path))  # as it is
