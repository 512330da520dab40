"""Debian's kernel with a disk: what it reads and writes, and what is in the file afterwards."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import struct
import subprocess
import sys

import pytest

from guests.initramfs import DEFAULT_INIT
from moduleguest import module_initramfs
from xenemu.image import load
from xenemu.smoke.initramfs import build

KERNEL = "debian-cloud-amd64"  # which has ext4 built in, and xen-blkfront as a module
INIT = b"""#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
insmod /xen-blkfront.ko
until [ -b /dev/xvda ]; do sleep 0.01; done
dmesg | grep blkfront:
mount -t ext4 /dev/xvda /root && sha256sum /root/data
cp /root/data /root/copy
sync
umount /root
mount -t ext4 -o ro /dev/xvda /root && sha256sum /root/copy
umount /root
poweroff -f
"""
UNFLUSHED = b"""#!/bin/sh
mount -t devtmpfs dev /dev
insmod /xen-blkfront.ko
until [ -b /dev/xvda ]; do sleep 0.01; done
mount -t ext4 /dev/xvda /root
cp /root/data /root/flushed
sync
echo FLUSHED
while true; do cp /root/data /root/more; done
"""
ENVIRONMENT = {"PATH": "/sbin:/usr/sbin:/bin:/usr/bin"}
PARTITION_AT, PARTITION_SIZE = 1 << 20, 60 << 20
FEATURES = "flush diskcache: enabled; persistent grants: {}; indirect descriptors: enabled"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A file with an ext4 file system, and the digest of the file `data` in it."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("needs mkfs.ext4, of e2fsprogs")
    folder = tmp_path_factory.mktemp("disk")
    (folder / "root").mkdir()
    data = random.Random(18).randbytes(3_000_000)
    (folder / "root" / "data").write_bytes(data)
    image = folder / "image"
    make = ["mkfs.ext4", "-q", "-d", folder / "root", image, "16M"]
    subprocess.run(make, check=True, env=ENVIRONMENT)
    return image, hashlib.sha256(data).hexdigest()


@pytest.fixture
def boot(guest_image, xenemu_run, tmp_path):
    """A function that boots with a disk; the console and standard error."""
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(module_initramfs(guest_image, KERNEL, INIT, ["xen-blkfront"]))

    def run(entry, disk, *more):
        console = ("--cmdline", "console=hvc0 quiet", "--initrd", initrd)
        options = ("--entry", entry, "--timeout", "100", "--disk", disk, *console, *more)
        result = xenemu_run(guest_image(KERNEL), *options)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode(), result.stderr.decode()

    return run


def count(stderr):
    return re.search(r"(\d+) instructions", stderr)[1]


def test_an_overlay_leaves_the_image_alone_and_runs_are_equal(boot, image):
    path, digest = image
    before = hashlib.sha256(path.read_bytes()).digest()
    first, second = (boot("pvh", path, *more) for more in ((), ("--audit", "0.1", "--no-fast")))
    assert first[0].count(digest) == 2
    assert FEATURES.format("disabled") in first[0]
    assert (second[0], count(second[1])) == (first[0], count(first[1]))
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_what_is_written_is_in_the_file(boot, image, tmp_path):
    path, digest = image
    copy = tmp_path / "copy"
    shutil.copyfile(path, copy)
    console, _ = boot("pv", f"{copy},rw,sector-size=512,persistent")
    assert FEATURES.format("enabled") in console
    assert console.count(digest) == 2
    assert check(copy, "-n") == 0
    assert hashlib.sha256(content(copy, "copy")).hexdigest() == digest


def check(path, *options):
    """The exit code of fsck."""
    fsck = ["fsck.ext4", "-f", *options, path]
    return subprocess.run(fsck, capture_output=True, check=False, env=ENVIRONMENT).returncode


def content(path, name):
    debugfs = ["debugfs", "-R", f"cat {name}", path]
    return subprocess.run(debugfs, capture_output=True, check=True, env=ENVIRONMENT).stdout


def test_what_was_flushed_outlives_a_killed_run(guest_image, image, tmp_path):
    path, digest = image
    copy, initrd = tmp_path / "copy", tmp_path / "initrd.gz"
    shutil.copyfile(path, copy)
    initrd.write_bytes(module_initramfs(guest_image, KERNEL, UNFLUSHED, ["xen-blkfront"]))
    options = ("--initrd", initrd, "--disk", f"{copy},rw", "--cmdline", "console=hvc0 quiet")
    command = [sys.executable, "-m", "xenemu", "run", guest_image(KERNEL), "--entry", "pvh"]
    with subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL, stdout=-1) as run:
        try:
            lines = []
            for line in run.stdout:  # blocks until one comes, or the run ends
                lines.append(line)
                if line.startswith(b"FLUSHED"):
                    break
        finally:
            run.kill()
    assert lines[-1].startswith(b"FLUSHED"), lines
    assert check(copy, "-y") in (0, 1)  # 1: the journal was replayed
    assert check(copy, "-n") == 0
    assert hashlib.sha256(content(copy, "flushed")).hexdigest() == digest


def partitioned(path, root):
    """A disk with a partition table, and a directory as ext4 in its first partition."""
    with path.open("xb") as file:
        file.truncate(PARTITION_AT + PARTITION_SIZE)
        first, count = PARTITION_AT >> 9, PARTITION_SIZE >> 9
        file.seek(446)
        file.write(struct.pack("<B3sB3sII", 0x80, bytes(3), 0x83, bytes(3), first, count))
        file.seek(510)
        file.write(b"\x55\xaa")
    make = ["mkfs.ext4", "-q", "-d", root, "-E", f"offset={PARTITION_AT}", path]
    size = f"{PARTITION_SIZE >> 10}K"
    subprocess.run([*make, size], check=True, capture_output=True, env=ENVIRONMENT)


def linux(guest_image, boot):
    initrd = build(guest_image("busybox").read_bytes(), DEFAULT_INIT.read_bytes())
    (boot / "initrd.gz").write_bytes(initrd)
    return "linux /boot/kernel console=hvc0 quiet\n initrd /boot/initrd.gz"


def bz_image(guest_image, boot):
    """Debian's kernel as it is in the package."""
    shutil.copyfile(guest_image(KERNEL), boot / "kernel")
    return linux(guest_image, boot)


def vmlinux(guest_image, boot):
    """The same, unpacked: GRUB cannot unpack the LZ4 of a PV kernel."""
    (boot / "kernel").write_bytes(load(guest_image(KERNEL)).elf)
    return linux(guest_image, boot)


def gnu_mach(guest_image, boot):
    """The one kernel of Debian's for 32-bit PV guests; it ends itself early, as without GRUB."""
    shutil.copyfile(guest_image("gnumach-xen-486-i386"), boot / "kernel")
    return "linux /boot/kernel console=hvc0"


GRUBS = {
    "grub-x86_64-xen": (vmlinux, 0, b"INIT-DONE"),
    "grub-i386-xen": (gnu_mach, 4, b"Booting `here'"),
    "grub-i386-xen_pvh": (bz_image, 0, b"INIT-DONE"),
}


@pytest.mark.parametrize("grub", GRUBS)
def test_grub_boots_a_kernel_from_a_partition(grub, guest_image, xenemu_run, image, tmp_path):
    kernel, code, shown = GRUBS[grub]
    boot = tmp_path / "root" / "boot"
    (boot / "grub").mkdir(parents=True)
    entry = kernel(guest_image, boot)
    (boot / "grub" / "grub.cfg").write_text(f"set timeout=0\nmenuentry here {{\n {entry}\n}}\n")
    disk = tmp_path / "disk"
    partitioned(disk, boot.parent)
    result = xenemu_run(guest_image(grub), "--disk", disk, "--memory", "512M", "--timeout", "200")
    assert shown in result.stdout, result.stdout[-2000:]
    assert result.returncode == code, result.stderr[-3000:].decode()
    if code:
        assert b"guest-crash, exit 4: shutdown reason 128" in result.stderr
