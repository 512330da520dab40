"""x86/paging: walks through tables."""

from __future__ import annotations

import pytest

from xenemu.x86.paging import (
    PSE,
    RW,
    Mfn,
    P,
    describe_entry,
    is_canonical,
    walk,
)

ROOT = Mfn(1)
PAGES = 6
VADDR = 0x0000_0080_4060_5ABC  # index 1 in each of the four tables, then 5 pages on


@pytest.fixture
def words() -> list[int]:
    """Tables in frames 1..4, leading to frame 5."""
    words = [0] * (512 * PAGES)
    for level, table in ((4, 1), (3, 2), (2, 3), (1, 4)):
        index = VADDR >> (12 + 9 * (level - 1)) & 511
        words[table << 9 | index] = (table + 1) << 12 | P | RW
    return words


def test_a_walk_goes_down_to_the_leaf(words: list[int]) -> None:
    steps = walk(words, ROOT, VADDR)
    assert [step.level for step in steps] == [4, 3, 2, 1]
    assert steps[-1].entry == 5 << 12 | P | RW
    assert steps[-1].entry_maddr == (4 << 12) + 8 * (VADDR >> 12 & 511)


def test_a_walk_ends_where_nothing_is_present(words: list[int]) -> None:
    assert [step.level for step in walk(words, ROOT, VADDR + (1 << 21))] == [4, 3, 2]


def test_a_walk_ends_at_a_large_page(words: list[int]) -> None:
    words[3 << 9 | VADDR >> 21 & 511] |= PSE
    assert [step.level for step in walk(words, ROOT, VADDR)] == [4, 3, 2]


def test_a_walk_stays_in_memory(words: list[int]) -> None:
    words[2 << 9 | VADDR >> 30 & 511] = 0xFFFFFF << 12 | P
    assert [step.level for step in walk(words, ROOT, VADDR)] == [4, 3]


def test_a_pae_walk_has_four_entries_at_the_top(words: list[int]) -> None:
    words[2 << 9 | 3] = 3 << 12 | P
    steps = walk(words, Mfn(2), 0xC060_5ABC, levels=3)
    assert [step.level for step in steps] == [3, 2, 1]


@pytest.mark.parametrize(
    ("vaddr", "canonical"),
    [
        (0, True),
        ((1 << 47) - 1, True),
        (1 << 47, False),
        ((1 << 64) - (1 << 47) - 1, False),
        ((1 << 64) - (1 << 47), True),
        ((1 << 64) - 1, True),
        (1 << 64, False),
    ],
)
def test_canonical_addresses(vaddr: int, canonical: bool) -> None:
    assert is_canonical(vaddr) is canonical


def test_an_entry_is_described_for_a_person() -> None:
    assert describe_entry(0x1003) == "0x1003 (mfn 0x1: P RW)"
    assert describe_entry(0) == "0x0 (mfn 0x0: not present)"
