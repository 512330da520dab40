"""gdb/fpu: x87's and SSE's registers in what FXSAVE64 writes."""

from __future__ import annotations

import pytest

from xenemu.gdb import fpu

CONTROL, STATUS, TAGS, MXCSR = 0, 2, 4, 24
ONE, ZERO, INFINITY = (bytes.fromhex(text) for text in (
    "0000000000000080ff3f", "00000000000000000000", "0000000000000080ff7f",
))  # fmt: skip


def area(top=0, tags=0, stack=(), **fields):
    made = bytearray(512)
    made[STATUS : STATUS + 2] = (top << 11).to_bytes(2, "little")
    made[TAGS] = tags
    for n, value in enumerate(stack):
        made[32 + 16 * n : 42 + 16 * n] = value
    return bytes(made)


@pytest.mark.parametrize("name", sorted(fpu.NAMES - {"ftag"}))
def test_what_is_written_is_read_and_nothing_else_changes(name):
    before = bytes(n * 7 & 0xFF for n in range(512))
    size = len(fpu.read(before, name))
    value = (
        bytes(range(1, 3)) + bytes(2) if name in ("fctrl", "fstat") else bytes(range(1, size + 1))
    )
    after = fpu.write(before, name, value)
    assert fpu.read(after, name) == value
    assert len(after) == 512
    names = fpu.NAMES - {name, "ftag"}
    assert {other: fpu.read(after, other) for other in names} == {
        other: fpu.read(before, other) for other in names
    }


def test_places():
    made = bytearray(512)
    made[CONTROL : CONTROL + 2] = b"\x7f\x03"
    made[MXCSR : MXCSR + 4] = b"\x80\x1f\0\0"
    made[160 + 15 * 16] = 9
    assert fpu.read(bytes(made), "fctrl") == b"\x7f\x03\0\0"
    assert fpu.read(bytes(made), "mxcsr") == b"\x80\x1f\0\0"
    assert fpu.read(bytes(made), "xmm15") == b"\x09" + bytes(15)


def test_the_tag_word_says_what_each_physical_register_holds():
    """SDM volume 1, 8.1.7: 0 valid, 1 zero, 2 special, 3 empty. The top of the stack is R6 here."""
    made = area(top=6, tags=0b11000001, stack=(ONE, ZERO, INFINITY))
    assert fpu.read(made, "ftag") == (0b01_00_11_11_11_11_11_10).to_bytes(4, "little")
    assert fpu.read(area(), "ftag") == b"\xff\xff\0\0"


def test_a_tag_word_that_is_written_empties_and_fills():
    made = fpu.write(area(tags=0xFF), "ftag", b"\xfe\xff\0\0")
    assert made[TAGS] == 1
