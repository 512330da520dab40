"""`xenemu run --coverage`: the file, its form, and what it does not change."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import elfwriter
import tinyguest
from xenemu.outcome import EXIT_IMAGE

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "kernel"
    code = tinyguest.kernel(
        tinyguest.shutdown(tinyguest.POWEROFF),
        {"start": elfwriter.ENTRY, "unused": elfwriter.ENTRY + 0x100},
    )
    path.write_bytes(code)
    return str(path)


def test_a_name_in_info_gets_the_form_of_lcov(
    kernel: str, tmp_path: Path, xenemu_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a confined run may not ask where it is
    kernel, file = Path(kernel).name, tmp_path / "ran.info"
    assert xenemu_run(kernel, "--coverage", file).returncode == 0
    lines = file.read_text().splitlines()
    assert lines[:2] == ["TN:", f"SF:{kernel}"]
    assert lines[-1] == "end_of_record"


def test_any_other_gets_the_form_of_drcov(kernel: str, tmp_path: Path, xenemu_run: Run) -> None:
    file = tmp_path / "ran.cov"
    assert xenemu_run(kernel, "--coverage", file).returncode == 0
    assert file.read_bytes().startswith(b"DRCOV VERSION: 2\n")


def test_by_vcpu_each_has_a_file_in_drcovs_form(
    kernel: str, tmp_path: Path, xenemu_run: Run
) -> None:
    names = ("ran.cov", "ran.vcpu0.cov", "ran.vcpu1.cov")
    options = ("--coverage", tmp_path / names[0], "--coverage-by-vcpu", "--vcpus", "2")
    assert xenemu_run(kernel, *options).returncode == 0
    both, first, second = ((tmp_path / name).read_bytes() for name in names)
    assert both == first
    assert b"\nBB Table: 1 bbs\n" in first
    assert second.endswith(b"\nBB Table: 0 bbs\n")


def test_by_vcpu_each_is_a_test_in_lcovs_form(kernel: str, tmp_path: Path, xenemu_run: Run) -> None:
    options = ("--coverage", tmp_path / "ran.info", "--coverage-by-vcpu", "--vcpus", "2")
    assert xenemu_run(kernel, *options).returncode == 0
    assert [path.name for path in tmp_path.iterdir() if "ran" in path.name] == ["ran.info"]
    assert (tmp_path / "ran.info").read_text().startswith("TN:vcpu0\n")


def test_no_vcpus_file_takes_the_place_of_another(
    kernel: str, tmp_path: Path, xenemu_run: Run
) -> None:
    (tmp_path / "ran.vcpu0").write_text("mine")
    result = xenemu_run(kernel, "--coverage", tmp_path / "ran", "--coverage-by-vcpu")
    assert result.returncode == EXIT_IMAGE
    assert b"the file exists" in result.stderr
    assert (tmp_path / "ran.vcpu0").read_text() == "mine"
    assert not (tmp_path / "ran").exists()


def test_by_vcpu_wants_a_file(kernel: str, xenemu_run: Run) -> None:
    result = xenemu_run(kernel, "--coverage-by-vcpu")
    assert result.returncode == EXIT_IMAGE
    assert result.stderr == b"xenemu: --coverage-by-vcpu: say where to, with --coverage FILE\n"


def test_the_run_is_the_same_with_it(kernel: str, tmp_path: Path, xenemu_run: Run) -> None:
    without = xenemu_run(kernel).stderr.rpartition(b", ")[0]
    assert xenemu_run(kernel, "--coverage", tmp_path / "ran").stderr.rpartition(b", ")[0] == without


def test_a_file_that_has_something_in_it_stays(
    kernel: str, tmp_path: Path, xenemu_run: Run
) -> None:
    file = tmp_path / "ran"
    file.write_text("mine")
    result = xenemu_run(kernel, "--coverage", file)
    assert result.returncode == EXIT_IMAGE
    assert b"the file exists" in result.stderr
    assert file.read_text() == "mine"
