"""A snapshot in a file, which a fresh process goes on from."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from test_snapshot import Script, end_of

from guests.build import ENVIRONMENTS, build, guests
from guests.initramfs import DEFAULT_INIT
from xenemu.hv.building import DomainConfig
from xenemu.image import load
from xenemu.machine import Machine, snapshot_file
from xenemu.outcome import End
from xenemu.smoke.initramfs import build as build_initramfs

ELSEWHERE = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_snapshot import Script, end_of
from xenemu.machine import Machine, snapshot_file
machine = Machine.revive(snapshot_file.read(Path(sys.argv[1])).snapshot)
shown = bytearray(Path(sys.argv[2]).read_bytes())
print(end_of(machine, Script(machine, (), 1000, shown)))
"""


def header(machine):
    return snapshot_file.Header(
        kernel="/k",
        kernel_digest="",
        entry=machine.entry.name,
        memory=machine.domain.memory.nr_frames << 12,
        now_ns=machine.engine.now_ns,
        instructions=machine.engine.instructions,
        plain_size=0,
        pieces=[],
    )


def saved(machine):
    file = io.BytesIO()
    snapshot_file.write(file, header(machine), machine.snapshot())
    return file.getvalue()


def assert_goes_on_elsewhere(make, tmp_path: Path, stop: int) -> int:
    """Compare the end of a run with that of one that a fresh process ends; the file's size."""
    whole = make()
    straight = repr(end_of(whole, Script(whole, (), 1000)))
    machine = make()
    terminal = Script(machine, (1000 + stop,), 1000)
    assert machine.run(terminal).end is End.STOPPED
    place, shown = tmp_path / "snapshot", tmp_path / "shown"
    place.write_bytes(saved(machine))
    shown.write_bytes(terminal.shown)
    command = [sys.executable, "-c", ELSEWHERE, str(place), str(shown)]
    result = subprocess.run(command, capture_output=True, check=False, text=True)
    assert result.stdout.strip() == straight, result.stderr
    return place.stat().st_size


@pytest.mark.parametrize("name", ["ap-start", "ap-start-pvh", "grant-tables", "pv-traps"])
def test_own_guests(tmp_path: Path, name: str) -> None:
    guest = guests()[name]
    kind = next(iter(guest.environments))
    kernel = load(build(guest, ENVIRONMENTS[kind], tmp_path / name))
    config = DomainConfig(64 << 20, guest.cmdline.encode(), vcpus=guest.vcpus)
    assert_goes_on_elsewhere(lambda: Machine(kernel, config, ENVIRONMENTS[kind].mode), tmp_path, 2)


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_debian(guest_image, tmp_path: Path, mode: str) -> None:
    initrd = build_initramfs(guest_image("busybox").read_bytes(), DEFAULT_INIT.read_bytes())
    kernel = load(guest_image("debian-cloud-amd64"))
    config = DomainConfig(128 << 20, b"console=hvc0", initrd)
    size = assert_goes_on_elsewhere(lambda: Machine(kernel, config, mode), tmp_path, 100)
    assert size < 40 << 20
