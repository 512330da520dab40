"""hv/domain: the gate to guest memory."""

from __future__ import annotations

import pytest

from fakes import READ_ONLY, make_current
from xenemu.abi.callback import callback_unregister
from xenemu.abi.errno import EFAULT
from xenemu.errors import XenError
from xenemu.hv.current import Current

BEFORE_READ_ONLY = min(READ_ONLY) - 4
END = 80 * 4096  # of the fake's memory


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    return make_current(request.param)


def test_a_read_crosses_pages(current: Current) -> None:
    current.domain.memory.bytes[0x10FFE:0x11002] = b"abcd"
    assert current.read(0x10FFE, 4) == b"abcd"


def test_a_write_crosses_pages(current: Current) -> None:
    current.write(0x10FFE, b"abcd")
    assert bytes(current.domain.memory.bytes[0x10FFE:0x11002]) == b"abcd"


@pytest.mark.parametrize("vaddr", [BEFORE_READ_ONLY, END - 4])
def test_nothing_is_written_if_a_later_page_refuses(current: Current, vaddr: int) -> None:
    before = bytes(current.domain.memory.bytes)
    with pytest.raises(XenError) as refusal:
        current.write(vaddr, b"12345678")
    assert refusal.value.errno == EFAULT
    assert bytes(current.domain.memory.bytes) == before


@pytest.mark.parametrize("vaddr", [-1, END - 1, END, 1 << 47, (1 << 64) - 1, 1 << 64])
def test_what_is_not_mapped_cannot_be_read(current: Current, vaddr: int) -> None:
    with pytest.raises(XenError) as refusal:
        current.read(vaddr, 2)
    assert refusal.value.errno == EFAULT


def test_nothing_can_be_copied_anywhere(current: Current) -> None:
    assert current.read(1 << 60, 0) == b""
    current.write(1 << 60, b"")


def test_a_huge_read_stops_at_the_first_page_that_refuses(current: Current) -> None:
    with pytest.raises(XenError):
        current.read(END, 1 << 62)


def test_longs_have_the_guests_width(current: Current) -> None:
    width = current.vcpu.width
    current.write(0x10000, bytes(16))
    current.write_ulong(0x10000, -1)
    assert current.read(0x10000, 16) == b"\xff" * width + bytes(16 - width)
    assert current.read_ulong(0x10000) == (1 << 8 * width) - 1


def test_a_struct_that_straddles_pages_goes_both_ways(current: Current) -> None:
    current.write_struct(0x10FFE, callback_unregister(3, 4))
    assert current.read_struct(callback_unregister, 0x10FFE) == callback_unregister(3, 4)


def test_the_log_of_refusals_is_bounded(current: Current) -> None:
    for n in range(1000):
        current.log(str(n))
    assert len(current.domain.refusals) < 100
    assert current.domain.refusals[-1] == "999"
