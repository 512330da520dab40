"""The processes of a matrix: what happens to one happens to it alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

import crashing
from xenemu.smoke import runner
from xenemu.smoke.plan import Boot
from xenemu.smoke.verdict import Verdict


class Watcher:
    def __init__(self):
        self.events, self.running, self.most = [], 0, 0

    def began(self, boot):
        self.running += 1
        self.most = max(self.most, self.running)

    def progress(self, boot, progress):
        self.events.append((boot.name, progress.words))

    def finished(self, result):
        self.running -= 1
        self.events.append((result.boot.name, result.verdict.value))


def run(*names, jobs=2, fail_fast=False, timeout=300.0, interruption=None):
    boots = [Boot(name, Path("/nonexistent"), timeout=timeout) for name in names]
    watcher = Watcher()
    results = runner.run(boots, jobs, watcher, fail_fast, crashing.main, interruption)
    assert multiprocessing.active_children() == []
    return results, watcher


def test_results_are_in_the_plans_order():
    results, watcher = run("good 1", "bad 2", "good 3")
    assert [result.boot.name for result in results] == ["good 1", "bad 2", "good 3"]
    assert [result.verdict for result in results] == [Verdict.PASS, Verdict.PANIC, Verdict.PASS]
    assert ("good 1", "hello") in watcher.events
    assert watcher.most == 2


def test_one_job_is_one_at_a_time():
    _, watcher = run("good 1", "good 2", "good 3", jobs=1)
    assert watcher.most == 1


@pytest.mark.parametrize(
    ("name", "reason", "report"),
    [
        ("segv", "the process that ran it ended: SIGSEGV", "the engine's last words"),
        ("exit", "the process that ran it ended: exit 3", ""),
    ],
)
def test_a_process_that_dies_is_its_boots_verdict(name, reason, report):
    (lost, good), _ = run(name, "good")
    assert (lost.verdict, lost.exit_code) == (Verdict.XENEMU, 70)
    assert (lost.sentence, lost.report) == (reason, report)
    assert good.verdict is Verdict.PASS


def test_an_engine_that_is_stuck_is_ended(monkeypatch):
    monkeypatch.setattr(runner, "GRACE_S", 0.0)
    (stuck,), _ = run("stuck", timeout=0.01)
    assert stuck.verdict is Verdict.XENEMU
    assert "did not come back" in stuck.sentence


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pickles", "the process that ran it sent nonsense: "),
        ("hangs up", "the process that ran it ended: SIGKILL"),
        ("stalls", "the engine did not come back"),
    ],
)
def test_a_process_that_a_guest_took_over_is_its_boots_verdict(monkeypatch, name, reason):
    monkeypatch.setattr(runner, "ENDING_S", 0.0)
    if name == "stalls":
        monkeypatch.setattr(runner, "GRACE_S", 0.0)
    (lost,), _ = run(name, timeout=2.0 if name == "stalls" else 300.0)
    assert lost.verdict is Verdict.XENEMU
    assert lost.sentence.startswith(reason)


def test_fail_fast_begins_nothing_more():
    results, _ = run("bad 1", "good 2", "good 3", jobs=1, fail_fast=True)
    assert [result.verdict.value for result in results] == ["panic", "skipped", "skipped"]
    assert results[1].sentence == "--fail-fast, and bad 1 did not pass"


class Interruption:
    """A signal that has come."""

    signum = signal.SIGTERM

    def __init__(self):
        self._pipe = os.pipe()
        os.write(self._pipe[1], b"!")

    def fileno(self):
        return self._pipe[0]


def test_an_interruption_skips_what_has_not_ended(monkeypatch):
    monkeypatch.setattr(runner, "STOP_S", 600.0)
    results, watcher = run("polite 1", "good 2", jobs=1, interruption=Interruption())
    assert {(result.verdict, result.sentence) for result in results} == {
        (Verdict.SKIPPED, "stopped by SIGTERM")
    }
    assert results[0].log == "it was here"
    assert watcher.events[-1] == ("polite 1", "skipped")


def test_an_interruption_ends_what_does_not_stop(monkeypatch):
    monkeypatch.setattr(runner, "STOP_S", 0.0)
    (stuck,), _ = run("stuck", interruption=Interruption())
    assert (stuck.verdict, stuck.sentence) == (Verdict.SKIPPED, "stopped by SIGTERM")


def test_a_process_that_somebody_else_stops_is_no_skipped_boot():
    (stopped,), _ = run("stopped")
    assert (stopped.verdict, stopped.exit_code) == (Verdict.XENEMU, 70)


def test_fail_fast_goes_on_while_all_is_well():
    results, _ = run("good 1", "good 2", jobs=1, fail_fast=True)
    assert len(results) == 2


def test_a_kernel_that_cannot_be_read_is_a_verdict():
    boot = Boot("none", Path("/nonexistent"))
    (result,) = runner.run([boot], 1, Watcher())
    assert result.verdict is Verdict.IMAGE
    assert "No such file" in result.sentence
