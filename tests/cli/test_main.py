"""The command as a whole: help, usage errors, and what happens to a bug."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys

import pytest

from xenemu import __version__, cli
from xenemu.errors import EngineError
from xenemu.outcome import EXIT_CODES, EXIT_DIVERGED, EXIT_IMAGE


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"xenemu {__version__}\n"


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in ("run", "smoke", "inspect", "hypercalls"))


def codes_in_help(capsys, command):
    assert cli.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    return {line.split()[0] for line in out.splitlines() if line.startswith("    ")}


def test_help_of_run_lists_every_exit_code(capsys):
    """But the one of a run that is to be another one again; replay's help has that."""
    ends = {*EXIT_CODES.values(), 7, 70} - {EXIT_DIVERGED}
    assert {str(code) for code in ends} <= codes_in_help(capsys, "run")
    assert str(EXIT_DIVERGED) in codes_in_help(capsys, "replay")


def test_help_of_run_has_its_options_in_groups(capsys):
    assert cli.main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    words = ("\nDevices:\n", "  --disk", "\nThe run:\n", "  --expect")
    places = [out.index(each) for each in words]
    assert places == sorted(places)
    assert "\nOptions:\n" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run", "missing argument 'KERNEL'; see xenemu run --help"),
        ("run -x k", "no such option: -x; see xenemu run --help"),
        (
            "run --intrd i k",
            "no such option: --intrd; did you mean --init or --initrd or --input?; see ",
        ),
        (
            "run --mode hvm k",
            "--mode: 'hvm' is not one of 'auto', 'pv', 'pvh', 'efi', ",
        ),
        ("run k --mode", "option '--mode' requires an argument; see xenemu run --help"),
        ("run k k", "got unexpected extra argument(s) (k); see xenemu run --help"),
        ("smoke k --jobs abc", "--jobs abc: give a whole number, 1 or more"),
        ("smoke k --jobs 0", "--jobs 0: give a whole number, 1 or more"),
        ("nonsense", "no such command 'nonsense'; see xenemu --help"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line_and_7(arguments, words, capsys):
    assert cli.main(arguments.split()) == 7
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"xenemu: {words}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("run", "KERNEL"), ("resume", "FILE"), ("inspect", "KERNEL"), ("compare", "KERNEL [KERNEL]")],
)
def test_help_shows_arguments_without_braces(command, arguments, capsys):
    assert cli.main([command, "--help"]) == 0
    usage = capsys.readouterr().out.splitlines()[0]
    assert usage == f"Usage: xenemu {command} [OPTIONS] {arguments}"


def test_no_usage_shows_a_parsers_own_names(capsys):
    for command in cli.COMMANDS:
        assert cli.main([command, "--help"]) == 0
        usage = capsys.readouterr().out.splitlines()[0]
        assert re.fullmatch(r"Usage: [a-z ]+ \[OPTIONS\][ A-Z.|\[\]]*(\.toml\|KERNEL)?", usage), (
            usage
        )


def test_without_a_command_there_is_the_help(capsys):
    assert cli.main([]) == 7
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: xenemu ") and "\nCommands:\n" in err
    assert "  hypercalls " in err.splitlines()[-2], "nothing follows the last command"


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A run that ends with an exception of xenemu's own."""

    def arrange(error):
        def load(path):
            raise error

        monkeypatch.setattr("xenemu.image.load", load)

    return arrange


def test_a_bug_is_one_line_and_70(broken, capsys):
    broken(KeyError("lost"))
    assert cli.main(["run", "kernel"]) == 70
    err = capsys.readouterr().err
    assert err.startswith(f"xenemu: bug in xenemu {__version__}: KeyError: 'lost' (test_main.py:")
    assert err.endswith("; please report it; -v shows the traceback\n")
    assert err.count("\n") == 1


def test_a_bug_shows_its_traceback_with_v(broken, capsys):
    broken(KeyError("lost"))
    assert cli.main(["run", "-v", "kernel"]) == 70
    assert capsys.readouterr().err.startswith("Traceback")


def test_an_engine_that_is_missing_is_70_but_no_bug(broken, capsys):
    broken(EngineError("the C shim is not built"))
    assert cli.main(["run", "kernel"]) == 70
    assert capsys.readouterr().err == "xenemu: the C shim is not built\n"


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_a_host_that_has_no_more_is_7_and_no_bug(broken, capsys, command):
    for error in (errno.ENOSPC, errno.EMFILE, errno.EAGAIN):
        broken(OSError(error, os.strerror(error), "file"))
        assert cli.main([command, "kernel"]) == 7
        assert capsys.readouterr().err == f"xenemu: file: {os.strerror(error)}\n"


def test_an_interrupt_before_the_guest_runs_is_130(broken):
    broken(KeyboardInterrupt())
    assert cli.main(["run", "kernel"]) == 130


def test_a_standard_error_that_takes_nothing_does_not_hide_the_code():
    command = [sys.executable, "-m", "xenemu", "run", "/nonexistent"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stderr=full, check=False).returncode == EXIT_IMAGE
