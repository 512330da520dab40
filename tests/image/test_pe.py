"""image/pe: what is read of a PE program, and what is refused."""

from __future__ import annotations

import struct

import pytest
from pewriter import TEXT, blocks, pe

from xenemu.errors import ImageError
from xenemu.image import pe as reader


def parse(data: bytes) -> reader.Pe:
    program = reader.parse(memoryview(data))
    assert program is not None
    return program


def test_a_program_is_laid_out_by_its_sections():
    program = parse(pe(b"\x90\xc3", text_size=0x800))
    assert (program.machine, program.entry, program.size) == ("x86_64", TEXT, 0x3000)
    image = program.load(0x100000)
    assert len(image) == 0x3000
    assert image[:2] == b"MZ" and image[TEXT : TEXT + 3] == b"\x90\xc3\0"


def test_relocations_move_with_the_program():
    text = struct.pack("<QI4x", 0x401000, 0x401008)
    moves = blocks((0x1000, [10 << 12 | 0, 3 << 12 | 8, 0]), (0x1000, []))
    program = parse(pe(text, image_base=0x400000, relocations=moves))
    image = program.load(0x500000)
    assert struct.unpack_from("<QI", image, TEXT) == (0x501000, 0x501008)
    assert program.load(0x400000)[TEXT : TEXT + 16] == text


@pytest.mark.parametrize(
    "moves",
    [
        struct.pack("<II", 0x1000, 0),
        struct.pack("<II", 0x1000, 0x1000),
        blocks((0x1000, [5 << 12])),
        blocks((0x2FFF, [10 << 12])),
        blocks((0xFFFFF000, [10 << 12])),
    ],
)
def test_relocations_that_cannot_be_done(moves):
    program = parse(pe(relocations=moves))
    with pytest.raises(ImageError, match="relocation"):
        program.load(0x100000)


def test_a_program_without_relocations_stays_where_it_is():
    program = parse(pe(image_base=0x400000, flags=0x207))
    assert program.load(0x400000)
    with pytest.raises(ImageError, match="runs only at 0x400000"):
        program.load(0x500000)


@pytest.mark.parametrize("data", [b"", b"MZ", b"\x7fELF" + bytes(100), b"MZ" + bytes(200)])
def test_what_is_no_program(data):
    assert reader.parse(memoryview(data)) is None


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (pe(machine=0xAA64), "machine 0xaa64"),
        (pe(entry=0x3000), "the entry 0x3000"),
        (pe(size=1 << 31), "an image of 0x80000000"),
        (pe(size=0x1800), "the PE section at 0x2000 reaches out of the image"),
        (pe(b"\x90" * 0x400)[:0x500], "is cut off by the end"),
        (pe()[:0x100], "cut off"),
        (pe()[:0x120], "sections are cut off"),
        (pe()[:0x58] + b"\x01\x02" + pe()[0x5A:], "no known format"),
    ],
)
def test_what_is_wrong_in_a_header(data, fault):
    with pytest.raises(ImageError, match=fault):
        reader.parse(memoryview(data))


def test_no_bytes_make_an_other_exception():
    good = pe(image_base=0x400000, relocations=blocks((0x1000, [10 << 12])))
    for at in range(0x40, 0x160):
        for value in (0, 0x7F, 0xFF):
            data = bytearray(good)
            data[at] = value
            try:
                program = reader.parse(memoryview(data))
                if program is not None and program.size < 1 << 20:
                    program.load(0x100000)
            except ImageError:
                pass


def test_relocations_are_not_without_end():
    """Each is work: a page of them per page of program is far from that many."""
    data = pe(relocations=bytes(8), image_base=0x1000, size=4 << 20)
    at = data.index(struct.pack("<II", 0x2000, 8))
    many = data[:at] + struct.pack("<II", 0x2000, 3 << 20) + data[at + 8 :]
    program = parse(many)
    with pytest.raises(ImageError, match="have 3145728 bytes, which is too many"):
        program.load(0x2000)
