"""Real PV guests: at intervals, and when they have ended, every reference is accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from guests.build import ENVIRONMENTS, build, guests
from guests.initramfs import DEFAULT_INIT
from unattended import Unattended
from xenemu.hv.building import DomainConfig
from xenemu.hv.pagecheck import recount, writable_tables
from xenemu.image import load
from xenemu.machine import Limits, Machine
from xenemu.outcome import End, Outcome
from xenemu.pv.relinquish import references, relinquish_resources
from xenemu.smoke.initramfs import build as build_initramfs

GUESTS = guests()
OWN = [
    (name, environment)
    for name, guest in GUESTS.items()
    for environment in guest.environments
    if ENVIRONMENTS[environment].mode == "pv"
]


class Checker(Unattended):
    """A terminal without a person, which checks the domain every so many slices of its run.

    After `most` of them it leaves: GRUB waits at its prompt for ever.
    """

    def __init__(self, machine: Machine, every: int, most: int) -> None:
        super().__init__()
        self.machine = machine
        self.every = every
        self.most = most
        self.slices = self.checks = 0

    def check(self) -> Outcome | None:
        self.slices += 1
        if self.slices % self.every == 0:
            self.checks += 1
            self.assert_sound()
        return Outcome(End.EXPECTED, "that is enough") if self.slices == self.most else None

    def assert_sound(self) -> None:
        domain = self.machine.domain
        held = references(domain)
        assert recount(domain.frames, held) == []
        root_type = domain.frames.rules.root_type
        roots = [mfn for mfn, used_as in held if used_as == root_type]
        assert writable_tables(domain.frames, roots) == []


def run_checked(kernel: Path, config: DomainConfig, every: int, most: int = 10_000) -> Checker:
    machine = Machine(load(kernel), config, "pv")
    checker = Checker(machine, every, most)
    machine.run(checker, Limits(timeout_s=300))
    checker.assert_sound()
    assert relinquish_resources(machine.domain) == []
    assert recount(machine.domain.frames) == []
    assert not any(machine.domain.frames.type_count)
    return checker


def test_debian(guest_image) -> None:
    initrd = build_initramfs(guest_image("busybox").read_bytes(), DEFAULT_INIT.read_bytes())
    config = DomainConfig(128 << 20, b"console=hvc0", initrd)
    checker = run_checked(guest_image("debian-cloud-amd64"), config, 40)
    assert b"INIT-DONE" in checker.shown
    assert checker.checks >= 5


@pytest.mark.parametrize("name", ["grub-x86_64-xen", "grub-i386-xen"])
def test_grub(guest_image, name: str) -> None:
    checker = run_checked(guest_image(name), DomainConfig(64 << 20), 10, most=40)
    assert checker.checks


@pytest.mark.parametrize(("name", "environment"), OWN)
def test_own_guests(tmp_path: Path, name: str, environment: str) -> None:
    guest = GUESTS[name]
    kernel = build(guest, ENVIRONMENTS[environment], tmp_path / name)
    initrd = (guest.folder / guest.initrd).read_bytes() if guest.initrd else b""
    run_checked(kernel, DomainConfig(64 << 20, guest.cmdline.encode(), initrd), 25)
