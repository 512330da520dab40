"""hypercalls/pv_misc.py"""

from __future__ import annotations

import pytest

from fakes import FakeCpu, make_pv_current
from hypercalls import TABLE
from xenemu.abi.errno import EINVAL, ENODEV, EPERM
from xenemu.abi.xen import Nr
from xenemu.hv.current import Current
from xenemu.pv.state import DR7_DEFAULT, pv


@pytest.fixture
def current() -> Current:
    return make_pv_current()


def call(current: Current, number: int, *args: int) -> int:
    return TABLE.call(current, number, [*args, *[0] * (6 - len(args))])


def test_the_kernels_stack_is_kept(current: Current) -> None:
    assert call(current, Nr.stack_switch, 0xE028, 0xFFFF_8888_0000_0000) == 0
    assert (pv(current).kernel_ss, pv(current).kernel_sp) == (0xE02B, 0xFFFF_8888_0000_0000)


@pytest.mark.parametrize(("value", "wanted"), [(1, True), (8, True), (0, False), (1 << 32, False)])
def test_the_fpu_is_taken_and_given(current: Current, value: int, wanted: bool) -> None:
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.task_switched = pv(current).task_switched = not wanted
    assert call(current, Nr.fpu_taskswitch, value) == 0
    assert (current.cpu.task_switched, pv(current).task_switched) == (wanted, wanted)


def test_debug_registers(current: Current) -> None:
    assert call(current, Nr.set_debugreg, 1, 0xFFFF_FFFF_8100_0000) == 0
    assert call(current, Nr.get_debugreg, 1) == 0xFFFF_FFFF_8100_0000
    assert call(current, Nr.get_debugreg, 7) == DR7_DEFAULT


@pytest.mark.parametrize(
    ("index", "value", "errno"),
    [(0, 1 << 47, EPERM), (7, 1 << 13, EPERM), (6, 1 << 32, EINVAL), (8, 0, ENODEV)],
)
def test_debug_registers_refuse(current: Current, index: int, value: int, errno: int) -> None:
    state, cpu = repr(pv(current)), repr(current.cpu)
    assert call(current, Nr.set_debugreg, index, value) == -errno
    assert (repr(pv(current)), repr(current.cpu)) == (state, cpu)


@pytest.mark.parametrize("index", [8, 0xFFFFFFFF])
def test_there_is_no_such_debug_register(current: Current, index: int) -> None:
    assert call(current, Nr.get_debugreg, index) == -ENODEV
