"""Debian's kernel with shared directories: what it reads and may change, and that it repeats."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from xenemu.needs import DIOD
from xenemu.smoke.initramfs import Member, entries, pack

IMAGE = "debian-12-system"  # whose kernel has 9P as modules
MODULES = ("netfs", "fscache", "9pnet", "9pnet_xen", "9p")  # in the order of their needs
INIT = b"""#!/bin/sh
mount -t proc proc /proc
for module in netfs fscache 9pnet 9pnet_xen 9p; do insmod /$module.ko; done
mkdir /seen /own
options=trans=xen,version=9p2000.L
mount -t 9p -o $options seen /seen
mount -t 9p -o $options own /own
ls -lu /seen
sha256sum /seen/data
cp /seen/data /own/copy && mkdir /own/made
echo "more" >> /seen/data || echo refused
rm /seen/data || echo refused
ls /seen/missing
umount /own /seen
poweroff -f
"""

pytestmark = pytest.mark.skipif(
    not DIOD.find(),
    reason="there is no diod: install Debian's diod",
)


@pytest.fixture(scope="module")
def initrd(guest_image, tmp_path_factory):
    members = entries(INIT, guest_image("busybox").read_bytes())
    with tarfile.open(guest_image(IMAGE) / "root.tar") as archive:
        for member in archive:
            name = Path(member.name)
            if name.suffix == ".ko" and name.stem in MODULES:
                data = archive.extractfile(member).read()
                members.append(Member(name.name, stat.S_IFREG | 0o644, data))
    path = tmp_path_factory.mktemp("share") / "initrd.gz"
    path.write_bytes(pack(members))
    return path


@pytest.mark.parametrize("entry", ["pv", "pvh"])
def test_a_guest_reads_both_and_changes_one(entry, initrd, guest_image, xenemu_run, tmp_path):
    seen = tmp_path / "seen"
    seen.mkdir()
    data = os.urandom(300_000)
    (seen / "data").write_bytes(data)
    os.utime(seen / "data", (1_700_000_000, 1_600_000_000))
    runs = []
    for number in range(2 if entry == "pv" else 1):
        own = tmp_path / f"own{number}"
        own.mkdir()
        shares = ("--share", f"{seen},tag=seen", "--share", f"{own},tag=own,rw")
        options = ("--entry", entry, "--initrd", initrd, "--cmdline", "console=hvc0 quiet")
        if entry == "pvh":
            options += ("--record", tmp_path / "recording")
        result = xenemu_run(guest_image(IMAGE) / "vmlinuz", *options, *shares, "--timeout", "200")
        assert result.returncode == 0, result.stderr.decode()
        assert (own / "copy").read_bytes() == data
        assert (own / "made").is_dir()
        assert [path.name for path in seen.iterdir()] == ["data"]
        assert (seen / "data").read_bytes() == data
        runs.append(result.stdout.decode())
    console = runs[0]
    assert console.count("refused") == 2
    assert console.count("Read-only file system") == 2
    assert "Sep 13" in console  # when it was changed, in the place of when it was read
    assert "No such file" in console
    assert runs[-1] == console
    if entry == "pvh":
        shutil.rmtree(seen)
        command = [sys.executable, "-m", "xenemu", "replay", tmp_path / "recording"]
        nothing = os.environ | {"PATH": str(tmp_path)}  # nor a diod
        again = subprocess.run(command, capture_output=True, check=False, env=nothing)
        assert (again.returncode, again.stdout.decode()) == (0, console), again.stderr.decode()
