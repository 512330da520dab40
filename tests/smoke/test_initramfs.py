"""Archives made on the fly, read back by hand."""

from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path

import pytest

import elfwriter
from guests.initramfs import DEFAULT_INIT
from xenemu.errors import UsageError
from xenemu.smoke import initramfs

STATIC = elfwriter.elf()
DYNAMIC = elfwriter.elf([elfwriter.KERNEL, elfwriter.Phdr(b"/lib/ld.so\0", elfwriter.PT_INTERP)])


def unpack(archive):
    """Decode a newc archive: name -> (mode, mtime, device, data), in the archive's order."""
    members, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        field = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + field[11] - 1].decode()
        start = (at + 110 + field[11] + 3) & ~3
        if name == "TRAILER!!!":
            return members
        data = archive[start : start + field[6]]
        members[name] = (field[1], field[5], (field[9], field[10]), data)
        at = (start + field[6] + 3) & ~3


def build():
    return initramfs.build(b"\x7fELF busybox", b"#!/bin/sh\n")


def test_the_same_input_gives_the_same_bytes():
    assert build() == build()


def test_nothing_carries_a_time():
    archive = build()
    assert archive[4:8] == bytes(4)  # gzip's own
    assert {mtime for _, mtime, _, _ in unpack(gzip.decompress(archive)).values()} == {0}


def test_console_is_a_character_device():
    mode, _, device, _ = unpack(gzip.decompress(build()))["dev/console"]
    assert (stat.S_IFMT(mode), device) == (stat.S_IFCHR, (5, 1))


def test_contents_are_those_given():
    members = unpack(gzip.decompress(build()))
    assert members["bin/busybox"][3] == b"\x7fELF busybox"
    assert members["init"] == (stat.S_IFREG | 0o755, 0, (0, 0), b"#!/bin/sh\n")
    assert members["bin/sh"] == (stat.S_IFLNK | 0o777, 0, (0, 0), b"busybox")


def test_parents_come_before_children():
    names = list(unpack(gzip.decompress(build())))
    assert names == sorted(names)


def test_default_init_is_there():
    assert DEFAULT_INIT.read_text().startswith("#!/bin/sh\n")


# Of files.


@pytest.fixture
def file(tmp_path):
    """A function that writes a file and returns its path."""

    def write(name, data, mode=0o755):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        return path

    return write


def made(init=None, rootfs=None, busybox=None):
    return unpack(gzip.decompress(initramfs.make(init, rootfs, busybox)))


def test_a_script_comes_with_busybox(file):
    members = made(file("script", b"#!/bin/sh\n"), None, file("busybox", STATIC))
    assert members["init"][3] == b"#!/bin/sh\n"
    assert members["bin/busybox"][3] == STATIC


def test_busybox_alone_gives_a_shell(file):
    members = made(None, None, file("busybox", STATIC))
    assert members["init"][3] == initramfs.SHELL
    assert members["bin/busybox"][3] == STATIC


def test_a_static_program_comes_alone(file):
    members = made(file("program", STATIC))
    assert members["init"][3] == STATIC
    assert "bin/busybox" not in members
    assert "dev/console" in members


def test_a_directory_is_taken_as_it_is(file, tmp_path):
    file("root/init", b"#!/bin/sh\n")
    file("root/etc/secret", b"x", 0o600)
    (tmp_path / "root/sh").symlink_to("bin/sh")
    members = made(rootfs=tmp_path / "root")
    assert members["etc/secret"] == (stat.S_IFREG | 0o600, 0, (0, 0), b"x")
    assert members["sh"][3] == b"bin/sh"
    assert stat.S_ISCHR(members["dev/console"][0])
    assert not any(name.startswith("bin") for name in members)


def test_a_directory_is_the_same_whatever_its_times_are(file, tmp_path):
    path = file("root/init", b"#!/bin/sh\n")
    first = initramfs.make(None, tmp_path / "root", None)
    os.utime(path, (1, 1))
    assert initramfs.make(None, tmp_path / "root", None) == first


def test_a_directory_gets_what_else_is_given(file, tmp_path):
    file("root/init", b"its own")
    file("root/bin/ls", b"its own")
    busybox, script = file("busybox", STATIC), file("script", b"#!/bin/sh\n")
    members = made(script, tmp_path / "root", busybox)
    assert members["init"][3] == b"#!/bin/sh\n"
    assert members["bin/ls"][3] == b"its own"
    assert members["bin/sh"][3] == b"busybox"


def test_parents_come_first_in_a_directory(file, tmp_path):
    file("root/init", b"")
    file("root/a/b/c", b"")
    names = list(made(rootfs=tmp_path / "root"))
    assert names == sorted(names)
    assert {"a", "a/b"} <= set(names)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("script", b"echo\n", "neither a script that begins with #! nor an ELF"),
        ("program", DYNAMIC, "wants /lib/ld.so, which is not in the archive"),
        ("program", elfwriter.elf(machine=40, bits=32), "the ELF is for Arm"),
    ],
)
def test_what_cannot_run_as_init_is_refused(file, name, data, words):
    with pytest.raises(UsageError, match=words):
        initramfs.make(file(name, data), None, file("busybox", STATIC))


def test_a_dynamic_busybox_is_refused(file):
    with pytest.raises(UsageError, match=r"^busybox .*: wants /lib/ld\.so"):
        initramfs.make(file("script", b"#!/bin/sh\n"), None, file("busybox", DYNAMIC))


def test_no_busybox_is_told(file, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="install busybox-static"):
        initramfs.make(file("script", b"#!/bin/sh\n"), None, None)


def test_a_directory_that_is_none_is_refused(file, tmp_path):
    refused = {
        file("x", b""): "not a directory",
        Path("/"): "this host's own root, with /proc in it: give a copy",
        tmp_path / "no": "there is no such directory",
        tmp_path / ("x" * 300): "File name too long",
    }
    for path, words in refused.items():
        with pytest.raises(UsageError, match=f"rootfs {path}: {words}"):
            initramfs.make(None, path, None)


def test_a_directory_that_is_too_much_is_refused(tmp_path, monkeypatch):
    """As the host's root is; files of /proc say that they have no size, and some never end."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("init", "b"):
        (root / name).write_bytes(bytes(500))
    monkeypatch.setattr(initramfs, "LARGEST_TREE", 1000)
    assert initramfs.make(None, root, None)
    (root / "c").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"rootfs .*: more than .* files, or .* MiB of them"):
        initramfs.make(None, root, None)
    monkeypatch.setattr(initramfs, "LARGEST_TREE", 1 << 30)
    monkeypatch.setattr(initramfs, "MOST_FILES", 2)
    with pytest.raises(UsageError, match="more than 2 files"):
        initramfs.make(None, root, None)
    assert initramfs._bounded(Path("/proc/self/maps"), 100)[101:] == b""


def test_a_device_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(initramfs, "LARGEST", 1 << 20)
    for asked in ((Path("/dev/zero"), None, None), (None, None, Path("/dev/zero"))):
        with pytest.raises(UsageError, match="larger than 1 MiB"):
            initramfs.make(*asked)


def test_a_directory_without_init_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no /init"):
        initramfs.make(None, tmp_path, None)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"^init .*none: No such file"):
        initramfs.make(tmp_path / "none", None, None)
