"""pvh/mtrr: the registers are kept, and values that a CPU refuses are refused."""

from __future__ import annotations

import pytest

from xenemu.pvh.mtrr import CAPABILITIES, MTRR_CAP, MTRR_DEF_TYPE, Mtrrs, pat_okay

BASE, MASK, FIXED = 0x200, 0x201, 0x250


def test_all_memory_starts_write_back():
    mtrrs = Mtrrs()
    assert mtrrs.read(MTRR_DEF_TYPE) == 0x806
    assert mtrrs.read(MTRR_CAP) == CAPABILITIES == 0x508
    assert mtrrs.read(BASE) == mtrrs.read(0x26F) == 0


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (MTRR_DEF_TYPE, 0xC00),
        (BASE, 0xFF_FFFFF006),
        (MASK, 0xFF_FFFFF800),
        (FIXED, 0x0606050504040100),
    ],
)
def test_what_is_written_stays(number, value):
    mtrrs = Mtrrs()
    assert mtrrs.write(number, value)
    assert mtrrs.read(number) == value


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (MTRR_CAP, CAPABILITIES),
        (MTRR_DEF_TYPE, 0x802),
        (MTRR_DEF_TYPE, 0x1806),
        (BASE, 0x2),
        (BASE, 0x106),
        (BASE, 1 << 40),
        (MASK, 0x400),
        (MASK, 1 << 40),
        (FIXED, 0x06060606_06060602),
    ],
)
def test_what_a_cpu_refuses(number, value):
    mtrrs = Mtrrs()
    before = mtrrs.read(number)
    assert not mtrrs.write(number, value)
    assert mtrrs.read(number) == before


@pytest.mark.parametrize(
    ("value", "okay"), [(0x0007040600070406, True), (2, False), (8 << 56, False)]
)
def test_types_of_the_pat(value, okay):
    assert pat_okay(value) == okay
