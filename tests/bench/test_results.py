"""bench/results.py: what is kept, and how it is compared."""

from __future__ import annotations

import subprocess

import pytest

from bench import results
from bench.measure import BenchError


def record(seconds, at="2026-01-01"):
    samples = {"boot": {"CPU s": [seconds, seconds + 2, seconds + 1]}}
    return results.Record(at, "abc", "3.11", "a CPU", 2, 0.0, {"QEMU": "7.2"}, 3, samples)


def test_a_group_replaces_only_itself(tmp_path):
    file = tmp_path / "results.json"
    results.store("one", record(1), file)
    results.store("two", record(2), file)
    results.store("one", record(3), file)
    assert results.load(file) == {"one": record(3), "two": record(2)}
    assert results.load(file)["two"].figures.median("boot", "CPU s") == 3


def test_what_was_measured_just_now_has_its_conditions():
    now = results.record({"boot": {"CPU s": [1.23456789]}}, {"QEMU": "7.2"}, 3.21, 1)
    assert now.samples == {"boot": {"CPU s": [1.2346]}} and now.rounds == 1
    assert "QEMU 7.2; one run" in now.conditions() and "load 3.2" in now.conditions()
    assert "medians of 3" in record(1).conditions() and "load" not in record(1).conditions()


def test_medians_are_compared_with_those_of_a_revision(tmp_path):
    file = tmp_path / "results.json"
    results.store("same", record(9), file)
    results.store("boots", record(1), file)
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    results.store("boots", record(3, at="2026-01-02"), file)
    results.store("new", record(5), file)
    first, line = results.compare("HEAD", file)
    assert first.startswith("boots: abc (2026-01-01) -> abc (2026-01-02)")
    assert line == "  2.00  boot, CPU s: 2 -> 4"


def test_a_revision_without_results_is_told(tmp_path):
    with pytest.raises(BenchError, match=r"HEAD has no none\.json"):
        list(results.compare("HEAD", tmp_path / "none.json"))


@pytest.mark.parametrize("text", ["", "[]", '{"boots": 1}', '{"boots": {"at": "now"}}'])
def test_a_file_that_is_not_ours_is_told(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(BenchError, match="not what"):
        results.load(file)
    with pytest.raises(BenchError, match="not what"):
        results.store("one", record(1), file)
    assert file.read_text() == text
