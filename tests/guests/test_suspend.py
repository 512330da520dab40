"""--on-suspend and --restore, with the guest of guests/suspend as a person would run it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from guests.build import ENVIRONMENTS, build, guests

SUSPEND = guests()["suspend"]
BEGIN = "--- suspend ({}) ---\n"
RETURNED = "the hypercall returned {}\n"
SUCCESS = "Test result: SUCCESS\n"


@pytest.fixture
def run(tmp_path, xenemu_run):
    """A function that runs the guest in an environment; exit code, console, standard error."""

    def run(environment, *options):
        kernel = tmp_path / environment
        if not kernel.exists():
            build(SUSPEND, ENVIRONMENTS[environment], kernel)
        mode = ENVIRONMENTS[environment].mode
        result = xenemu_run(kernel, "--mode", mode, "--memory", "16M", *options)
        return result.returncode, result.stdout.decode(), result.stderr.decode()

    return run


def test_without_the_option_the_run_ends(run):
    code, console, stderr = run("pv64")
    assert (code, console) == (0, BEGIN.format("pv64"))
    assert "suspend, exit 0: the guest suspended itself" in stderr


def test_a_suspend_can_be_called_off(run):
    for environment in ("pv32", "pvh64"):
        code, console, _ = run(environment, "--on-suspend", "cancel", "--audit", "1")
        assert (code, console) == (0, BEGIN.format(environment) + 2 * RETURNED.format(1) + SUCCESS)


def test_a_guest_is_saved_and_restored(run, tmp_path):
    for environment in ("pv32", "pvh64"):
        file = tmp_path / f"{environment}.saved"
        code, console, stderr = run(environment, "--on-suspend", f"save={file}", "--name", "mine")
        assert (code, console) == (0, BEGIN.format(environment)), stderr
        code, console, stderr = run(
            environment,
            *("--restore", file, "--suspended-for", "1000s", "--on-suspend", "cancel"),
            *("--audit", "1", "-v"),
        )
        assert code == 0, stderr
        assert console == RETURNED.format(0) + RETURNED.format(1) + SUCCESS
        assert "virtual time 1000.0" in stderr and "restoring" in stderr
        again = run(environment, "--restore", file, "--suspended-for", "1000s")
        assert again[:2] == (0, RETURNED.format(0))
        wrong, _, stderr = run("pv64", "--restore", file)
        assert wrong == 7 and stderr.count("\n") == 1
        assert "domain, and" in stderr and "boots as pv64" in stderr


def test_what_is_no_saved_domain_starts_nothing(run, tmp_path):
    file = tmp_path / "file"
    for data in (b"", b"junk" * 100, b"Xen saved domain, xl format\n \0 \r" + bytes(16)):
        file.write_bytes(data)
        code, console, stderr = run("pv64", "--restore", file)
        assert (code, console, stderr.count("\n")) == (7, "", 1), stderr
        assert str(file) in stderr
    assert run("pv64", "--restore", tmp_path / "none")[0] == 7


def test_options_that_make_no_sense_are_refused(run, tmp_path):
    for options, why in (
        (("--on-suspend", "sleep"), "is not end, resume, cancel, preserve or save=FILE"),
        (("--on-suspend", "save="), "is not end, resume, cancel, preserve or save=FILE"),
        (("--suspended-for", "soon"), "--suspended-for"),
        (("--on-suspend", "preserve", "--gdb", ":0"), "nobody would hear gdb"),
        (("--on-suspend", f"save={tmp_path / 's'}", "--record", tmp_path / "r"), "--record"),
    ):
        code, console, stderr = run("pv64", *options)
        assert (code, console, stderr.count("\n")) == (7, "", 1), stderr
        assert why in stderr
    full = tmp_path / "full"
    full.write_bytes(b"mine")
    assert run("pv64", "--on-suspend", f"save={full}")[0] == 7
    assert full.read_bytes() == b"mine"


def test_a_file_that_was_not_needed_is_told(run, tmp_path):
    kernel = build(guests()["hello"], ENVIRONMENTS["pv64"], tmp_path / "pv64")
    file = tmp_path / "saved"
    code, _, stderr = run("pv64", "--on-suspend", f"save={file}")
    assert kernel.exists() and code == 3
    assert "not written: the guest was not saved" in stderr
    assert file.read_bytes() == b""


def test_a_recording_repeats_a_suspend(run, tmp_path):
    file = tmp_path / "recording"
    first = run("pvh64", "--on-suspend", "resume", "--record", file)
    assert first[1].endswith(2 * RETURNED.format(0) + SUCCESS)
    replay = [sys.executable, "-m", "xenemu", "replay", file]
    again = subprocess.run(replay, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == first[:2], again.stderr
    virtual = [
        stderr.partition("virtual time ")[2].split()[:4] for stderr in (first[2], again.stderr)
    ]
    assert virtual[0] == virtual[1]


def test_a_snapshot_goes_on_to_a_suspend(run, tmp_path):
    file = tmp_path / "snapshot"
    run("pv32", "--snapshot", file, "--snapshot-at", "suspend")
    resume = [sys.executable, "-m", "xenemu", "resume", file, "--on-suspend", "resume"]
    result = subprocess.run(resume, capture_output=True, text=True, check=False)
    assert result.stdout == 2 * RETURNED.format(0) + SUCCESS, result.stderr
