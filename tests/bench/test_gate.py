"""bench/gate.py: what is called slower, and what is stored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import gate
from bench.gate import Stored, Verdict
from bench.measure import BenchError
from bench.rows import Row

ROOT = Path(__file__).parents[2]
STORED = Stored(multiple=10.0, noise=0.03)


@pytest.mark.parametrize(
    ("multiple", "word"),
    [(10.7, "SLOWER"), (10.5, "ok"), (10.0, "ok"), (9.5, "ok"), (9.3, "faster")],
)
def test_a_row_fails_beyond_twice_its_noise(multiple, word):
    assert Verdict("boot", multiple, STORED).word == word


def test_noise_that_was_too_little_to_believe_counts_as_more():
    assert Stored(10.0, 0.0).most == pytest.approx(10.6)


def test_noise_is_how_far_one_measurement_was_off():
    times = [{"boot": value} for value in (9.0, 10.0, 10.2)]
    assert gate.noise_of(times) == {"boot": Stored(10.0, 0.111)}


def test_a_figure_is_the_least_in_units_of_the_least_work(tmp_path, monkeypatch):
    work, costs = iter([2.0, 3.0, 4.0]), iter([9.0, 6.0, 7.0])
    monkeypatch.setattr(gate, "calibrate", lambda _: next(work))
    row = Row("boot", lambda _: {"boot": next(costs)})
    found = gate.measured([row], 3, tmp_path)
    assert found == {"boot": [9.0, 6.0, 7.0], "calibration": [2.0, 3.0, 4.0]}
    assert gate.multiples(found) == {"boot": 3.0}


@pytest.mark.parametrize(("again", "code"), [([12.0], 1), ([10.0], 0)])
def test_what_seems_slower_is_measured_again(again, code, monkeypatch, capsys):
    rounds = iter([{"boot": [12.0], "calibration": [1.0]}, {"boot": again, "calibration": [1.0]}])
    monkeypatch.setattr(gate, "prepare", lambda _: [Row("boot", lambda _: {})])
    monkeypatch.setattr(gate, "measured", lambda *_: next(rounds))
    told = f"abc on {gate.results.machine()}"
    monkeypatch.setattr(gate, "read", lambda: ({"boot": STORED}, told))
    monkeypatch.setattr(gate.os, "getloadavg", lambda: (0.5, 0, 0))
    assert gate.main(store=False) == code
    assert not list(rounds)
    line, what_to_do = capsys.readouterr().out.splitlines()
    assert line.startswith("SLOWER" if code else "ok") and line.endswith("boot")
    assert ("bisect" in what_to_do) is bool(code)


def test_a_row_that_is_not_stored_is_told():
    with pytest.raises(BenchError, match="no 'new': python -m bench gate --store"):
        gate.judge({"new": 1.0}, {"boot": STORED})


def test_what_to_do_follows_from_the_worst():
    slow, fine, fast = (Verdict("boot", value, STORED) for value in (12, 10, 8))
    assert "bisect" in gate.advice([fast, slow], "abc")
    assert "--store" in gate.advice([fast, fine], "abc")
    assert gate.advice([fine], "abc") == "As fast as abc."
    assert str(slow).split()[:2] == ["SLOWER", "1.20"]


def test_what_is_stored_is_read_again(tmp_path, capsys):
    file = tmp_path / "gate.json"
    gate._write({"boot": STORED}, file)
    rows, told = gate.read(file)
    assert rows == {"boot": STORED} and " on " in told
    assert "10.00 " in gate.table(rows) and "1.06 of it" in gate.table(rows)
    file.write_text("{}")
    with pytest.raises(BenchError, match="not what"):
        gate.read(file)


def test_rows_are_named_as_they_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(gate.files, "put_guest", lambda *_: "guest")
    monkeypatch.setattr(
        gate.micro, "costs", lambda kind, *_: dict.fromkeys(gate.OPERATIONS[kind], 1)
    )
    for kind in gate.OPERATIONS:
        row = gate._operations(kind, tmp_path)
        assert list(row.figures(tmp_path)) == gate.row_names(row)


def test_the_calibration_is_the_same_work_each_time():
    """In a process of its own: xenemu must be the first to import unicorn in this one."""
    code = "from bench import calibration as c\nc.TURNS, c.LOOPS = 100, 2\n"
    code += "print(c.python(), c.engine())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["12052", "1637292218"]
