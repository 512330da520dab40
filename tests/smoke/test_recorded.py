"""The recording that a boot leaves which did not pass: it repeats the boot elsewhere."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from tinyguest import CRASH, POWEROFF, kernel, say, shutdown, wait_until
from xenemu.recording.events import Arrived, Changed
from xenemu.recording.file import read
from xenemu.smoke import runner
from xenemu.smoke.plan import load_plan

# rdrand %rcx; and $0xfff, %ecx; inc %ecx; dec %ecx; jnz
DRAWN = bytes.fromhex("480fc7f1 81e1ff0f0000 ffc1 ffc9 75fc")
CODE = say(b"one\n") + wait_until(20_000_000) + DRAWN + say(b"two\n")
BASE = '[[boot]]\nname = "base"\nkernel = "guest"\nmemory = "64M"\n'


class Nobody:
    def began(self, boot): ...

    def progress(self, boot, progress): ...

    def finished(self, result): ...


@pytest.fixture
def run(tmp_path):
    """A function that runs a plan, recorded, for guests of that code; the results by name."""

    def run(text, code):
        (tmp_path / "guest").write_bytes(kernel(code))
        (tmp_path / "plan.toml").write_text(text)
        boots = [replace(boot, recorded=True) for boot in load_plan(tmp_path / "plan.toml")]
        return {result.boot.name: result for result in runner.run(boots, 2, Nobody())}

    return run


@pytest.fixture
def repeat(tmp_path):
    """A function that repeats a result's boot: what that shows, and the events."""

    def repeat(result):
        path = tmp_path / "boot.rec"
        path.write_bytes(result.recording)
        command = [sys.executable, "-m", "xenemu", "replay", str(path)]
        again = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        assert f" {result.instructions} instructions" in again.stderr.decode()
        assert again.stdout == result.raw
        return again, read(path).events

    return repeat


def test_a_failed_boot_can_be_repeated(run, repeat):
    plan = BASE + 'expect = [{pattern = "one", send = "typed"}, "two"]\nexit = "poweroff"\n'
    result = run(plan, CODE + shutdown(CRASH))["base"]
    assert result.exit_code == 4
    again, events = repeat(result)
    assert again.returncode == 4
    assert [event.data for event in events if isinstance(event, Arrived)] == [b"typed"]


def test_a_boot_that_passed_leaves_none(run):
    assert run(BASE, CODE + shutdown(POWEROFF))["base"].recording == b""


def test_a_copy_of_a_booted_guest_is_repeated_from_the_start(run, repeat):
    plan = BASE + 'snapshot = "one"\nexit = "poweroff"\n'
    plan += '[[boot]]\nname = "other"\nfrom = "base"\nrng_seed = 9\nexpect = "three"\n'
    found = run(plan, CODE + shutdown(POWEROFF))
    assert found["base"].exit_code == 0
    assert found["base"].instructions != found["other"].instructions
    _, events = repeat(found["other"])
    (change,) = [event for event in events if isinstance(event, Changed)]
    assert (change.schedule, change.rng_seed) == (None, 9)


def test_a_limit_of_the_plans_comes_again(run, repeat):
    plan = BASE + "virtual_timeout = 0.3\n"
    code = CODE + wait_until(10_000_000_000) + shutdown(POWEROFF)
    result = run(plan, code)["base"]
    again, _ = repeat(result)
    assert "still running after 0.3 s of its own time" in again.stderr.decode()
