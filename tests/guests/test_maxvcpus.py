"""Vcpus beyond those that are online: the guest can bring them up, and Linux waits to be told."""

from __future__ import annotations

import pytest

from guests.build import ENVIRONMENTS, build, guests
from unattended import Unattended
from xenemu.dom0.xenstore_model import Connection
from xenemu.image import load
from xenemu.machine import DomainConfig, Machine
from xenemu.outcome import End
from xenemu.smoke import initramfs

BARRIER = guests()["barrier"]
INIT = """#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys
cd /sys/devices/system/cpu
echo "possible $(cat possible), online $(cat online)"
while [ ! -e cpu2 ]; do sleep 0.1; done
echo 1 > cpu2/online
echo "online $(cat online), $(grep -c processor /proc/cpuinfo) processors"
poweroff -f
"""


@pytest.mark.parametrize("environment", BARRIER.environments)
def test_a_guest_brings_up_vcpus_that_are_offline_at_first(environment, tmp_path):
    kernel = load(build(BARRIER, ENVIRONMENTS[environment], tmp_path / "barrier"))
    config = DomainConfig(64 << 20, vcpus=1, maxvcpus=4)
    machine, terminal = Machine(kernel, config, ENVIRONMENTS[environment].mode), Unattended()
    machine.run(terminal)
    assert b"Test result: SUCCESS" in terminal.shown


class Toolstack(Unattended):
    """Writes vcpu 2's node, once the guest has said what it has at first."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine, self.written = machine, False

    def check(self) -> None:
        if b"possible 0-3, online 0-1" in self.shown and not self.written:
            self.written = True
            node = "/local/domain/1/cpu/2/availability"
            self.machine.host.store.write(Connection(0), node, b"online")


def test_linux_brings_a_vcpu_up_when_its_node_says_so(guest_image, tmp_path):
    (tmp_path / "init").write_text(INIT)
    initrd = initramfs.make(tmp_path / "init", None, guest_image("busybox"))
    config = DomainConfig(128 << 20, b"console=hvc0", initrd, vcpus=2, maxvcpus=4)
    machine = Machine(load(guest_image("debian-cloud-amd64")), config, "pv")
    terminal = Toolstack(machine)
    assert machine.run(terminal).end is End.POWEROFF, terminal.shown.decode()
    assert b"online 0-2, 3 processors" in terminal.shown, terminal.shown.decode()
