"""The start of a command: what is imported before its guest runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tinyguest

# Imported where they are asked for: by a command, by an entry, or by an option.
ASKED_FOR = {
    "xenemu.entries.efi",
    "xenemu.entries.linux",
    "xenemu.cli.compare",
    "xenemu.cli.hypercalls",
    "xenemu.cli.inspect",
    "xenemu.cli.matrix",
    "xenemu.cli.smoke",
    "xenemu.compare",
    "xenemu.dom0.block",
    "xenemu.coverage",
    "xenemu.cpu.lane_notes",
    "xenemu.gdb",
    "xenemu.encoding",
    "xenemu.image.lines",
    "xenemu.smoke.initramfs",
    "xenemu.smoke.session",
    "xenemu.views",
    "elftools",
    "msgspec",
    "pydantic",
    "rich",
}
CODE = """
import json, sys
from xenemu.machine import Machine
from xenemu.outcome import End, Outcome
def run(*args, **options):
    print(json.dumps([name for name in sys.modules]))
    return Outcome(End.POWEROFF, "")
Machine.run = run
from xenemu.__main__ import main
sys.exit(main())
"""


def imported(*arguments: object) -> set[str]:
    """What is imported when the guest of that command line begins."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return set(json.loads(told.stdout))


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(tinyguest.kernel(tinyguest.shutdown(tinyguest.POWEROFF)))
    return path


def test_a_run_imports_what_it_needs(kernel: Path) -> None:
    assert imported("run", kernel) & ASKED_FOR == set()


def test_an_option_imports_what_it_needs(kernel: Path, tmp_path: Path) -> None:
    found = imported("run", kernel, "--coverage", tmp_path / "ran.info") & ASKED_FOR
    assert found == {"xenemu.coverage", "xenemu.image.lines", "elftools"}
