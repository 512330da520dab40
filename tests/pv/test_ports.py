"""pv/ports: what a domU finds there."""

from __future__ import annotations

import pytest

from fakes import make_pv_current
from xenemu.hv.current import Current
from xenemu.pv import ports
from xenemu.pv.state import pv_domain


@pytest.fixture
def current() -> Current:
    return make_pv_current()


@pytest.mark.parametrize("port", [0, 0x42, 0x61, 0x71, 0xCFC, 0xFFFF])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_nothing_is_there(current: Current, port: int, size: int) -> None:
    before = repr(pv_domain(current))
    ports.write(current, port, size, 0)
    assert ports.read(current, port, size) == (1 << 8 * size) - 1
    assert repr(pv_domain(current)) == before


def test_the_cmos_index_is_remembered(current: Current) -> None:
    ports.write(current, 0x70, 1, 0x8F)
    assert ports.read(current, 0x70, 1) == 0x8F
    assert ports.read(current, 0x70, 2) == 0xFF8F
    ports.write(current, 0x6F, 2, 0x1234)
    assert ports.read(current, 0x6E, 4) == 0xFF12FFFF


def test_the_pci_address_is_remembered_as_a_whole(current: Current) -> None:
    ports.write(current, 0xCF8, 4, 0x80001234)
    assert ports.read(current, 0xCF8, 4) == 0x80001234
    ports.write(current, 0xCF8, 1, 0)
    assert ports.read(current, 0xCF8, 1) == 0xFF
    assert ports.read(current, 0xCF8, 4) == 0x80001234
