"""The command as a process: streams that take nothing, and signals while it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import elfwriter
from tinyguest import POWEROFF, UNDEFINED, kernel, say, shutdown

FULL = "No space left on device"


@pytest.fixture
def guest(tmp_path):
    """A function that writes a kernel of a few instructions."""

    def guest(code):
        path = tmp_path / "kernel"
        path.write_bytes(kernel(code))
        return path

    return guest


def xenemu(*arguments, **streams):
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **streams}
    command = [sys.executable, "-m", "xenemu", *map(str, arguments)]
    return subprocess.run(command, **{"stderr": subprocess.PIPE, **streams}, check=False)


# Standard streams.


def test_a_full_standard_output_is_one_line_and_7(guest):
    path = guest(say(b"one\n") + shutdown(POWEROFF))
    commands = (
        *(("--help",), ("inspect", path)),
        *(("smoke", path, "--memory", "64M"), ("run", path, "--memory", "64M")),
    )
    with open("/dev/full", "w") as full:
        for command in commands:
            result = xenemu(*command, stdout=full)
            last = result.stderr.decode().splitlines()[-1]
            assert (result.returncode, last) == (7, f"xenemu: standard output: {FULL}"), command


def test_a_full_standard_error_changes_nothing(guest):
    path = guest(say(b"one\n") + UNDEFINED)
    commands = {
        ("run", path, "--memory", "64M", "--explain", "--trace", "hypercalls"): 5,
        ("run", "--nonsense"): 7,
        ("smoke", path, "--memory", "64M"): 5,
    }
    with open("/dev/full", "w") as full:
        for command, code in commands.items():
            assert xenemu(*command, stderr=full).returncode == code, command


def test_a_reader_that_left_is_141():
    reading, writing = os.pipe()
    os.close(reading)
    for command in (("hypercalls",), ("--help",)):
        result = xenemu(*command, stdout=writing)
        assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")
    os.close(writing)


def test_a_name_that_is_no_text_is_shown(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff"
    with open(path, "wb") as file:
        file.write(elfwriter.kernel())
    for command in (("inspect",), ("smoke", "--list")):
        result = xenemu(*command, os.fsdecode(path))
        assert (result.returncode, result.stderr) == (0, b"")
        assert b"\\udcff" in result.stdout


# Signals while it starts.


SITECUSTOMIZE = """
import os, sys, signal

class Finder:
    def find_spec(name, *_):
        if name == os.environ["MODULE"]:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))

sys.meta_path.insert(0, Finder)
"""


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A function that runs a command, and interrupts it as it imports a module."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "site"), *sys.path)))

    def interrupted(module, signum, *command):
        monkeypatch.setenv("MODULE", module)
        monkeypatch.setenv("SIGNAL", str(int(signum)))
        return xenemu(*command)

    return interrupted


def test_an_interrupt_during_imports_is_130_and_no_traceback(interrupted):
    for module in ("xenemu.cli", "typer", "xenemu.report"):
        result = interrupted(module, signal.SIGINT, "run", "/nonexistent")
        assert (result.returncode, result.stdout, result.stderr) == (130, b"", b""), module


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_guest_runs_leaves_nothing(interrupted, guest, tmp_path, signum):
    path = guest(shutdown(POWEROFF))
    options = ("--log", tmp_path / "log", "--gdb", f"unix:{tmp_path / 'gdb'}")
    result = interrupted("xenemu.gdb.server", signum, "run", path, *options)
    assert (result.returncode, result.stdout, result.stderr) == (128 + signum, b"", b"")
    assert sorted(os.listdir(tmp_path)) == ["kernel", "site"]


def test_a_signal_that_is_ignored_stays_so(interrupted, guest):
    path = guest(say(b"one\n") + shutdown(POWEROFF))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = interrupted("xenemu.report", signal.SIGINT, "run", path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.returncode, result.stdout) == (0, b"one\n")


def test_what_atexit_has_is_done_although_the_process_ends_at_once():
    code = (
        "import atexit, sys; atexit.register(print, 'done', flush=True)\n"
        "class Freed:\n"
        "    def __del__(self): print('freed')\n"
        "freed = Freed()\n"
        "from xenemu.__main__ import main\n"
        "sys.argv[1:] = ['inspect', '/nonexistent']; main(); print('went on')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (7, b"done\n")
