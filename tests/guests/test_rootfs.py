"""guests/rootfs.py: from a tree to a disk, without packages; the whole of it makes an image."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from guests import rootfs

pytestmark = pytest.mark.skipif(
    not shutil.which("mkfs.ext4", path=rootfs.search_path()), reason="there is no mkfs.ext4"
)


def archive(folder: Path) -> Path:
    (folder / "files/etc").mkdir(parents=True)
    (folder / "files/etc/motd").write_text("hello\n")
    (folder / "files/etc/some_key").write_text("secret\n")
    tar = folder / "root.tar"
    rootfs.pack(folder / "files", tar)
    return tar


def test_files_are_roots_and_keys_are_private(tmp_path: Path) -> None:
    with tarfile.open(archive(tmp_path)) as members:
        found = {one.name: (one.uid, one.gid, one.mode, one.mtime) for one in members}
    assert found == {
        "etc/motd": (0, 0, 0o644, rootfs.EPOCH),
        "etc/some_key": (0, 0, 0o600, rootfs.EPOCH),
    }


def test_the_same_files_make_the_same_disk(tmp_path: Path) -> None:
    tar = archive(tmp_path)
    disks = [tmp_path / name for name in ("one", "two")]
    for disk in disks:
        rootfs.make_disk(tar, disk, "16M")
    assert disks[0].read_bytes() == disks[1].read_bytes()
    for path in ("/", "/etc", "/etc/motd", "/etc/fstab", "/lost+found"):  # not when they were made
        command = ["/sbin/debugfs", "-R", f"stat {path}", disks[0]]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        times = re.findall(r"^ ?(\w+time): 0x(\w+)", shown, re.MULTILINE)
        assert [name for name, _ in times] == ["ctime", "atime", "mtime", "crtime"]
        assert {int(seconds, 16) for _, seconds in times} == {rootfs.EPOCH}, path
    subprocess.run(["/sbin/fsck.ext4", "-fn", disks[0]], check=True, capture_output=True)


def test_what_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_text("no archive")
    with pytest.raises(rootfs.RootfsError, match="tar"):
        rootfs.make_disk(tmp_path / "root.tar", tmp_path / "disk", "16M")
