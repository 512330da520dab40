"""x86/segment: the fields of descriptors."""

from __future__ import annotations

import pytest

from xenemu.x86 import segment

FLAT_CODE64 = 0x00AFFB000000FFFF
BYTE_GRANULAR = 0x12409A345678_9ABC  # base 0x12345678, limit 0x09abc


def test_base_is_gathered_from_its_three_pieces() -> None:
    assert segment.base(BYTE_GRANULAR) == 0x12345678


def test_limit_is_in_bytes_whatever_the_granularity() -> None:
    assert segment.limit(BYTE_GRANULAR) == 0x9ABC
    assert segment.limit(FLAT_CODE64) == 0xFFFFFFFF


def test_attributes_are_in_place_without_limit_and_base() -> None:
    assert segment.attributes(FLAT_CODE64) == segment.CODE64_RING3
    assert segment.dpl(segment.CODE64_RING3) == 3
    assert segment.dpl(segment.CODE32_RING1) == 1


@pytest.mark.parametrize("selector", range(4))
def test_a_null_selector_may_have_any_rpl(selector: int) -> None:
    assert segment.is_null(selector)
    assert not segment.is_null(selector | segment.SEL_TI)
