"""A few of the changed snapshots that snapshots.py tries by the thousand."""

from __future__ import annotations

import io

import pytest

from fuzz.snapshots import attempt
from guests.build import ENVIRONMENTS, build, guests
from unattended import Unattended
from xenemu.hv.building import DomainConfig
from xenemu.image import load
from xenemu.machine import Machine, snapshot_file
from xenemu.outcome import End, Outcome


class Early(Unattended):
    slices = 0

    def check(self):
        self.slices += 1
        return Outcome(End.STOPPED, "") if self.slices == 6 else None


@pytest.mark.parametrize(("name", "kind"), [("race", "pv64"), ("ap-start-pvh", "pvh64")])
def test_what_is_accepted_can_go_on(tmp_path, monkeypatch, name, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    guest, environment = guests()[name], ENVIRONMENTS[kind]
    kernel = load(build(guest, environment, tmp_path / name))
    config = DomainConfig(16 << 20, guest.cmdline.encode(), vcpus=guest.vcpus)
    machine = Machine(kernel, config, environment.mode)
    machine.slice_ns = 20_000
    machine.run(Early())
    file = io.BytesIO()
    header = snapshot_file.Header(kernel="/k", kernel_digest="", entry="", memory=16 << 20)
    snapshot_file.write(file.write, header, machine.snapshot())
    seen = attempt(file.getvalue(), 30, 1, tmp_path / "changed")
    assert not [what for what in seen if what.startswith("EXCEPTION")]
    assert seen["plain: refused"] and seen["plain: poweroff"]
