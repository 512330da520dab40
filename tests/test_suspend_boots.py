"""Debian suspended and resumed five times: a file system, a network and a count lose nothing.

The toolstack asks for it by control/shutdown, as xl does. Each resume is in a new domain, 90
seconds later. Then the guest is saved, and goes on in another machine.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from moduleguest import module_initramfs
from unattended import Unattended
from xenemu.disks import opened, parse_disk
from xenemu.dom0.net import Vif
from xenemu.dom0.verbs import VERBS
from xenemu.hv.building import DomainConfig
from xenemu.image import load
from xenemu.machine import Limits, Machine, life
from xenemu.machine.ends import Life
from xenemu.machine.migration import envelope
from xenemu.machine.migration.envelope import Told
from xenemu.network import networked
from xenemu.outcome import End, Outcome

SUSPENDS = 5
AWAY_NS = 90_000_000_000
INIT = b"""#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mkdir -p /t
mount -t tmpfs tmpfs /t
insmod /xen-blkfront.ko
insmod /xen-netfront.ko
until [ -b /dev/xvda ]; do sleep 0.01; done
mount -t ext4 /dev/xvda /root
ip link set eth0 up
ip addr add 10.1.1.2/24 dev eth0
n=0
while true; do
    n=$((n + 1))
    cp /root/data /root/copy$n && sync
    cmp /root/data /root/copy$n && cmp /root/data /t/data || cp /root/data /t/data
    rm -f /root/copy$((n - 2))
    echo $n >> /root/log
    read up rest < /proc/uptime
    grep -q "xvda" /proc/mounts && echo "count $n up $up date $(date +%s) of $(wc -l < /root/log)"
    sleep 1
done
"""
COUNT = re.compile(rb"count (\d+) up ([\d.]+) date (\d+) of (\d+)")
ENVIRONMENT = {"PATH": "/sbin:/usr/sbin:/bin:/usr/bin"}
ASKER = bytes.fromhex("00163e000009") + bytes([10, 1, 1, 9])  # a MAC and an address
ASK = bytes.fromhex("ffffffffffff00163e00000908060001080006040001") + ASKER
ASK += bytes(6) + bytes([10, 1, 1, 2])
ANSWERED = bytes.fromhex("08060001080006040002")


@dataclass
class Toolstack:
    """A source of requests for the control backend, which has one whenever `wanted` is set."""

    wanted: bool = False
    writing = None
    heard: list[dict] = field(default_factory=list)

    @property
    def reading(self) -> int | None:
        return None

    def receive(self, now_ns: int) -> Sequence[bytes]:
        if not self.wanted:
            return ()
        self.wanted = False
        return [b'1 {"do": "shutdown", "how": "suspend"}']

    def send(self, now_ns: int, data: bytes) -> None:
        self.heard.append(json.loads(data[2:]))

    def flush(self) -> None:
        """Nothing waits."""


@dataclass
class Wire:
    """A source that asks who has 10.1.1.2 whenever it is told to, and counts the answers."""

    asks: int = 0
    answers: int = 0
    writing = None

    @property
    def reading(self) -> int | None:
        return None

    def receive(self, now_ns: int) -> Sequence[bytes]:
        asked, self.asks = self.asks, 0
        return [ASK] * asked

    def send(self, now_ns: int, data: bytes) -> None:
        self.answers += ANSWERED in data

    def flush(self) -> None:
        """Nothing waits."""


@dataclass
class Person(Unattended):
    """Has the guest suspended after each second count, and asked by the network before that."""

    toolstack: Toolstack
    wire: Wire
    counts: int = 0
    shown: bytearray = field(default_factory=bytearray)

    def check(self) -> Outcome | None:
        counts = len(COUNT.findall(self.shown))
        if counts > self.counts:
            self.counts = counts
            self.wire.asks += 1
            self.toolstack.wanted = counts % 2 == 0
        return None


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A file with an ext4 file system, which has a file `data`."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("needs mkfs.ext4, of e2fsprogs")
    folder = tmp_path_factory.mktemp("disk")
    (folder / "root").mkdir()
    (folder / "root" / "data").write_bytes(random.Random(20).randbytes(100_000))
    image = folder / "image"
    make = ["mkfs.ext4", "-q", "-d", folder / "root", image, "16M"]
    subprocess.run(make, check=True, env=ENVIRONMENT)
    return image


@pytest.mark.parametrize(
    ("kernel", "mode"), [("debian-cloud-amd64", "pv"), ("debian-6.12-cloud-amd64", "pvh")]
)
def test_nothing_is_lost(guest_image, disk, tmp_path, kernel, mode):
    modules = ["xen-blkfront", "xen-netfront"]
    initrd = module_initramfs(guest_image, kernel, INIT, modules)
    config = DomainConfig(128 << 20, b"console=hvc0 quiet", initrd, vcpus=2)
    with (
        opened("--disk", [parse_disk("--disk", str(disk))]) as disks,
        networked("--net", ["none-but-pcap"], "guest") as wired,
    ):
        (vif,) = wired.vifs
        machine = Machine(load(guest_image(kernel)), config, mode, [*disks, vif])
        toolstack, wire = Toolstack(), Wire()
        person = Person(toolstack, wire)
        run(machine, person, vif, SUSPENDS)
        assert machine.domain.domid == 1 + SUSPENDS
        assert machine.personality.audit(machine.domain) == []

        file = tmp_path / "saved"
        saved = life.save(machine)
        told = Told("guest", config.uuid, config.memory, config.memory, 2, 2)
        with file.open("wb") as stream:
            envelope.write(stream.write, saved, told)
        disks_state = [each.disk.save() for each in disks]
        for backend in machine.domain.backends.values():
            backend.disconnect(machine.domain)
        saved, told = envelope.read_file(file)
        other = life.revive(machine.entry, saved, config, [*disks, vif], AWAY_NS)
        assert disks_state == [each.disk.save() for each in disks]
        run(other, person, vif, 0)
    counts = [tuple(map(float, found)) for found in COUNT.findall(person.shown)]
    assert [count[0] for count in counts] == list(range(1, len(counts) + 1))
    assert [count[3] for count in counts] == [count[0] for count in counts]
    steps = [later[1] - count[1] for count, later in pairwise(counts)]
    dates = [later[2] - count[2] for count, later in pairwise(counts)]
    for n, (step, date) in enumerate(zip(steps, dates, strict=True), 1):
        away = 90 if n % 2 == 0 else 0
        assert away + 1 <= step < away + 2 and away + 1 <= date <= away + 2, (n, step, date)
    assert b"BUG" not in person.shown and b"error" not in person.shown
    assert wire.answers == len(counts)


def run(machine: Machine, person: Person, vif: Vif, times: int) -> None:
    """Run it, and resume it so often, until it suspends itself once more."""
    left = [times]

    def resume(suspended: Machine) -> bool:
        left[0] -= 1
        if left[0] < 0:
            return False
        life.renew(suspended, AWAY_NS)
        return True

    machine.control.verbs = VERBS
    sources = [(machine.control, person.toolstack), (vif, person.wire)]
    outcome = machine.run(person, Limits(300), None, None, sources, life=Life(suspended=resume))
    assert outcome.end is End.SUSPEND, (outcome, person.shown[-2000:])
