"""Headers that lie are refused with a sentence; sound ones are read in both classes."""

from __future__ import annotations

import pytest

from elfwriter import NOTE, Phdr, Shdr, elf, kernel
from xenemu.errors import ImageError
from xenemu.image.elf import parse, text


@pytest.mark.parametrize(("bits", "machine"), [(64, "x86_64"), (32, "i386")])
def test_both_classes_are_read(bits, machine):
    parsed = parse(memoryview(elf([Phdr(b"code")], [Shdr(".n", b"x", NOTE)], bits)))
    assert (parsed.elf_class, parsed.machine, parsed.type) == (bits, machine, "EXEC")
    assert parsed.program_headers[0].filesz == 4
    assert bytes(parsed.view[parsed.program_headers[0].offset :][:4]) == b"code"
    assert parsed.section(".n") == parsed.section_headers[1]


def test_an_absent_section_is_none():
    assert parse(memoryview(kernel())).section("__xen_guest") is None
    assert parse(memoryview(elf(sections=[Shdr(".a")]))).section(".ab") is None


def test_the_interpreter_is_that_of_pt_interp():
    parsed = parse(memoryview(elf([Phdr(b"/lib/ld.so\0junk", type=3), Phdr(b"x")])))
    assert parsed.interpreter == "/lib/ld.so"
    assert parse(memoryview(kernel())).interpreter is None


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (elf()[:40], "truncated"),
        (elf(data=2), "big-endian"),
        (elf(machine=183), "AArch64"),
        (elf(machine=999), "machine 999"),
        (elf(type=1), "type REL"),
        (elf(phnum=0xFFFF), "65535 program headers"),
        (elf(phoff=1 << 63), "program headers at 0x8000000000000000"),
        (elf(phentsize=8), "program headers have 8 bytes"),
        (elf(sections=[Shdr(".a")], shnum=0xFFF0), "65520 section headers"),
        (elf(shoff=1 << 40, shnum=2), "section headers at 0x10000000000"),
        (elf(shnum=2, shentsize=1), "section headers have 1 bytes"),
    ],
)
def test_a_lying_header_is_named(broken, sentence):
    with pytest.raises(ImageError, match=sentence):
        parse(memoryview(broken))


def test_a_wild_section_name_table_finds_nothing():
    assert parse(memoryview(elf(sections=[Shdr(".a")], shstrndx=77))).section(".a") is None


def test_text_ends_at_its_nul_and_cannot_drive_a_terminal():
    assert text(memoryview(b"a\x1b[2J\n\xff\0rest")) == r"a\x1b[2J\x0a\xff"
