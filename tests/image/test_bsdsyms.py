"""The symbols for BSD_SYMTAB are where libelf puts them, whatever the ELF says of its tables."""

from __future__ import annotations

import struct

import pytest

from elfwriter import KERNEL, PT_NOTE, PV_NOTES, STRTAB, SYMTAB, Phdr, Shdr, elf, note

START, END = 0x1000000, 0x1002000  # of KERNEL
SYMBOLS, STRINGS = b"symbols!" * 3, b"\0main\0"


def kernel(sections, bits=64, segment=KERNEL, asks="yes"):
    notes = Phdr(b"".join(PV_NOTES) + note(11, asks), PT_NOTE, paddr=0, vaddr=0)
    return elf([segment, notes], sections, bits)


def tables(symbols=SYMBOLS, strings=STRINGS, link=3, **symtab):
    """A section that is neither, the symbol table, and its strings, which are section 3."""
    return [
        Shdr(".text", b"code"),
        Shdr(".named.otherwise", symbols, SYMTAB, link=link, **symtab),
        Shdr(".strings", strings, STRTAB),
    ]


def memory(found):
    """What is in memory from the kernel's end on."""
    symbols = found.bsd_symbols
    end = max(at + len(data) for at, data in symbols.pieces)
    content = bytearray(max(end, symbols.end) - END)
    for at, data in symbols.pieces:
        content[at - END : at - END + len(data)] = data
    return bytes(content)


@pytest.mark.parametrize(
    ("bits", "align", "ehdr", "phoff", "shdr"), [(64, 8, 64, 32, 64), (32, 4, 52, 28, 40)]
)
def test_a_small_elf_follows_the_kernel(load, bits, align, ehdr, phoff, shdr):
    found = load(kernel(tables(), bits, Phdr(b"\x90" * 64, memsz=0x1FFE)))
    content = memory(found)
    assert (found.bsd_symbols.start, found.pend) == (END, found.bsd_symbols.end)
    (size,) = struct.unpack_from("<I", content)
    file = content[4 : 4 + size]
    assert file[:16] == bytes(found.elf[:16])
    assert struct.unpack_from("<6H", file, ehdr - 12) == (ehdr, 0, 0, shdr, 3, 0)
    assert struct.unpack_from({64: "<QQ", 32: "<II"}[bits], file, phoff) == (0, 64)
    headers = [
        struct.unpack_from({64: "<IIQQQQIIQQ", 32: "<10I"}[bits], file, 64 + n * shdr)
        for n in range(3)
    ]
    assert not any(headers[0])
    assert (headers[1][1], headers[1][6], headers[2][1]) == (SYMTAB, 2, STRTAB)
    (symbols_at, symbols_size), (strings_at, strings_size) = (one[4:6] for one in headers[1:])
    assert symbols_at + 4 == (4 + 64 + 3 * 64 + align - 1) // align * align
    assert file[symbols_at:][:symbols_size] == SYMBOLS
    assert file[strings_at:][:strings_size] == STRINGS
    assert strings_at + strings_size == size
    # The room that Xen reserves; libelf goes 72 bytes beyond it where the headers are smaller.
    assert found.pend == END + (4 + 64 + 3 * shdr + 4 * (bits == 64)) + len(SYMBOLS) + 8


@pytest.mark.parametrize("asks", ["no", "yes, please", ""])
def test_only_yes_asks_for_them(load, asks):
    found = load(kernel(tables(), asks=asks))
    assert found.bsd_symbols is None
    assert found.pend == END
    assert len(list(found.contents())) == 1


@pytest.mark.parametrize(
    "sections",
    [
        [],
        tables(link=0),
        tables(link=5),
        tables(link=1),
        tables(link=2**32 - 1),
        [Shdr(".symtab", SYMBOLS, link=2), Shdr(".strtab", STRINGS, STRTAB)],
        [*tables(link=9), *tables(link=6)],  # only the first symbol table counts
    ],
)
def test_without_a_sound_pair_of_tables_nothing_is_loaded(load, sections):
    found = load(kernel(sections))
    assert found.notes.bsd_symtab
    assert found.bsd_symbols is None
    assert found.pend == END


@pytest.mark.parametrize("offset", [1 << 62, (1 << 64) - 1, 3000])
def test_a_table_outside_the_file_has_room_and_zeros(load, offset):
    found = load(kernel(tables(offset=offset, size=0x8000)))
    content = memory(found)
    assert len(content) == 0x8000 + 4 + 64 + 3 * 64 + 4 + len(STRINGS) + 2
    assert not any(content[264 : 264 + 0x8000])
    assert content[264 + 0x8000 :][: len(STRINGS)] == STRINGS


def test_a_table_too_large_is_one_line(fault):
    for size in (1 << 30, (1 << 64) - 1):
        sentence = fault(kernel(tables(size=size)))
        assert "symbols, for BSD_SYMTAB, take" in sentence


def test_libelf_has_no_room_for_the_strings_of_a_32_bit_kernel_that_just_fills_a_page(load):
    """It reserves 72 bytes too little, and does not load what ends in a page it does not have."""
    for more, there in ((0, True), (4, False)):
        symbols = bytes(0x1000 - 260 - len(STRINGS) - 2 + more)
        found = load(kernel(tables(symbols), bits=32))
        assert (bytes(found.bsd_symbols.pieces[-1][1]) == STRINGS) is there
        assert found.pend < END + 0x1000


def test_the_section_xen_guest_asks_whatever_it_says(load):
    sections = [*tables(), Shdr("__xen_guest", b"GUEST_OS=x,BSD_SYMTAB=no\0")]
    found = load(elf([KERNEL], sections))
    assert found.bsd_symbols


def test_segments_stay_the_elfs_own(load):
    found = load(kernel(tables()))
    assert len(found.segments) == 1
    assert found.pstart == START
    assert [at for at, _ in found.contents()] == [START, END, END + 264, END + 264 + len(SYMBOLS)]
