"""`xenemu doctor`: what it says, in which order, and its exit codes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from xenemu import cli, confine, needs
from xenemu.cli import doctor
from xenemu.cpu import shim
from xenemu.needs import Extra, Need


@pytest.fixture
def told(capsys):
    """A function that runs the command; its exit code, and its lines by topic and thing."""

    def run(*topics):
        code = cli.main(["doctor", *topics])
        lines = capsys.readouterr().out.splitlines()
        return code, {line[18:].partition(",")[0].partition(":")[0]: line for line in lines}

    return run


def test_each_line_names_a_topic_and_twice_it_is_the_same(told):
    code, lines = told()
    assert (code, lines) == told()
    assert code == 0
    assert {line[:7].rstrip() for line in lines.values()} <= {"ok", "lacks"}
    assert [line[7:18].strip() for line in lines.values()] == [
        check.topic for check in doctor.all_checks()
    ]
    assert lines["the CPU's engine"] == "ok     run        the CPU's engine"


def test_what_lacks_is_told_with_its_command(told, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(needs, "SYSTEM_PATH", "")
    code, lines = told("share", "net", "build")
    assert code == 7
    mend = "not in PATH; apt-get install"
    assert lines["diod"] == f"lacks  share      diod, for --share: {mend} diod"
    assert lines["passt"] == f"lacks  net        passt, for --net user: {mend} passt"
    assert lines["gcc"].endswith(f"{mend} gcc")
    assert told()[0] == 0  # a run needs none of them


def test_only_a_topic_that_is_asked_for_decides(told, monkeypatch):
    monkeypatch.setattr(confine, "LIBRARY", "libnone.so.0")
    monkeypatch.setattr(confine, "landlock_version", lambda: -1)
    code, lines = told()
    assert code == 0
    assert lines["libseccomp.so.2"].endswith("; apt-get install libseccomp2")
    assert lines["Landlock"].endswith("; boot this host with landlock in lsm=")
    assert told("confine")[0] == 7


def test_no_engine_is_no_run(told, monkeypatch):
    monkeypatch.setattr(shim, "_loaded", [])
    monkeypatch.setattr(shim, "UNICORN_VERSION", "0.0")
    monkeypatch.delitem(__import__("sys").modules, "unicorn")
    code, lines = told()
    assert code == 7
    assert "xenemu needs unicorn 0.0" in lines["the CPU's engine"]


def test_a_busybox_that_is_not_static_is_told(told, monkeypatch, tmp_path):
    (tmp_path / "busybox").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "busybox").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, lines = told("initramfs")
    assert code == 7
    assert "not an ELF; give a static program; apt-get install busybox-static" in lines["busybox"]


def test_images_count_if_they_are_there(told, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = tmp_path / "xenemu" / "images"
    images.mkdir(parents=True)
    (images / "broken.json").write_text("{")
    (images / "one.json").write_text(json.dumps({"version": "1", "path": "one/1/vmlinuz"}))
    assert told("images")[1]["guest images"].endswith(f": none in {images}; make guests")
    (images / "one/1").mkdir(parents=True)
    (images / "one/1/vmlinuz").write_bytes(b"")
    assert told("images")[1]["guest images"].startswith("ok ")


@pytest.mark.parametrize("module", ["no_such_module", "no_such.module"])
def test_an_extra_that_is_not_installed_is_told(module):
    check = doctor._extra("qcow2", replace(needs.QCOW2, module=module), "for disks")
    assert check.line(check.trouble()) == (
        f"lacks  qcow2      {module}, for disks: not installed; pip install 'xenemu[qcow2]'"
    )


def test_an_unknown_topic_is_refused(capsys):
    assert cli.main(["doctor", "shares"]) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("xenemu: doctor shares: give topics of run, confine, initramfs, share")


def test_commands_install_what_is_named():
    assert Need("a", "b").install == "apt-get install b"
    assert Extra("a", "b[c]").install == "pip install 'b[c]'"


def test_a_topic_with_a_slip_is_guessed(capsys):
    for topic, end in (("runn", "bench; did you mean run?\n"), ("xyz", "bench\n")):
        assert cli.main(["doctor", topic]) == 7
        assert capsys.readouterr().err.endswith(end)
