"""Sizes and files as a person writes them."""

from __future__ import annotations

import pytest

from xenemu.errors import UsageError
from xenemu.options import format_size, parse_memory


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 64 << 20),
        ("1G", 1 << 30),
        ("262144K", 256 << 20),
        ("1g", 1 << 30),
        ("4GiB", 4 << 30),
    ],
)
def test_sizes(text, size):
    assert parse_memory("--memory", text) == size


@pytest.mark.parametrize(
    "text", ["", "256", "M", "-1M", "1.5G", "0M", "1K", "63K", "1P", "65G", "9" * 99 + "K", "٣M"]
)
def test_no_sizes(text):
    with pytest.raises(UsageError, match=r"^--memory "):
        parse_memory("--memory", text)


@pytest.mark.parametrize(
    ("size", "text"), [(3 << 30, "3 GiB"), (1536 << 20, "1536 MiB"), (4 << 10, "4 KiB")]
)
def test_a_size_is_written_in_its_largest_whole_unit(size, text):
    assert format_size(size) == text
