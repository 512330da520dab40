"""`xenemu compare`: what is asked for, and what is shown and written."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import elfwriter
import tinyguest
from xenemu.cli import compare, main
from xenemu.cli.signals import Interrupted
from xenemu.machine import Limits, Machine
from xenemu.outcome import EXIT_IMAGE, Outcome

SYMBOLS = {"start": elfwriter.ENTRY, "leave": elfwriter.ENTRY + 2}


@pytest.fixture(autouse=True)
def _unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command is called in this process, the process stays as it is."""
    module = importlib.import_module("xenemu.cli.compare")
    monkeypatch.setattr(module, "_confine_once", lambda: None)


@pytest.fixture
def kernels(tmp_path: Path) -> list[str]:
    """Two kernels: the second jumps to `leave`, which is in another place."""
    paths = [tmp_path / "old", tmp_path / "new"]
    leave = tinyguest.shutdown(tinyguest.POWEROFF)
    paths[0].write_bytes(tinyguest.kernel(b"\x90\x90" + leave, SYMBOLS))
    moved = SYMBOLS | {"leave": elfwriter.ENTRY + 4, "detour": elfwriter.ENTRY + 2}
    paths[1].write_bytes(tinyguest.kernel(b"\x90\x90\xeb\x00" + leave, moved))
    return [str(path) for path in paths]


def test_two_kernels_by_one_entry(
    kernels: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, document = tmp_path / "page.html", tmp_path / "boots.json"
    assert main(["compare", *kernels, "--html", str(page), "--json", str(document)]) == 0
    shown = capsys.readouterr().out
    assert "Run by new only:\n  leave\n" in shown
    assert "sched_op(shutdown)" in shown
    assert "the guest powered off" in page.read_text()
    found = json.loads(document.read_text())
    assert [boot["name"] for boot in found["boots"]] == ["old", "new"]
    assert found["asked"]["Hypercalls"] == {"sched_op(shutdown)": [1, 1]}


def test_a_confined_process_does_all_of_it(kernels: list[str], tmp_path: Path) -> None:
    names = [Path(kernel).name for kernel in kernels]
    command = [sys.executable, "-m", "xenemu", "compare", *names, "--html", "p", "--json", "j"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Run by new only" in found.stdout
    assert (tmp_path / "p").stat().st_size
    assert json.loads((tmp_path / "j").read_text())["boots"]


def test_a_second_kernel_that_cannot_boot_is_told_of_before_the_first_boots(
    kernels: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then files can still be read, as the code of the entries that it may have."""
    Path(kernels[1]).write_bytes(elfwriter.elf([elfwriter.Phdr(bytes(32))]))
    monkeypatch.setattr(Machine, "run", None)
    assert main(["compare", *kernels]) == EXIT_IMAGE
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "new: cannot boot as auto: pvh: " in told.err


def test_two_runs_say_the_same(kernels: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *kernels])
    once = capsys.readouterr().out
    main(["compare", *kernels])
    assert capsys.readouterr().out == once


def test_what_cannot_be_compared_is_one_line_and_writes_nothing(
    kernels: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = kernels
    page = tmp_path / "page.html"
    for arguments, words in {
        (old,): "it has only pv",
        (old, "--entry", "pv"): "give at least two entries, or two kernels",
        (old, "--entry", "pv,pvh"): "cannot boot as pvh",
        (old, "--entry", "pv,quick"): "'quick' is none of pv, pvh",
        (old, "--entry", "pv,pv"): "pv twice",
        (old, old): "twice the same kernel",
        (old, new, old): "give one kernel, or two",
        (old, new, "--entry", "pv,pvh"): "two kernels are compared by one entry",
        (old, "nosuch"): "nosuch: No such file or directory",
        (old, new, "--timeout", "soon"): "--timeout soon: give seconds",
    }.items():
        assert main(["compare", *arguments, "--html", str(page)]) == EXIT_IMAGE, arguments
        told = capsys.readouterr()
        assert words in told.err
        assert (told.out, told.err.count("\n")) == ("", 1)
        assert not page.exists()


class Signalled:
    """A machine that is sent a signal while the engine runs, and looks after it."""

    def run(self, terminal: compare.Nobody, limits: Limits) -> Outcome:
        assert (terminal.leaves(), terminal.check()) == (False, None)
        os.kill(os.getpid(), signal.SIGINT)  # nothing may be raised here
        assert terminal.leaves()
        stopped = terminal.check()
        assert stopped is not None
        return stopped


def test_a_signal_stops_the_boot_and_the_command(
    kernels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "run", Signalled.run)
    page = tmp_path / "page.html"
    with pytest.raises(Interrupted) as interrupted:
        main(["compare", *kernels, "--html", str(page)])
    assert interrupted.value.signum == signal.SIGINT
    assert not page.exists()
