"""pv/debug_registers: debug registers."""

from __future__ import annotations

import pytest

from fakes import make_pv_current
from fakes32 import make_pv32_current
from xenemu.abi.arch_x86.xen import (
    HYPERVISOR_COMPAT_VIRT_START,
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
)
from xenemu.abi.errno import EINVAL, ENODEV, EPERM
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.pv.debug_registers import get_debugreg, io_breakpoints, set_debugreg, take_debug_status
from xenemu.pv.msr import CR4_DE
from xenemu.pv.state import DR6_DEFAULT, DR7_DEFAULT, pv

ENABLE_0, ENABLE_3 = 1 << 0, 1 << 6
IO_0, IO_3 = 2 << 16, 2 << 28
LENGTH_2_OF_3 = 1 << 30


@pytest.fixture
def current() -> Current:
    return make_pv_current()


def refused(current: Current, errno: int, index: int, value: int) -> None:
    state, cpu = repr(pv(current)), repr(current.cpu)
    with pytest.raises(XenError) as refusal:
        set_debugreg(current, index, value)
    assert refusal.value.errno == errno
    assert (repr(pv(current)), repr(current.cpu)) == (state, cpu)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("value", [0, (1 << 47) - 1, HYPERVISOR_VIRT_END, (1 << 64) - 1])
def test_a_breakpoint_is_an_address_of_the_guests(current: Current, index: int, value: int) -> None:
    set_debugreg(current, index, value)
    assert get_debugreg(current, index) == value


@pytest.mark.parametrize("value", [1 << 47, HYPERVISOR_VIRT_START, HYPERVISOR_VIRT_END - 1])
def test_a_breakpoint_on_xen_is_refused(current: Current, value: int) -> None:
    refused(current, EPERM, 2, value)


def test_a_32_bit_guest_has_breakpoints_in_all_it_can_address() -> None:
    current = make_pv32_current()
    set_debugreg(current, 0, HYPERVISOR_COMPAT_VIRT_START)
    assert get_debugreg(current, 0) == HYPERVISOR_COMPAT_VIRT_START


@pytest.mark.parametrize(("alias", "index"), [(4, 6), (5, 7)])
def test_old_names_work_without_debugging_extensions(
    current: Current, alias: int, index: int
) -> None:
    set_debugreg(current, alias, 0x4001)
    assert get_debugreg(current, alias) == get_debugreg(current, index)
    pv(current).cr4 |= CR4_DE
    refused(current, ENODEV, alias, 0)
    with pytest.raises(XenError):
        get_debugreg(current, alias)


@pytest.mark.parametrize("index", [8, 15, 0xFFFFFFFF])
def test_other_registers_do_not_exist(current: Current, index: int) -> None:
    refused(current, ENODEV, index, 0)
    with pytest.raises(XenError) as refusal:
        get_debugreg(current, index)
    assert refusal.value.errno == ENODEV


@pytest.mark.parametrize("index", [6, 7])
def test_the_upper_half_is_reserved(current: Current, index: int) -> None:
    refused(current, EINVAL, index, 1 << 32)


def test_dr6_has_bits_that_are_always_set_or_clear(current: Current) -> None:
    set_debugreg(current, 6, 0)
    assert get_debugreg(current, 6) == DR6_DEFAULT
    set_debugreg(current, 6, 0xFFFFFFFF)
    assert get_debugreg(current, 6) == DR6_DEFAULT | 0xE00F
    assert current.cpu.debug_register(6) == DR6_DEFAULT | 0xE00F


def test_dr7_has_bits_that_are_always_set_or_clear(current: Current) -> None:
    set_debugreg(current, 7, 0xFFFF << 16 & 0x33330000 | 0xDFFF)
    assert get_debugreg(current, 7) == 0x33330000 | 0x3FF | DR7_DEFAULT


def test_general_detect_is_refused(current: Current) -> None:
    refused(current, EPERM, 7, 1 << 13)


def test_an_io_breakpoint_needs_debugging_extensions(current: Current) -> None:
    refused(current, EPERM, 7, IO_0 | ENABLE_0)
    refused(current, EPERM, 7, IO_3 | ENABLE_0)
    set_debugreg(current, 7, IO_3)  # as long as all are off
    assert get_debugreg(current, 7) == IO_3 | DR7_DEFAULT


def test_the_cpu_does_not_see_io_breakpoints(current: Current) -> None:
    pv(current).cr4 |= CR4_DE
    set_debugreg(current, 7, IO_3 | ENABLE_3 | ENABLE_0)
    assert get_debugreg(current, 7) == IO_3 | ENABLE_3 | ENABLE_0 | DR7_DEFAULT
    assert current.cpu.debug_register(7) == IO_3 | ENABLE_0 | DR7_DEFAULT
    set_debugreg(current, 7, 0)
    assert get_debugreg(current, 7) == DR7_DEFAULT


@pytest.mark.parametrize(
    ("port", "size", "hit"),
    [(0x7F, 1, 0), (0x7F, 2, 8), (0x80, 1, 8), (0x81, 4, 8), (0x82, 1, 0)],
)
def test_an_io_breakpoint_covers_its_width(
    current: Current, port: int, size: int, hit: int
) -> None:
    pv(current).cr4 |= CR4_DE
    set_debugreg(current, 3, 0x80)
    set_debugreg(current, 7, IO_3 | LENGTH_2_OF_3 | ENABLE_3)
    assert io_breakpoints(current, port, size) == hit
    pv(current).cr4 &= ~CR4_DE
    assert io_breakpoints(current, port, size) == 0


def test_causes_gather_until_the_guest_clears_them(current: Current) -> None:
    current.cpu.set_debug_register(6, DR6_DEFAULT | 1)
    take_debug_status(current)
    current.cpu.set_debug_register(6, DR6_DEFAULT | 0x4000)
    take_debug_status(current)
    assert get_debugreg(current, 6) == DR6_DEFAULT | 0x4001
    set_debugreg(current, 6, 0)
    take_debug_status(current)
    assert get_debugreg(current, 6) == DR6_DEFAULT
