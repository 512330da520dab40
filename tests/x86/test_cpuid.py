"""x86/cpuid: the CPU that guests see."""

from __future__ import annotations

import struct

import pytest

from xenemu.x86 import cpuid

RDRAND, XSAVE, OSXSAVE, AVX, X2APIC = 1 << 30, 1 << 26, 1 << 27, 1 << 28, 1 << 21


def text(*registers: int) -> bytes:
    return struct.pack(f"<{len(registers)}I", *registers)


def test_the_vendor_is_intel() -> None:
    highest, b, c, d = cpuid.cpuid(0, 0)
    assert text(b, d, c) == b"GenuineIntel"
    assert highest == max(leaf for leaf in cpuid.BASIC if leaf < 0x80000000)


def test_what_the_engine_lacks_or_the_host_decides_is_hidden() -> None:
    features = cpuid.cpuid(1, 0)[2]
    assert not features & (RDRAND | XSAVE | OSXSAVE | AVX | X2APIC)
    assert cpuid.cpuid(7, 0) == cpuid.NOTHING


def test_each_vcpu_has_its_own_apic_id() -> None:
    ids = [cpuid.cpuid(1, 0, vcpu)[1] >> 24 for vcpu in range(3)]
    assert ids == [0, 2, 4]


def test_the_brand_is_three_leaves_long() -> None:
    leaves = [cpuid.cpuid(0x80000002 + n, 0) for n in range(3)]
    assert b"".join(text(*leaf) for leaf in leaves) == cpuid.BRAND


@pytest.mark.parametrize("leaf", [0x5, 0xD, 0x17, 0x80000009, 0xFFFFFFFF])
def test_other_leaves_are_empty(leaf: int) -> None:
    assert cpuid.cpuid(leaf, 0) == cpuid.NOTHING


def test_the_caches_end_with_an_empty_subleaf() -> None:
    assert [cpuid.cpuid(4, n)[0] & 0x1F for n in range(4)] == [1, 2, 3, 0]


def test_xens_leaf_says_xen() -> None:
    highest, b, c, d = cpuid.xen_signature(0x40000005)
    assert (highest, text(b, c, d)) == (0x40000005, b"XenVMMXenVMM")


def test_xens_time_scale_makes_a_tsc_tick_a_nanosecond() -> None:
    _, _, multiplier, shift = cpuid.xen_time(1)
    assert (1_000_000_007 << shift) * multiplier >> 32 == 1_000_000_007
    assert cpuid.xen_time(3) == cpuid.NOTHING
