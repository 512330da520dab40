"""bench/qemu.py: where the newest QEMU comes from."""

from __future__ import annotations

import subprocess

import pytest

from bench import qemu
from bench.measure import BenchError


def test_the_newest_comes_from_the_backports_of_this_release(tmp_path, monkeypatch):
    monkeypatch.setattr(qemu, "_codename", lambda: "bookworm")
    monkeypatch.setattr(qemu, "_archive", lambda: "file:archive")
    apt = qemu._Backports(tmp_path / "apt")
    lines = [line.split()[-3:] for line in apt.sources.read_text().splitlines()]
    assert lines == [
        ["file:archive", "bookworm", "main"],
        ["file:archive", "bookworm-backports", "main"],
    ]
    options = apt.options()
    assert options["Dir::Etc::sourcelist"] == apt.sources
    assert str(options["Dir::Cache"]).startswith(str(tmp_path))  # nothing of the machine's


def test_what_is_unpacked_runs_with_its_own_libraries_and_firmware(tmp_path):
    program = qemu._program(tmp_path)
    assert program[0] == "env" and f"{tmp_path}/usr/bin/{qemu.PROGRAM}" in program
    assert f"{tmp_path}/usr/share/qemu" in program
    assert program[1].startswith(f"LD_LIBRARY_PATH={tmp_path}/usr/lib/")


def test_a_fetch_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, package):
        raise BenchError("no network")

    monkeypatch.setattr(qemu, "_archive", lambda: "file:archive")
    monkeypatch.setattr(qemu, "_codename", lambda: "bookworm")
    monkeypatch.setattr(qemu._Backports, "download_all", fail)
    with pytest.raises(BenchError, match="no network"):
        qemu._fetch(tmp_path / "cache" / "qemu-newest")
    assert not list((tmp_path / "cache").iterdir())


def test_backports_without_one_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(qemu, "_archive", lambda: "file:archive")
    monkeypatch.setattr(qemu, "_codename", lambda: "bookworm")
    monkeypatch.setattr(qemu._Backports, "download_all", lambda self, package: [])
    with pytest.raises(BenchError, match="none that is newer"):
        qemu._fetch(tmp_path / "qemu-newest")
    assert not (tmp_path / "qemu-newest").exists()


def test_the_archive_is_that_of_the_release_here(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, "file:first\nfile:second\n")
    monkeypatch.setattr(qemu, "_codename", lambda: "bookworm")
    monkeypatch.setattr(qemu.subprocess, "run", lambda words, **_: answer)
    assert qemu._archive() == "file:first"
