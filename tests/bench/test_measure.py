"""bench/measure.py, on shell commands: what is noticed and what is refused, never how fast."""

from __future__ import annotations

import pytest

from bench.measure import EXIT, BenchError, Scanner, measure

MILESTONES = {"first": b"Linux version ", "last": b"Power down"}
PRINT_ALL = "echo Linux version 6.1; echo Power down"


def run(script, tmp_path, timeout=60.0, last=EXIT):
    return measure(["sh", "-c", script], tmp_path, None, MILESTONES, timeout, last)


def test_scanner_finds_a_milestone_that_comes_in_pieces():
    scanner = Scanner(MILESTONES)
    assert scanner.feed(b"[0.0] Linux ver") == []
    assert scanner.feed(b"sion 6.1\n") == ["first"]


def test_scanner_finds_a_milestone_once():
    scanner = Scanner(MILESTONES)
    assert scanner.feed(b"Linux version 6.1, Power down, Linux version 6.1") == ["first", "last"]
    assert scanner.feed(b"Linux version 6.1, Power down") == []


def test_scanner_keeps_little_of_the_output():
    scanner = Scanner(MILESTONES)
    for _ in range(64):
        scanner.feed(bytes(1 << 16))
    assert len(scanner.window) == 4096


def test_costs_grow_from_one_milestone_to_the_next(tmp_path):
    result = run(PRINT_ALL, tmp_path)
    first, last, end = (result.at[name] for name in ("first", "last", EXIT))
    assert 0 < first.cpu <= last.cpu
    assert 0 < first.wall <= last.wall <= end.wall
    assert result.peak_bytes > 0


def test_command_runs_in_its_directory(tmp_path):
    (tmp_path / "log").write_text("Linux version 6.1\nPower down\n")
    assert set(run("cat log", tmp_path).at) == {"first", "last", EXIT}


def test_command_is_killed_at_the_last_milestone_that_is_wanted(tmp_path):
    assert set(run(f"{PRINT_ALL}; exec sleep 1000", tmp_path, last="last").at) == {
        *("first", "last", EXIT)
    }
    with pytest.raises(BenchError, match=r"killed by signal 9 .* before 'first'"):
        run("echo Power down; exec sleep 1000", tmp_path, last="last")


def test_a_key_lets_the_command_go_on_from_each_milestone(tmp_path):
    script = "echo Linux version 6; read a; echo Power down; read b; echo $a $b > said"
    measure(["sh", "-c", script], tmp_path, None, MILESTONES, key=b"k\n")
    assert (tmp_path / "said").read_text() == "k k\n"


def test_missed_milestone_is_named_with_the_last_line(tmp_path):
    with pytest.raises(BenchError, match=r"exit code 0 .* before 'last': Linux version 6\.1$"):
        run("echo Linux version 6.1", tmp_path)


def test_failure_is_told_in_the_words_of_stderr(tmp_path):
    with pytest.raises(BenchError, match=r"exit code 7 .* s: not a kernel$"):
        run(f"{PRINT_ALL}; echo not a kernel >&2; exit 7", tmp_path)


def test_command_that_takes_too_long_is_killed(tmp_path):
    with pytest.raises(BenchError, match=r"killed by signal 9 .* before 'first': no output"):
        run("exec cat /dev/zero >/dev/null", tmp_path, timeout=0.01)


def test_missing_command_is_named(tmp_path):
    with pytest.raises(BenchError, match="no-such-command: No such file or directory"):
        measure(["no-such-command"], tmp_path)
