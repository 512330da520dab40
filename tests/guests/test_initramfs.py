"""guests/initramfs.py: the archive, read back by hand."""

from __future__ import annotations

import gzip
import stat

from guests import initramfs


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
    assert initramfs.DEFAULT_INIT.read_text().startswith("#!/bin/sh\n")
