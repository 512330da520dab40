"""Symbols come from .symtab or kallsyms, and only addresses in the kernel get names."""

from __future__ import annotations

import struct

import pytest

from elfwriter import STRTAB, SYMTAB, Phdr, Shdr, elf, kernel
from xenemu import image
from xenemu.image.elf import parse
from xenemu.image.loader import Segment
from xenemu.image.symbols import Symbol, Symbols, load_symbols

TEXT = 0xFFFF_FFFF_8100_0000
NOTYPE, FUNC, SECTION, FILE = 0, 2, 3, 4
ABSOLUTE = 0xFFF1
IMAGE = [range(TEXT, TEXT + 0x1000)]
ENTRIES = [(TEXT + 0x100, "b"), (TEXT, "a"), (TEXT + 0x100, "alias"), (0x40, "percpu")]


def symbols(entries=ENTRIES, parts=IMAGE):
    return Symbols(lambda: [(vaddr, name, True) for vaddr, name in entries], parts)


def symtab(*rows, bits=64):
    """Build an ELF whose rows are (name, address, type, section index, is global)."""
    names, table = b"\0", b""
    for name, vaddr, kind, shndx, bind in rows:
        info = bind << 4 | kind
        if bits == 64:
            table += struct.pack("<IBBHQQ", len(names), info, 0, shndx, vaddr, 0)
        else:
            table += struct.pack("<IIIBBH", len(names), vaddr, 0, info, 0, shndx)
        names += name.encode() + b"\0"
    vaddr = TEXT if bits == 64 else 0xC100_0000
    sections = [Shdr(".symtab", table, SYMTAB, link=2), Shdr(".strtab", names, STRTAB)]
    return elf([Phdr(bytes(16), vaddr=vaddr, memsz=0x1000)], sections, bits)


def loaded(data):
    view = memoryview(data)
    segments = [
        Segment(h.paddr, h.vaddr, h.memsz, view[h.offset :][: h.filesz])
        for h in parse(view).program_headers
    ]
    return load_symbols(view, segments)


def test_nothing_is_read_before_the_first_question():
    asked = []
    table = Symbols(lambda: asked.append(1) or [(TEXT, "a", True)], IMAGE)
    assert asked == []
    assert len(table) == 1 and table.lookup(TEXT) is not None
    assert asked == [1]


@pytest.mark.parametrize(
    "offset, expected",
    [
        (0, Symbol("a", TEXT, 0, 0x100)),
        (0xFF, Symbol("a", TEXT, 0xFF, 0x100)),
        (0x100, Symbol("b", TEXT + 0x100, 0, 0xF00)),
        (0xFFF, Symbol("b", TEXT + 0x100, 0xEFF, 0xF00)),
        (0x1000, None),
        (-1, None),
    ],
)
def test_lookup_finds_the_symbol_before(offset, expected):
    assert symbols().lookup(TEXT + offset) == expected


def test_a_symbol_does_not_reach_into_another_part():
    parts = [range(0x1000, 0x2000), range(0x4000, 0x5000)]
    table = symbols([(0x1800, "end"), (0x4800, "other")], parts)
    assert table.format(0x1FFF) == "end+0x7ff/0x800"
    assert table.lookup(0x3000) is None
    assert table.lookup(0x4000) is None


def test_address_knows_symbols_outside_the_image():
    table = symbols()
    assert table.address("percpu") == 0x40 and table.lookup(0x40) is None
    assert table.address("alias") == TEXT + 0x100
    assert table.address("c") is None


def test_address_of_a_name_that_several_have_is_the_lowest():
    assert symbols([(3, "x"), (1, "x"), (2, "x")]).address("x") == 1


def test_format_is_like_linux():
    assert symbols().format(TEXT + 0x1A) == "a+0x1a/0x100"
    assert symbols().format(0xDEAD_BEEF) == "0xdeadbeef"
    assert Symbols().format(TEXT) == f"{TEXT:#x}"


def test_a_return_address_belongs_to_its_call():
    assert symbols().format(TEXT + 0x100, is_return=True) == "a+0x100/0x100"


@pytest.mark.parametrize("bits", [64, 32])
def test_symtab_gives_what_has_a_place(bits):
    text = TEXT if bits == 64 else 0xC100_0000
    table = loaded(
        symtab(
            ("", 0, NOTYPE, 0, 0),
            ("start.S", 0, FILE, ABSOLUTE, 0),
            ("section", text, SECTION, 1, 0),
            ("CONSTANT", text + 8, NOTYPE, ABSOLUTE, 0),
            ("undefined", text + 8, FUNC, 0, 1),
            ("start", text, NOTYPE, 1, 1),
            ("main", text + 0x20, FUNC, 1, 1),
            bits=bits,
        )
    )
    assert len(table) == 2
    assert table.format(text + 0x1A) == "start+0x1a/0x20"
    assert table.address("main") == text + 0x20


def test_of_names_for_one_place_a_global_function_counts():
    rows = [("mark", TEXT, NOTYPE, 1, 1), ("local", TEXT, FUNC, 1, 0), ("main", TEXT, FUNC, 1, 1)]
    assert loaded(symtab(*rows)).format(TEXT).startswith("main+0x0/")


def test_what_is_code_goes_by_the_section():
    symbols = b"".join(
        struct.pack("<IBBHQQ", at, 0x10, 0, shndx, TEXT + at, 0) for at, shndx in ((1, 3), (6, 1))
    )
    sections = [
        Shdr(".symtab", symbols, SYMTAB, link=2),
        Shdr(".strtab", b"\0main\0jiffies\0", STRTAB),
        Shdr(".text", b"\xc3", flags=4),
    ]
    table = loaded(elf([Phdr(bytes(16), vaddr=TEXT, memsz=0x1000)], sections))
    assert list(table.items()) == [(TEXT + 1, "main", True), (TEXT + 6, "jiffies", False)]


def test_names_that_do_not_print_are_left_out():
    table = loaded(symtab(("ok", TEXT, FUNC, 1, 1), ("\x1b[2J", TEXT + 8, FUNC, 1, 1)))
    assert len(table) == 1


def test_per_cpu_symbols_linked_at_0_name_no_address():
    symbol = struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 0, 0)
    sections = [Shdr(".symtab", symbol, SYMTAB, link=2), Shdr(".strtab", b"\0percpu\0", STRTAB)]
    segments = [Phdr(bytes(16), memsz=0x1000), Phdr(bytes(16), vaddr=0, memsz=0x1000)]
    table = loaded(elf(segments, sections))
    assert table.address("percpu") == 0
    assert table.format(0) == "0x0"


@pytest.mark.parametrize(
    "data",
    [kernel(), elf(), symtab(), symtab(("x", TEXT, FUNC, 1, 1)).replace(b"\0x\0", b"\0xx")],
    ids=["no symbols", "nothing", "empty symtab", "unterminated name"],
)
def test_an_image_without_names_has_none(data):
    table = loaded(data)
    assert len(table) == 0
    assert table.format(TEXT) == f"{TEXT:#x}"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", bytes(100)], ids=["empty", "magic", "zeros"])
def test_what_is_no_elf_has_no_names(data):
    assert len(load_symbols(memoryview(data), [])) == 0


def test_debian_kernel(guest_image):
    kernel = image.load(guest_image("debian-amd64"))
    table = load_symbols(kernel.elf, kernel.segments)
    assert len(table) > 50_000
    text, etext = table.address("_stext"), table.address("_etext")
    assert text is not None and etext is not None and text < etext
    for name in ("start_kernel", "panic", "do_syscall_64", "startup_xen", "xen_start_kernel"):
        vaddr = table.address(name)
        assert vaddr is not None
        symbol = table.lookup(vaddr + 1)
        assert symbol is not None and symbol.offset == 1 and 0 < symbol.size < 0x4000
    assert text < (table.address("panic") or 0) < etext < (table.address("_end") or 0)
    assert kernel.notes.entry == table.address("startup_xen")
