"""Boots that an executor's workers run: who tries what, which files travel, and what is told."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from types import SimpleNamespace

import pytest

import executors
import tinyguest
from executors import Inline
from xenemu import cachedir, cli
from xenemu.errors import UsageError
from xenemu.recording import file as recording_file
from xenemu.smoke import cargo, executor, hand
from xenemu.smoke.cargo import Packer
from xenemu.smoke.hand import Lacks
from xenemu.smoke.plan import Boot, make_boots
from xenemu.smoke.results import Result
from xenemu.smoke.verdict import Finding, Verdict

TESTS = Path(__file__).parents[1]


class Watcher:
    def __init__(self):
        self.events = []

    def began(self, boot):
        self.events.append(f"began {boot.name}")

    def progress(self, boot, progress):
        raise AssertionError

    def finished(self, result):
        self.events.append(f"{result.verdict.value} {result.boot.name}")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "kernel"
    code = tinyguest.say(b"hello\n") + tinyguest.shutdown(tinyguest.POWEROFF)
    path.write_bytes(tinyguest.kernel(code))
    return path


@pytest.fixture
def booted(monkeypatch):
    """The names of the boots in each call of a worker, which does not boot them."""
    calls = []

    def boot(number, version, load):
        calls.append([each.name for each in load.boots])
        if calls[-1][0].startswith("lost"):
            raise OSError("worker died")
        bad = [Finding(Verdict.PANIC, "no root")]
        return [Result(each, bad if each.name == "bad" else []) for each in load.boots]

    monkeypatch.setattr(hand, "boot", boot)
    return calls


def run(names, kernel, make=Inline, jobs=None, fail_fast=False, interruption=None):
    watcher = Watcher()
    boots = [Boot(name, kernel) for name in names]
    return executor.run(make, boots, jobs, watcher, fail_fast, interruption), watcher.events


# Who tries what.


def test_results_are_in_the_plans_order(booted, kernel):
    results, events = run(["good", "bad", "fine"], kernel)
    assert [result.boot.name for result in results] == ["good", "bad", "fine"]
    assert [result.verdict.value for result in results] == ["pass", "panic", "pass"]
    assert events == [
        "began good",
        "began bad",
        "began fine",
        "pass good",
        "panic bad",
        "pass fine",
    ]


def test_jobs_are_the_most_at_a_time(booted, kernel):
    _, events = run(["one", "two"], kernel, jobs=1)
    assert events == ["began one", "pass one", "began two", "pass two"]


def test_fail_fast_skips_the_rest(booted, kernel):
    results, events = run(["bad", "never"], kernel, jobs=1, fail_fast=True)
    assert [result.verdict.value for result in results] == ["panic", "skipped"]
    assert results[1].sentence == "--fail-fast, and bad did not pass"
    assert events == ["began bad", "panic bad"]


class Asleep(Executor):
    """Nothing ever happens."""

    submit = staticmethod(lambda *arguments: Future())


def test_a_signal_skips_what_has_no_result(kernel):
    reading, writing = os.pipe()
    os.write(writing, b"!")
    signalled = SimpleNamespace(signum=signal.SIGTERM, fileno=lambda: reading)
    (result,), events = run(["one"], kernel, Asleep, interruption=signalled)
    assert (result.verdict, result.sentence) == (Verdict.SKIPPED, "stopped by SIGTERM")
    assert events == ["began one", "skipped one"]


def test_what_is_lost_twice_is_given_up(booted, kernel):
    (lost, good), _ = run(["lost", "good"], kernel)
    assert (lost.verdict, good.verdict) == (Verdict.XENEMU, Verdict.PASS)
    assert lost.sentence == "its worker was lost, twice: OSError: worker died"
    assert sorted(booted) == [["good"], ["lost"], ["lost"]]


def test_a_second_try_says_so(booted, kernel):
    class Loses(Inline):
        calls = 0

        def submit(self, function, /, *arguments):
            self.calls += 1
            if self.calls == 1:
                return super().submit(executors.raises)
            return super().submit(function, *arguments)

    (first, second), _ = run(["one", "two"], kernel, Loses)
    assert first.sentence == "this is its second try, as its worker was lost (OSError: no cluster)"
    assert (first.verdict, second.sentence) == (Verdict.PASS, "")


class Breaks(Executor):
    """A pool, as Python's own: if one worker dies, all futures have the exception."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.futures = []

    def submit(self, function, /, *arguments):
        future = Future()
        if self.made > 1:
            future.set_result(function(*arguments))
            return future
        self.futures.append(future)
        if len(self.futures) == 3:
            self.futures[0].set_running_or_notify_cancel()
            for each in self.futures:
                each.set_exception(BrokenExecutor("a worker died"))
        return future


class Memoizing(Inline):
    """Takes calls with the same arguments for one, as Dask does."""

    def __init__(self):
        self.known = {}

    def submit(self, function, /, *arguments):
        return self.known.setdefault(repr(arguments), super().submit(function, *arguments))


def test_no_two_calls_are_the_same(kernel, monkeypatch):
    tries = []

    def boot(number, version, load):
        tries.append(number)
        if len(tries) == 1:
            raise OSError("worker died")
        return [Result(each) for each in load.boots]

    monkeypatch.setattr(hand, "boot", boot)
    (result,), _ = run(["one"], kernel, Memoizing)
    assert result.verdict is Verdict.PASS


def test_a_broken_pool_is_replaced_and_counts_for_what_had_begun(booted, kernel):
    Breaks.made = 0
    results, _ = run(["one", "two", "three"], kernel, Breaks)
    assert Breaks.made == 2
    assert [result.verdict for result in results] == [Verdict.PASS] * 3
    assert "second try" in results[0].sentence
    assert results[1].sentence == ""


def test_pools_that_only_break_are_given_up(booted, kernel):
    class Broken(Executor):
        def submit(self, function, /, *arguments):
            raise BrokenExecutor

    (result,), _ = run(["one"], kernel, Broken)
    assert result.sentence == "the executor breaks again and again"
    assert booted == []


def test_what_starts_from_a_boot_goes_with_it(booted, kernel):
    origin = Boot("origin", kernel, is_origin=True)
    boots = [origin, Boot("alone", kernel), Boot("child", kernel, origin=origin)]
    results = executor.run(Inline, boots, None, Watcher())
    assert [result.boot.name for result in results] == ["origin", "alone", "child"]
    assert booted == [["origin", "child"], ["alone"]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("executors", "give MODULE:FUNCTION"),
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("executors:no_such", "AttributeError: "),
        ("executors:no_executor", "it returned a int, not a concurrent.futures.Executor"),
        ("executors:raises", "OSError: no cluster"),
    ],
)
def test_what_is_no_executor_is_refused(text, problem, monkeypatch):
    with pytest.raises(UsageError, match=rf"^--executor {text}: {re.escape(problem)}"):
        executor.named(text)()


# Files.


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"share": "."}, "share: the directory is on this machine"),
        ({"disk": "kernel,rw"}, "disk that it writes to: the file is on this machine"),
        ({"net": "socket:wire"}, "net on a socket: that is on this machine"),
    ],
)
def test_what_is_here_only_is_refused(keys, problem, booted, kernel):
    boots = make_boots({"kernel": "kernel", **keys}, kernel.parent)
    with pytest.raises(UsageError, match=f"^kernel: with --executor, there can be no {problem}$"):
        executor.run(Inline, boots, None, Watcher())
    assert booted == []


def test_a_file_is_sent_once_to_each_place_that_lacks_it(kernel, monkeypatch):
    places = [set(), set()]
    turns, sent = iter(range(10_000)), []

    def boot(number, version, load):
        place = next(turns) % 2
        lacks = {entry.digest for entry in load.entries} - places[place]
        if lacks:
            return Lacks(str(place), tuple(sorted(lacks)))
        return [Result(each) for each in load.boots]

    def keep(number, digest, data):
        place = next(turns) % 2
        assert digest not in places[place]
        places[place].add(digest)
        sent.append((place, digest))
        return ""

    monkeypatch.setattr(hand, "boot", boot)
    monkeypatch.setattr(hand, "keep", keep)
    (kernel.parent / "initrd").write_bytes(b"another file")
    boots = [Boot(str(i), kernel, initrd=kernel.parent / "initrd") for i in range(30)]
    results = executor.run(Inline, boots, None, Watcher())
    assert {result.verdict for result in results} == {Verdict.PASS}
    assert len(sent) == len(set(sent)) == 4


def test_a_file_that_cannot_be_kept_is_the_boots_verdict(kernel, monkeypatch):
    monkeypatch.setattr(
        hand, "boot", lambda number, version, load: Lacks("x", (load.entries[0].digest,))
    )
    monkeypatch.setattr(hand, "keep", lambda number, digest, data: "the disk is full")
    (result,), _ = run(["one"], kernel)
    assert (result.verdict, result.sentence) == (Verdict.IMAGE, f"{kernel}: the disk is full")


def test_a_file_that_changes_under_way_is_not_sent(kernel, monkeypatch):
    def boot(number, version, load):
        kernel.write_bytes(b"another")
        return Lacks("x", (load.entries[0].digest,))

    monkeypatch.setattr(hand, "boot", boot)
    (result,), _ = run(["one"], kernel)
    assert result.sentence == f"{kernel}: it has changed since the boots began"


def test_a_directory_arrives_as_it_is(kernel):
    root = kernel.parent / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"tool")
    (root / "bin/tool").chmod(0o751)
    (root / "init").symlink_to("bin/tool")
    os.mkfifo(root / "fifo")
    (root / "bin").chmod(0o555)
    packer = Packer()
    load = packer.pack([Boot("one", kernel, rootfs=root, module=(f"{kernel}=words",))])
    for digest in cargo.lacking(load.entries):
        cargo.keep(digest, packer.data(digest))
    with cargo.unpacked(load) as ((boot,), paths):
        there = boot.rootfs
        assert {str(path.relative_to(there)) for path in there.rglob("*")} == {
            "bin", "bin/tool", "init",
        }  # fmt: skip
        assert (there / "init").readlink() == Path("bin/tool")
        assert stat.S_IMODE((there / "bin/tool").stat().st_mode) == 0o751
        assert stat.S_IMODE((there / "bin").stat().st_mode) == 0o555
        assert boot.kernel.read_bytes() == kernel.read_bytes()
        assert boot.module == (f"{boot.kernel}=words",)
        assert paths == {str(boot.kernel): str(kernel), str(there): str(root)}
    assert not there.exists()
    (root / "bin").chmod(0o755)


def test_for_efi_a_link_is_its_file(kernel):
    root = kernel.parent / "esp"
    root.mkdir()
    (root / "loader").symlink_to(kernel)
    load = Packer().pack([Boot("one", kernel, efi_root=root)])
    assert [stat.S_ISREG(entry.mode) for entry in load.entries] == [True, False, True]


def test_a_damaged_file_is_not_kept(kernel):
    load = Packer().pack([Boot("one", kernel)])
    (digest,) = cargo.lacking(load.entries)
    assert hand.keep(0, digest, b"else") == "a file was damaged on its way"
    assert cargo.lacking(load.entries) == [digest]


def test_a_file_that_others_can_write_is_not_trusted(kernel):
    load = Packer().pack([Boot("one", kernel)])
    (digest,) = cargo.lacking(load.entries)
    assert hand.keep(0, digest, kernel.read_bytes()) == ""
    assert cargo.lacking(load.entries) == []
    (cachedir.directory("cargo") / digest).chmod(0o666)
    assert cargo.lacking(load.entries) == [digest]
    assert hand.keep(0, digest, kernel.read_bytes()) == ""
    assert cargo.lacking(load.entries) == []


def test_boots_may_need_more_files_than_are_kept(kernel, monkeypatch):
    """Otherwise each file that comes would have another one go, for ever."""
    monkeypatch.setattr(cargo, "KEPT", 2)
    packer = Packer()
    for name in "abcd":
        kernel.with_name(name).write_text(name)
    needed = packer._entries(kernel.parent, False)
    digests = cargo.lacking(needed)
    for digest in digests:
        cargo.keep(digest, packer.data(digest))
    assert cargo.lacking(needed) == []
    for digest in digests:
        os.utime(cargo.folder() / digest, (0, 0))
    cargo.keep(digests[0], packer.data(digests[0]))
    assert len(cargo.lacking(needed)) == len(digests) - 2


def test_a_place_has_one_name(kernel):
    assert cargo.place() == cargo.place() != ""


# A worker.


def test_another_xenemu_boots_nothing(kernel):
    (result,) = hand.boot(0, "0.0", Packer().pack([Boot("one", kernel)]))
    assert result.verdict is Verdict.XENEMU
    assert result.sentence.endswith("and 0.0 is wanted")


def test_the_command_boots_and_tells_of_this_machines_paths(kernel, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.chdir(kernel.parent)
    (kernel.parent / "broken").write_bytes(b"#!/bin/sh\n")
    crash = kernel.parent / "crash"
    crash.write_bytes(tinyguest.kernel(tinyguest.shutdown(tinyguest.CRASH)))
    options = ["--executor", "executors:threads", "--memory", "64M", "--log-dir", "logs"]
    assert cli.main(["smoke", "kernel", "broken", "crash", *options]) == 7
    out, err = capfd.readouterr()
    assert "pass     kernel  pv64" in out
    assert "1 of 3 boots passed" in out
    assert f"{kernel.parent / 'broken'}: " in out
    assert str(cachedir.directory("cargo")) not in out + err
    assert (kernel.parent / "logs/kernel.log").read_text().endswith("hello\n")
    recording = recording_file.read(kernel.parent / "logs/crash.rec")
    assert recording.header.start.kernel.path == str(crash)


def test_twenty_boots_on_dask_of_which_a_worker_is_killed(kernel):
    pytest.importorskip("distributed")
    tables = [f'[[boot]]\nname = "b{i}"\nkernel = "kernel"\nmemory = "64M"\n' for i in range(20)]
    (kernel.parent / "plan.toml").write_text("\n".join(tables))
    command = [sys.executable, "-m", "xenemu", "smoke", "plan.toml"]
    done = subprocess.run(
        [*command, "--executor", "executors:dask_of_two", "--jobs", "4"],
        cwd=kernel.parent,
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("20 of 20 boots passed\n")
    assert "this is its second try, as its worker was lost (KilledWorker: " in done.stderr
    (kept,) = [path for path in cachedir.directory("cargo").iterdir() if path.name != cargo.PLACE]
    assert kept.read_bytes() == kernel.read_bytes()


def test_boots_end_with_their_worker(kernel):
    kernel.write_bytes(tinyguest.kernel(tinyguest.say(b"hello\n") + tinyguest.SPIN))
    load = Packer().pack([Boot("spins", kernel, memory=64 << 20)])
    (digest,) = cargo.lacking(load.entries)
    cargo.keep(digest, kernel.read_bytes())
    worker = hand.Hand()
    worker._connection.send(load)
    worker._connection.close()
    assert worker._process.wait(60) == 0
    assert [path.name for path in cargo.folder().iterdir()] == [digest]
