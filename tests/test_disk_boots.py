"""Debian's kernel with a disk: what it reads and writes, and what is in the file afterwards."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess

import pytest

from moduleguest import module_initramfs

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
FEATURES = "flush diskcache: enabled; persistent grants: enabled; indirect descriptors: enabled"


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
    subprocess.run(make, check=True, env={"PATH": "/sbin:/usr/sbin:/bin:/usr/bin"})
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
    first, second = (boot("pvh", path, *more) for more in ((), ("--audit", "0.1")))
    assert first[0].count(digest) == 2
    assert FEATURES in first[0]
    assert (second[0], count(second[1])) == (first[0], count(first[1]))
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_what_is_written_is_in_the_file(boot, image, tmp_path):
    path, digest = image
    copy = tmp_path / "copy"
    shutil.copyfile(path, copy)
    console, _ = boot("pv", f"{copy},rw,sector-size=512")
    assert console.count(digest) == 2
    fsck = subprocess.run(["/sbin/fsck.ext4", "-fn", copy], capture_output=True, check=False)
    assert fsck.returncode == 0, fsck.stdout.decode()
    dump = subprocess.run(
        ["/sbin/debugfs", "-R", "cat copy", copy], capture_output=True, check=True
    )
    assert hashlib.sha256(dump.stdout).hexdigest() == digest
