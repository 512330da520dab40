"""abi/layout: how structs are declared, laid out, packed and unpacked."""

from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.abi.layout import S8, S64, U8, U16, U32, U64, U64A, ULONG, Struct, blob


class Mixed(Struct, size=(32, 20)):
    small: U8
    big: U64  # aligned to 8, or to 4 in the 32-bit ABI
    word: ULONG
    last: U16


class Aligned(Struct, size=(16, 16)):
    small: U8
    big: U64A


class WithUnion(Struct, size=(24, 12)):
    tag: U32
    union: Annotated[bytes, blob(16, 8, 8, 4)]


class Signed(Struct, size=(16, 12)):
    low: S8
    high: S64


def test_offsets_follow_the_abi_of_each_width() -> None:
    names = ("small", "big", "word", "last")
    assert [Mixed.offsetof(name, 8) for name in names] == [0, 8, 16, 24]
    assert [Mixed.offsetof(name, 4) for name in names] == [0, 4, 12, 16]
    assert (Mixed.sizeof(8), Mixed.sizeof(4)) == (32, 20)


def test_an_aligned_uint64_is_aligned_in_both_abis() -> None:
    assert [Aligned.offsetof("big", width) for width in (8, 4)] == [8, 8]


def test_a_union_has_a_size_for_each_width() -> None:
    assert WithUnion.unpack(4, b"\1\0\0\0" + b"12345678").union == b"12345678"
    assert WithUnion.unpack(8, bytes(8) + b"x" * 16).union == b"x" * 16


def test_padding_is_zero() -> None:
    assert Mixed(0xFF, 1, 2, 3).pack(8)[1:8] == bytes(7)


@pytest.mark.parametrize("width", [8, 4])
def test_too_big_a_value_wraps_as_in_c(width: int) -> None:
    packed = Mixed(0x1FF, 1 << 64 | 5, 1 << 64 | 7, -1).pack(width)
    assert Mixed.unpack(width, packed) == Mixed(0xFF, 5, 7, 0xFFFF)


def test_signed_fields_wrap_too() -> None:
    assert Signed.unpack(8, Signed(0xFF, 1 << 63).pack(8)) == Signed(-1, -(1 << 63))


class Wrong(Struct, size=(8, 8)):
    pointer: ULONG


def test_a_wrong_size_is_not_laid_out() -> None:
    with pytest.raises(TypeError, match="struct Wrong has 4 bytes at width 4, not 8"):
        Wrong.sizeof(4)


@given(
    st.sampled_from([8, 4]),
    st.integers(0, 0xFF),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFF),
)
def test_what_is_packed_is_unpacked(width: int, a: int, b: int, c: int, d: int) -> None:
    value = Mixed(a, b, c, d)
    packed = value.pack(width)
    assert len(packed) == Mixed.sizeof(width)
    assert Mixed.unpack(width, packed) == value
