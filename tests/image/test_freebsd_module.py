"""The records of a module for FreeBSD, walked as its kernel walks them."""

from __future__ import annotations

import struct

import pytest

from xenemu.errors import XenemuError
from xenemu.image.freebsd_module import MAX_ENVIRONMENT, freebsd_module

NAME, TYPE, ADDR, SIZE, ENVP, MODULEP = 1, 2, 3, 4, 0x8006, 0x9006


def walk(module):
    """The files of a module: each a type, and its other attributes."""
    at, files = 0, []
    while (head := struct.unpack_from("<II", module, at)) != (0, 0):
        kind, size = head
        data = module[at + 8 : at + 8 + size]
        at += -(-(8 + size) // 8) * 8
        if kind == NAME:
            files.append({})
        files[-1][kind] = data if kind in (NAME, TYPE) else int.from_bytes(data, "little")
    return {file.pop(TYPE): file for file in files}


def test_the_kernel_finds_its_environment():
    module = freebsd_module({"boot_verbose": "YES", "vfs.root.mountfrom": "ufs:/dev/md0"})
    files = walk(module)
    assert list(files) == [b"elf kernel\0"]
    kernel = files[b"elf kernel\0"]
    assert kernel[MODULEP] == 0
    text, _, _ = module[kernel[ENVP] :].partition(b"\0\0")
    assert text.split(b"\0") == [b"boot_verbose=YES", b"vfs.root.mountfrom=ufs:/dev/md0"]


def test_the_kernel_has_no_address_that_would_be_moved_with_the_module():
    assert ADDR not in walk(freebsd_module({}))[b"elf kernel\0"]


def test_the_disk_lies_at_a_page_and_has_its_size():
    disk = bytes(range(256)) * 5
    module = freebsd_module({"x": "y" * 3000}, disk)
    found = walk(module)[b"md_image\0"]
    assert found[ADDR] % 4096 == 0 and found[SIZE] == len(disk)
    assert module[found[ADDR] :] == disk


@pytest.mark.parametrize("name", ["", "a=b", "a\0b"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(XenemuError, match="no variable"):
        freebsd_module({name: "x"})


def test_an_environment_that_the_kernel_has_no_room_for_is_refused():
    whole = MAX_ENVIRONMENT - len("n=") - 2
    assert freebsd_module({"n": "x" * whole})
    with pytest.raises(XenemuError, match="has room for"):
        freebsd_module({"n": "x" * (whole + 1)})
