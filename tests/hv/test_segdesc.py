"""hv/segdesc: Xen's rules for a guest's own descriptors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenemu.hv.segdesc import check_descriptor, descriptor_refusal, gate_selector_okay
from xenemu.x86 import segment

CODE64_RING0 = 0x00AF9B000000FFFF
CODE64_RING3 = 0x00AFFB000000FFFF
CODE32_RING0 = 0x00CF9B000000FFFF
DATA_RING0 = 0x00CF93000000FFFF
TSS = 0x0000890000000067
CALL_GATE = 0x0000EC00_0010_1234  # DPL 3, selector 0x10
NOT_PRESENT_TSS = TSS & ~(segment.PRESENT << 32)


def test_what_is_not_present_is_free() -> None:
    assert check_descriptor(NOT_PRESENT_TSS, 8) == NOT_PRESENT_TSS


def test_a_64_bit_guests_segments_are_raised_to_ring_3() -> None:
    assert check_descriptor(CODE64_RING0, 8) == CODE64_RING3


def test_a_32_bit_guests_segments_are_raised_to_ring_1() -> None:
    checked = check_descriptor(CODE32_RING0, 4)
    assert checked is not None
    assert segment.dpl(checked >> 32) == 1


def test_a_32_bit_guest_has_no_64_bit_code() -> None:
    assert check_descriptor(CODE64_RING3, 4) is None


@pytest.mark.parametrize("width", [8, 4])
def test_system_segments_are_refused(width: int) -> None:
    assert check_descriptor(TSS, width) is None


def test_the_second_half_of_a_call_gate_passes() -> None:
    second_half = segment.PRESENT << 32 | 0xFFFF8000
    assert check_descriptor(second_half, 8) == second_half


def test_a_call_gates_dpl_moves_into_its_selector() -> None:
    assert check_descriptor(CALL_GATE, 8) == 0x00008C00_0013_1234


def test_a_call_gates_dpl_is_raised_before_it_moves() -> None:
    ring0 = CALL_GATE & ~(segment.DPL << 32)
    assert check_descriptor(ring0, 8) == 0x00008C00_0013_1234
    assert check_descriptor(ring0, 4) == 0x00008C00_0011_1234


def test_a_call_gates_reserved_bits_are_zero() -> None:
    assert check_descriptor(CALL_GATE | 0x10 << 32, 8) is None
    assert check_descriptor(CALL_GATE | 0x10 << 32, 4) is not None
    assert check_descriptor(CALL_GATE | 0x20 << 32, 4) is None


@pytest.mark.parametrize(
    ("descriptor", "width", "why"),
    [
        (CODE64_RING3, 4, "64-bit code in a 32-bit guest"),
        (TSS, 8, "call gates alone, not 0x9"),
        (CALL_GATE & ~0xFFFF0000 | 0xE008 << 16, 8, "leads to 0xe008, which is Xen's"),
        (CALL_GATE | 0x10 << 32, 8, "has parameters"),
    ],
)
def test_a_refusal_says_what_is_wrong(descriptor: int, width: int, why: str) -> None:
    assert check_descriptor(descriptor, width) is None
    assert why in descriptor_refusal(descriptor, width)


@pytest.mark.parametrize(
    ("selector", "width", "okay"),
    [
        (0x0010, 8, True),
        (0xDFFB, 8, True),  # the guest's last
        (0xE033, 8, True),
        (0xE030, 8, False),  # Xen's, but not by that privilege level
        (0xE023, 8, False),
        (0xE008, 8, False),
        (0xE00C, 8, True),  # in the LDT
        (0xE019, 4, True),
        (0xE033, 4, False),
    ],
)
def test_a_gate_leads_to_the_guests_own_code_or_xens_flat_one(
    selector: int, width: int, okay: bool
) -> None:
    assert gate_selector_okay(selector, width) is okay


def test_an_old_pae_guests_segments_reach_todays_m2p() -> None:
    old = 0x00CF9B000000FFFF & ~0x000F00000000FFFF | 0x0F6800 & 0xFFFF | 0xF << 48
    checked = check_descriptor(old, 4)
    assert checked is not None
    assert segment.limit(checked) == 0xFFFFFFFF


def test_a_short_pae_segment_stays_short() -> None:
    short = 0x00C09B0000001000
    checked = check_descriptor(short, 4)
    assert checked is not None
    assert segment.limit(checked) == segment.limit(short)


@given(st.integers(0, (1 << 64) - 1), st.sampled_from([8, 4]))
def test_no_descriptor_is_wrongly_privileged(descriptor: int, width: int) -> None:
    checked = check_descriptor(descriptor, width)
    if checked is None or not checked >> 32 & segment.PRESENT:
        return
    assert checked < 1 << 64
    if checked >> 32 & segment.S:
        assert segment.dpl(checked >> 32) >= (3 if width == 8 else 1)
    elif checked >> 32 & segment.TYPE:
        assert segment.dpl(checked >> 32) == 0
    assert check_descriptor(checked, width) is not None
