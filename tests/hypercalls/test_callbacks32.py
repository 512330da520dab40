"""hypercalls/callbacks.py and pv_misc.py, as a 32-bit guest calls them."""

from __future__ import annotations

import struct

import pytest

from fakes32 import make_pv32_current
from hypercalls import TABLE
from xenemu.abi.arch_x86.xen import FLAT_RING1_CS
from xenemu.abi.callback import (
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
)
from xenemu.abi.errno import EFAULT, EINVAL, ENOSYS
from xenemu.abi.xen import Nr
from xenemu.hv.current import Current
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags

ARGUMENT, ADDRESS = 0x30000, 0xC100_0000


@pytest.fixture
def current() -> Current:
    return make_pv32_current()


def call(current: Current, number: int, *registers: int) -> int:
    return TABLE.call(current, number, [*registers, 0, 0, 0, 0, 0, 0])


def refused(current: Current, errno: int, number: int, *registers: int) -> None:
    state = repr(pv(current))
    assert call(current, number, *registers) == -errno
    assert repr(pv(current)) == state


def register(current: Current, kind: int, flag: int = 0, cs: int = 9) -> None:
    current.write(ARGUMENT, struct.pack("<HHII", kind, flag, cs, ADDRESS))


@pytest.mark.parametrize(("cs", "kept"), [(0x08, 0x09), (0x09, 0x09), (0x0A, 0x0A), (0x0B, 0x0B)])
def test_a_handlers_code_is_never_xens_ring(current: Current, cs: int, kept: int) -> None:
    current.write(ARGUMENT, struct.pack("<BBHI", 0x80, 7, cs, ADDRESS) + bytes(8))
    assert call(current, Nr.set_trap_table, ARGUMENT) == 0
    assert pv(current).traps == {0x80: Trap(kept, ADDRESS, 3, mask_events=True)}


def test_a_trap_table_that_cannot_be_read_keeps_what_it_had(current: Current) -> None:
    refused(current, EFAULT, Nr.set_trap_table, 0xF5800000)


def test_the_classic_callbacks_have_their_segments_first(current: Current) -> None:
    assert call(current, Nr.set_callbacks, 0x08, ADDRESS, 0x11, ADDRESS + 1) == 0
    assert pv(current).event_callback == Trap(0x09, ADDRESS, mask_events=True)
    assert pv(current).failsafe_callback == Trap(0x11, ADDRESS + 1)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (CALLBACKTYPE_failsafe, "failsafe_callback"),
        (CALLBACKTYPE_syscall32, "syscall32_callback"),
        (CALLBACKTYPE_sysenter, "sysenter_callback"),
    ],
)
@pytest.mark.parametrize("masks", [False, True])
def test_a_callback_is_a_segment_and_an_address(
    current: Current, kind: int, name: str, masks: bool
) -> None:
    register(current, kind, CALLBACKF_mask_events if masks else 0)
    assert call(current, Nr.callback_op, CALLBACKOP_register, ARGUMENT) == 0
    assert getattr(pv(current), name) == Trap(9, ADDRESS, mask_events=masks)


def test_the_event_callback_always_masks(current: Current) -> None:
    register(current, CALLBACKTYPE_event)
    assert call(current, Nr.callback_op, CALLBACKOP_register, ARGUMENT) == 0
    assert pv(current).event_callback == Trap(9, ADDRESS, mask_events=True)


def test_an_nmi_is_taken_in_xens_flat_segment(current: Current) -> None:
    expected = {flags.NMI: Trap(FLAT_RING1_CS, ADDRESS, mask_events=True)}
    register(current, CALLBACKTYPE_nmi)
    assert call(current, Nr.callback_op, CALLBACKOP_register, ARGUMENT) == 0
    assert pv(current).traps == expected
    pv(current).traps.clear()
    current.write(ARGUMENT, struct.pack("<II", ADDRESS, 0))
    assert call(current, Nr.nmi_op, 0, ARGUMENT) == 0
    assert pv(current).traps == expected


@pytest.mark.parametrize("command", [CALLBACKOP_register, CALLBACKOP_unregister])
@pytest.mark.parametrize("kind", [CALLBACKTYPE_syscall, 9])
def test_there_is_no_callback_for_64_bit_syscalls(
    current: Current, command: int, kind: int
) -> None:
    register(current, kind)
    refused(current, ENOSYS, Nr.callback_op, command, ARGUMENT)


@pytest.mark.parametrize("kind", [CALLBACKTYPE_event, CALLBACKTYPE_syscall32])
def test_callbacks_cannot_be_forgotten(current: Current, kind: int) -> None:
    register(current, kind)
    refused(current, EINVAL, Nr.callback_op, CALLBACKOP_unregister, ARGUMENT)


@pytest.mark.parametrize(("ss", "kept"), [(0x10, 0x11), (0x11, 0x11), (0x13, 0x13)])
def test_the_kernel_stack_is_never_in_xens_ring(current: Current, ss: int, kept: int) -> None:
    assert call(current, Nr.stack_switch, ss, 0x1234) == 0
    assert (pv(current).kernel_ss, pv(current).kernel_sp) == (kept, 0x1234)


def test_a_32_bit_guest_has_no_segment_bases(current: Current) -> None:
    refused(current, ENOSYS, Nr.set_segment_base, 0, 0)


def test_an_unknown_command_is_invalid(current: Current) -> None:
    """Xen's two handlers differ: a 64-bit guest gets ENOSYS."""
    refused(current, EINVAL, Nr.callback_op, 2, ARGUMENT)
