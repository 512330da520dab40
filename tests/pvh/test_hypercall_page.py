"""pvh/hypercall_page: 128 stubs."""

from __future__ import annotations

import pytest

from xenemu.abi.xen import Nr
from xenemu.pvh.hypercall_page import hypercall_page


@pytest.mark.parametrize("number", [0, Nr.hvm_op, 63, 127])
def test_a_stub_calls_its_hypercall(number):
    stub = hypercall_page()[32 * number : 32 * number + 32]
    assert stub == bytes([0xB8, number, 0, 0, 0, 0x0F, 0x01, 0xC1, 0xC3]).ljust(32, b"\xcc")


def test_there_is_no_iret():
    stub = hypercall_page()[32 * Nr.iret : 32 * Nr.iret + 32]
    assert stub == b"\x0f\x0b".ljust(32, b"\xcc")


def test_it_fills_its_page():
    assert len(hypercall_page()) == 4096
