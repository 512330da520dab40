"""mapping: memory of the host's, allocated where it is written."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from xenemu.mapping import anonymous, sparse

SIZE = 64 << 20
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def smaps(mapping: mmap.mmap) -> dict[str, str]:
    """What the kernel says of a mapping, by the names that it uses."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        first, _, end = line.split()[0].partition("-")
        if end and int(first, 16) <= start < int(end, 16):
            break
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        if " " in name:  # the next mapping
            break
        found[name] = value.strip()
    return found


@pytest.mark.parametrize("make", [anonymous, sparse])
def test_a_mapping_reads_as_zeroes_and_costs_what_is_written(make):
    mapping = make(SIZE)
    assert mapping[SIZE - 8 :] == bytes(8)
    mapping[SIZE // 2] = 1
    assert (mapping[SIZE // 2 - 1], mapping[SIZE // 2]) == (0, 1)


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this kernel has no huge pages")
def test_a_sparse_mapping_has_no_huge_pages():
    mapping = sparse(SIZE)
    mapping[SIZE // 2] = 1
    found = smaps(mapping)
    assert "nh" in found["VmFlags"].split()
    assert found["Rss"] == "4 kB"
