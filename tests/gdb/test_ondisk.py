"""gdb/ondisk: the kernel's file as gdb reads it, whatever becomes of the file."""

from __future__ import annotations

import os

import pytest

import elfwriter
from xenemu import image
from xenemu.gdb.ondisk import find

DEBUG = b"debug information" * 1000


@pytest.fixture
def path(tmp_path):
    sections = [
        *elfwriter.symbol_table({"f": elfwriter.ENTRY}),
        elfwriter.Shdr(".debug_info", DEBUG),
    ]
    path = tmp_path / "vmlinux"
    notes = elfwriter.Phdr(b"".join(elfwriter.PV_NOTES), elfwriter.PT_NOTE, paddr=0, vaddr=0)
    path.write_bytes(elfwriter.elf([elfwriter.KERNEL, notes], sections))
    return path


def test_it_has_what_no_run_keeps(path):
    kernel, content = image.load(path), path.read_bytes()
    disk = find(str(path), kernel.elf)
    assert DEBUG in content and DEBUG not in bytes(kernel.elf)
    assert len(disk) == len(content)
    for part in (slice(0, 10), slice(60, 70), slice(100, 30000), slice(len(content), 9 << 40)):
        assert disk[part] == content[part]


def test_its_first_bytes_are_those_that_were_asked_for(path):
    kernel = image.load(path)
    marked = bytearray(kernel.elf)
    marked[7] = 255
    disk = find(str(path), memoryview(marked))
    assert disk[0:100] == bytes(marked[:100]) and disk[7:8] == b"\xff" and disk[8:9] == b"\0"


def test_a_file_that_is_cut_short_gives_less(path):
    kernel = image.load(path)
    disk, size = find(str(path), kernel.elf), path.stat().st_size
    os.truncate(path, 1000)
    assert len(disk[900:2000]) == 100
    assert disk[2000:size] == b""
    assert kernel.symbols.address("f") == elfwriter.ENTRY


def test_a_file_that_is_another_by_now_is_not_taken(path):
    kernel = image.load(path)
    for content in (elfwriter.kernel(), b"text", b""):
        path.write_bytes(content)
        assert find(str(path), kernel.elf) is None
    path.unlink()
    assert find(str(path), kernel.elf) is None
