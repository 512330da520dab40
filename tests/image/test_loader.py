"""Any file is an Image or one line; an Image is views of one buffer."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elfwriter import (
    ENTRY,
    KERNEL,
    PT_NOTE,
    PV_NOTES,
    STRTAB,
    SYMTAB,
    Phdr,
    Shdr,
    bzimage,
    elf,
    kernel,
    note,
    symbol_table,
)
from xenemu import entries, image
from xenemu.errors import ImageError
from xenemu.image import loader
from xenemu.snapfile import MAGIC as SNAPSHOT_MAGIC


def test_an_elf_is_loaded_as_it_is(load):
    found = load(kernel())
    assert (found.format, found.payload) == ("ELF", None)
    assert (found.elf_class, found.machine, found.entry) == (64, "x86_64", 0xFFFFFFFF81000000)
    (segment,) = found.segments
    assert (segment.paddr, segment.vaddr, segment.memsz) == (0x1000000, 0xFFFFFFFF81000000, 0x2000)
    assert segment.data == b"\x90" * 64
    assert (found.pstart, found.pend) == (0x1000000, 0x1002000)


def test_segments_are_views_that_nobody_can_write(load):
    for data in (kernel(), bzimage(kernel())):
        found = load(data)
        assert found.segments[0].data.obj is found.elf.obj
        assert found.elf.readonly and found.elf == kernel()


def test_a_bzimage_is_unpacked(load):
    found = load(bzimage(kernel(), lzma.compress(kernel())))
    assert found.format == "bzImage"
    assert (found.payload.compression, found.payload.size) == ("xz", len(kernel()))
    assert (found.payload.protocol, found.payload.kernel_version) == ((2, 15), "6.1.0-test")
    assert found.notes.guest_os == "linux"


def resident(path: str) -> int:
    """How many KiB of a mapped file are in this process's memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if "-" in name:
            ours = values[-1] == path
        elif name == "Rss:" and ours:
            found += int(values[0])
    return found


def test_a_bzimage_leaves_no_pages_of_its_file_in_memory(load):
    found = load(bzimage(kernel()))
    assert found.bzimage is not None
    assert resident(found.path) == 0
    assert len(bytes(found.bzimage.file)) > 0
    assert resident(found.path) > 0
    found.forget_pages()
    assert resident(found.path) == 0


def test_a_compressed_elf_is_unpacked(load):
    found = load(gzip.compress(kernel()))
    assert (found.format, found.payload.compression) == ("ELF", "gzip")
    assert found.payload.protocol is None
    assert found.notes.guest_os == "linux"


def test_what_is_not_loadable_is_left_out(load):
    data = elf([KERNEL, Phdr(b"x", flags=0), Phdr(b"x", type=6), Phdr(b"", memsz=0)])
    assert len(load(data).segments) == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the file is empty"),
        (b"#!/bin/sh\n", "a script, not a kernel"),
        (b"MZ" + bytes(600), "a program of DOS's: it has no PE header"),
        (SNAPSHOT_MAGIC, "a snapshot, not a kernel: xenemu resume goes on from it"),
        (b"kernel = 'vmlinuz'", "only xenemu run and inspect take xl's configurations"),
        (b"hello", "not a kernel: neither an ELF"),
        (gzip.compress(b"hello", mtime=0), "the gzip payload is not an ELF"),
        (bzimage(b"hello"), "the gzip payload is not an ELF"),
        (bzimage(kernel())[:-100], "truncated"),
        (kernel()[:200], "cut off by the end of the file"),
        (elf([]), "no segment to load"),
        (elf([Phdr(b"ab", memsz=1)]), "more bytes in the file than in memory"),
        (elf([Phdr(b"ab", offset=1 << 62)]), "cut off by the end of the file"),
        (elf([Phdr(b"a", paddr=(1 << 64) - 1, memsz=2)]), "does not fit in the address space"),
        (elf([Phdr(b"a", paddr=0xFFFFF000, memsz=0x2000)], bits=32), "does not fit"),
        (elf([Phdr(b"a", memsz=(1 << 30) + 1)]), "span 0x40000001 bytes"),
        (elf([Phdr(b"a", paddr=0), Phdr(b"a", paddr=1 << 40)]), "span 0x10000000001 bytes"),
        (elf([Phdr(b"ab", paddr=0x2001), Phdr(b"ab", paddr=0x2000)]), "overlap"),
        (elf([Phdr(b"a", paddr=n) for n in range(257)]), "257 segments to load; 256 at most"),
    ],
)
def test_a_bad_file_is_one_line(fault, data, sentence):
    assert sentence in fault(data)


def test_what_is_no_file_is_one_line(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, sentence in [
        (tmp_path, "Is a directory"),
        (tmp_path / "absent", "No such file or directory"),
        (fifo, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ]:
        with pytest.raises(ImageError) as caught:
            image.load(path)
        assert str(caught.value) == f"{path}: {sentence}"


def test_a_sparse_file_of_64_gib_costs_nothing(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(kernel())
        file.truncate(1 << 36)
    assert image.load(path).notes.guest_os == "linux"


def test_a_file_that_is_cut_short_later_was_copied(tmp_path):
    path = tmp_path / "kernel"
    debug = bytes(range(1, 101)) * 100
    sections = [*symbol_table({"name": ENTRY}), Shdr(".debug_info", debug), Shdr(".x", b"kept")]
    for data in (elf([KERNEL], sections), bzimage(kernel())):
        path.write_bytes(data)
        found = image.load(path)
        os.truncate(path, 0)  # now to touch a map of it is SIGBUS
        assert next(bytes(piece) for _, piece in found.contents()) == KERNEL.data
        assert found.payload or found.symbols.address("name") == ENTRY
        assert found.payload or bytes(found.elf) == data.replace(debug, bytes(len(debug)))


def test_debug_information_that_is_loaded_too_is_copied(load):
    data = elf([Phdr(b"abc" * 100)], [Shdr(".debug_info", size=300, offset=120)])
    assert bytes(load(data).elf) == data


def test_a_huge_elf_is_one_line(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(elf([KERNEL], [Shdr(".x", size=1 << 36)]))
    os.truncate(path, 1 << 36)
    with pytest.raises(ImageError, match="bytes besides debug information, over 0x40000000"):
        image.load(path)


NOTES = Phdr(b"".join(PV_NOTES) + note(11, "yes"), PT_NOTE)
TABLES = [Shdr(".symtab", bytes(48), SYMTAB, link=2), Shdr(".strtab", b"\0name\0", STRTAB)]
BSD = [elf([KERNEL, NOTES], TABLES, bits) for bits in (64, 32)]
SOUND = [kernel(), kernel(bits=32), bzimage(kernel()), *BSD]
EDITS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=400)
@given(which=st.sampled_from(SOUND), edits=EDITS, keep=st.integers(0, 3000))
def test_no_file_makes_anything_but_an_image_or_one_line(which, edits, keep, tmp_path_factory):
    data = bytearray(which)
    for at, value in edits:
        data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "mutant"
    path.write_bytes(data[:keep])
    try:
        found = image.load(path)
    except ImageError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < len(str(path)) + 300
        return
    assert found.pend - found.pstart <= loader.MAX_SPAN
    assert all(at + len(data) - found.pstart <= loader.MAX_SPAN for at, data in found.contents())
    assert len(entries.verdicts(found)) == len(entries.ENTRIES)
