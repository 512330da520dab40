"""Debian's kernels from their first instruction to power-off, twice the same.

The second time, the hypervisor's own books are checked on the way: no page table and no descriptor
table is mapped writable, and each count is what memory says.
"""

from __future__ import annotations

import re

import pytest

from guests.initramfs import DEFAULT_INIT
from xenemu.smoke.initramfs import build

BOOTS = [
    ("debian-amd64", "pv", "busybox"),
    ("debian-cloud-amd64", "pv", "busybox-i386"),  # whose system calls are SYSENTER
    ("debian-amd64", "pvh", "busybox"),
    ("debian-686-pae", "pvh", "busybox-i386"),
]
TWICE = {("debian-amd64", "pv"), ("debian-amd64", "pvh")}
AUDIT_S = "0.05"  # about 50 times in a boot
# In this order on the console of every boot; what /proc and /sys say of it comes from /init.
MILESTONES = (r"Linux version 6\.1\.", "INIT-OK", r"Linux version 6\.1\.", "xen", "INIT-DONE")
PV_MILESTONES = ("Hypervisor detected: Xen PV", "Booting kernel on Xen", *MILESTONES[1:])


@pytest.fixture(scope="module")
def boot(guest_image, xenemu_run, tmp_path_factory):
    """A function that boots a kernel with a busybox initramfs; the finished process."""

    def run(image, mode, busybox, *more, init=None):
        initrd = tmp_path_factory.mktemp("boot") / "initrd.gz"
        initrd.write_bytes(
            build(guest_image(busybox).read_bytes(), init or DEFAULT_INIT.read_bytes())
        )
        options = (*more, "--mode", mode, "--memory", "256M", "--timeout", "300")
        console = ("--initrd", initrd, "--cmdline", "console=hvc0")
        return xenemu_run(guest_image(image), *options, *console)

    return run


def ended_at(stderr: bytes) -> str:
    """The instruction count in the last line of a run."""
    found = re.search(rb"(\d+) instructions", stderr)
    assert found, stderr.decode()
    return found[1].decode()


@pytest.mark.parametrize(("image", "mode", "busybox"), BOOTS)
def test_debian_boots_to_userland_and_powers_off(boot, image, mode, busybox):
    first = boot(image, mode, busybox)
    console = first.stdout.decode(errors="replace")
    assert first.returncode == 0, first.stderr.decode()
    at = 0
    for milestone in PV_MILESTONES if mode == "pv" else MILESTONES:
        found = re.compile(milestone).search(console, at)
        assert found, f"no {milestone!r} behind byte {at} of:\n{console}"
        at = found.end()
    if (image, mode) in TWICE:
        second = boot(image, mode, busybox, "--audit", AUDIT_S)
        assert second.stdout == first.stdout
        assert ended_at(second.stderr) == ended_at(first.stderr)


WORK = b"""#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys
cd /sys/devices/system/cpu
for cpu in 0 1 2 3; do
    seq 1 1000 | taskset $((1 << cpu)) awk -v cpu=$cpu '{ s += $1 } END { print cpu ": " s }' &
done
wait
echo 0 > cpu1/online; cat online
echo 1 > cpu1/online; cat online
grep RES: /proc/interrupts
poweroff -f
"""


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_all_vcpus_of_a_debian_work_and_one_goes_and_comes_back(boot, mode):
    """Each hears of the others by its own IPIs, and two runs are the same."""
    options = ("debian-cloud-amd64", mode, "busybox", "--vcpus", "4")
    runs = [boot(*options, init=WORK) for _ in range(2)]
    console = runs[0].stdout.decode(errors="replace")
    assert runs[0].returncode == 0, runs[0].stderr.decode()
    assert "smp: Brought up 1 node, 4 CPUs" in console
    lines = console.splitlines()
    assert {f"{cpu}: 500500" for cpu in range(4)} <= {*lines}, console
    assert lines.index("0,2-3") < lines.index("0-3"), console
    ipis = re.search(r"^ *RES: +(\d+) +(\d+) +(\d+) +(\d+) ", console, re.MULTILINE)
    assert ipis and all(map(int, ipis.groups())), console
    assert runs[1].stdout == runs[0].stdout
    assert ended_at(runs[1].stderr) == ended_at(runs[0].stderr)
