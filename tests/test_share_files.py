"""What is shipped beside the code: manual pages, and scripts by which shells complete words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import typer

from ship import share
from xenemu.cli import COMMANDS, COMPLETE, parser


@pytest.fixture(scope="module")
def files():
    return share.files()


@pytest.fixture(scope="module")
def commands():
    return typer.main.get_command(parser()).commands


def test_there_is_a_page_for_each_command(files):
    pages = {name for name in files if name.startswith("man/")}
    assert pages == {
        "man/man1/xenemu.1",
        *(f"man/man1/xenemu-{name}.1" for name in COMMANDS),
    }
    assert all(f"\\fBxenemu\\-{name}\\fR(1)" in files["man/man1/xenemu.1"] for name in COMMANDS)


def test_a_page_has_every_option_and_its_help(files, commands):
    for name, command in commands.items():
        text = files[f"man/man1/xenemu-{name}.1"].replace("\\-", "-")
        for parameter in command.params:
            if not parameter.hidden:
                for option in (*parameter.opts, *parameter.secondary_opts):
                    assert option in text or parameter.param_type_name == "argument", option
        assert "\b" not in text


def test_a_line_is_no_request_of_roffs():
    assert share.escaped(".TH-1") == "\\&.TH\\-1"
    assert share.escaped("'a\\b") == "\\&'a\\eb"


@pytest.mark.skipif(not shutil.which("groff"), reason="there is no groff")
def test_roff_has_nothing_to_complain_of(files, tmp_path):
    for name in ("xenemu", "xenemu-run"):
        page = tmp_path / name
        page.write_text(files[f"man/man1/{name}.1"])
        command = ["groff", "-man", "-ww", "-Tutf8", "-z", page]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        assert told.stderr == ""


def completed(shell, line, **more):
    """What a shell's function is given for a line."""
    environment = {COMPLETE: f"complete_{shell}", "COMP_WORDS": line, **more}
    told = subprocess.run(
        [sys.executable, "-m", "xenemu"],
        env=os.environ | environment | {"_TYPER_COMPLETE_ARGS": line},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stderr == ""
    return told.stdout


def test_bash_completes(files, tmp_path):
    (tmp_path / "xenemu").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m xenemu "$@"\n')
    (tmp_path / "xenemu").chmod(0o755)
    (tmp_path / "script").write_text(
        files["bash-completion/completions/xenemu"]
        + "COMP_WORDS=(xenemu smoke --ex) COMP_CWORD=2; _xenemu_completion xenemu\n"
        + 'echo "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    told = subprocess.run(
        ["bash", str(tmp_path / "script")],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["--expect", "--exit", "--executor"]


def test_a_command_completes():
    assert completed("bash", "xenemu hyper", COMP_CWORD="1").split() == ["hypercalls"]


def test_values_of_a_known_set_complete():
    for line, wanted in (
        ("run --mode pv", "pv pvh"),
        ("run --trace mmu,h", "mmu,hypercalls"),
        ("run --subarch x", "xen"),
        ("run --on-suspend s", "save="),
        ("smoke k --entry pv", "pv pvh"),
        ("doctor im", "images"),
        ("doctor share n", "net"),
        ("control sock mem", "memory"),
        ("control sock memory m", ""),
    ):
        words = f"xenemu {line}"
        assert completed("bash", words, COMP_CWORD=str(line.count(" ") + 1)).split() == (
            wanted.split()
        ), line


def test_the_others_complete():
    assert '"--json"' in completed("zsh", "xenemu hypercalls --j")
    fish = completed("fish", "xenemu hypercalls --j", _TYPER_COMPLETE_FISH_ACTION="get-args")
    assert fish.startswith("--json\t")


def test_the_scripts_are_the_shells_own(files):
    for shell, path in share.COMPLETIONS.items():
        assert f"complete_{shell}" in files[path]
