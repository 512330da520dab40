"""bench/history.py: records and their comparison."""

from __future__ import annotations

import pytest

from bench import history
from bench.measure import BenchError


def test_the_last_two_are_compared(tmp_path):
    file = tmp_path / "history.jsonl"
    for seconds in (9.0, 2.0, 1.0):
        history.append(file, {"boot, s": seconds})
    history.append(file, {"boot, s": 1.5, "other": 3.0})
    first, *rest = history.compare(file).splitlines()
    assert first.startswith("unknown (2")
    assert rest == ["  1.50  boot, s: 1 -> 1.5", "   new  other: 3"]


@pytest.mark.parametrize("text", ["", "{}\n", "{}\n{}\n", "[]\n[]\n", "no JSON\nat all\n"])
def test_what_cannot_be_compared_is_told(tmp_path, text):
    file = tmp_path / "history.jsonl"
    file.write_text(text)
    with pytest.raises(BenchError, match="not two records"):
        history.compare(file)


def test_no_file_is_told(tmp_path):
    with pytest.raises(BenchError, match="No such file"):
        history.compare(tmp_path / "none")
