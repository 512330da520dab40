"""x86/cpuid: the host's CPU."""

from __future__ import annotations

import struct

from xenemu.x86 import cpuid


def letters(*registers: int) -> bytes:
    return struct.pack(f"<{len(registers)}I", *registers)


def test_the_vendor_is_intel() -> None:
    highest, b, c, d = cpuid.VENDOR
    assert letters(b, d, c) == b"GenuineIntel"
    assert highest == cpuid.HIGHEST_BASIC


def test_the_brand_is_three_leaves_long() -> None:
    leaves = [cpuid.LEAVES[0x80000002 + n] for n in range(3)]
    assert b"".join(letters(*leaf) for leaf in leaves) == cpuid.BRAND


def test_a_signature_is_read_in_order() -> None:
    highest, b, c, d = cpuid.signature_leaf(0x40000005, b"XenVMMXenVMM")
    assert (highest, letters(b, c, d)) == (0x40000005, b"XenVMMXenVMM")


def test_the_caches_end_with_an_empty_subleaf() -> None:
    assert [cpuid.CACHES[n][0] & 0x1F for n in range(3)] == [1, 2, 3]
    assert 3 not in cpuid.CACHES
