"""hypercalls/callbacks.py"""

from __future__ import annotations

import pytest

from fakes import make_pv_current
from hypercalls import TABLE
from hypercalls.callbacks import callback_op, nmi_op, set_trap_table
from xenemu.abi.arch_x86.xen import FLAT_RING3_CS64, TI_IF, trap_info
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
    CALLBACKTYPE_sysenter_deprecated,
    callback_register,
    callback_unregister,
)
from xenemu.abi.errno import EFAULT, EINVAL, ENOSYS
from xenemu.abi.nmi import (
    XENNMI_register_callback,
    XENNMI_unregister_callback,
    xennmi_callback,
)
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue, Hypercall
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags

ARGUMENT, ADDRESS, BAD = 0x30000, 0xFFFF_FFFF_8100_0000, 1 << 47
END = 80 << 12


@pytest.fixture
def current() -> Current:
    return make_pv_current(vcpus=2)


def call(current: Current, row: Hypercall, *args: int) -> int:
    assert row.handler is not None
    return row.handler(current, *args) or 0


def refused(current: Current, errno: int, row: Hypercall, *args: int) -> None:
    state = repr(pv(current))
    with pytest.raises(XenError) as refusal:
        call(current, row, *args)
    assert refusal.value.errno == errno
    assert repr(pv(current)) == state


# set_trap_table.


def test_an_event_interrupts_it(current: Current) -> None:
    size = trap_info.sizeof(8)
    for vector in range(2):
        entry = trap_info(vector, 0, FLAT_RING3_CS64, ADDRESS)
        current.write_struct(ARGUMENT + vector * size, entry)
    current.domain.memory.bytes[current.vcpu.info] = 1
    with pytest.raises(Continue) as again:
        call(current, set_trap_table, ARGUMENT)
    assert again.value.new_args == (ARGUMENT + size,)
    assert list(pv(current).traps) == [0]


def put_traps(current: Current, *traps: trap_info, at: int = ARGUMENT) -> None:
    for number, trap in enumerate(traps):
        current.write_struct(at + 16 * number, trap)


def test_traps_are_set_up_to_address_0(current: Current) -> None:
    put_traps(
        current,
        trap_info(14, TI_IF, 0x10, ADDRESS),
        trap_info(3, 3, 0x10, ADDRESS + 1),
        trap_info(0, 0, 0, 0),
        trap_info(4, 0, 0x10, ADDRESS),
    )
    call(current, set_trap_table, ARGUMENT)
    assert pv(current).traps == {
        14: Trap(0x13, ADDRESS, dpl=0, mask_events=True),
        3: Trap(0x13, ADDRESS + 1, dpl=3, mask_events=False),
    }


def test_a_later_table_adds_to_an_earlier_one(current: Current) -> None:
    put_traps(current, trap_info(1, 0, 0, ADDRESS), trap_info(0, 0, 0, 0))
    call(current, set_trap_table, ARGUMENT)
    put_traps(current, trap_info(2, 0, 0, ADDRESS))
    call(current, set_trap_table, ARGUMENT)
    assert sorted(pv(current).traps) == [1, 2]


def test_a_null_table_clears_all(current: Current) -> None:
    pv(current).traps[14] = Trap(0, ADDRESS)
    call(current, set_trap_table, 0)
    assert pv(current).traps == {}


@pytest.mark.parametrize("at", [END - 16, END - 8 - 16])
def test_traps_before_one_that_cannot_be_read_are_set(current: Current, at: int) -> None:
    put_traps(current, trap_info(1, 0, 0, ADDRESS), at=at)
    with pytest.raises(XenError) as refusal:
        call(current, set_trap_table, at)
    assert refusal.value.errno == EFAULT
    assert sorted(pv(current).traps) == [1]


def test_traps_before_one_that_is_refused_are_set(current: Current) -> None:
    put_traps(current, trap_info(1, 0, 0, ADDRESS), trap_info(2, 0, 0, BAD))
    with pytest.raises(XenError) as refusal:
        call(current, set_trap_table, ARGUMENT)
    assert refusal.value.errno == EINVAL
    assert sorted(pv(current).traps) == [1]


@pytest.mark.parametrize("pointer", [END, BAD, (1 << 64) - 1])
def test_a_table_that_is_not_there(current: Current, pointer: int) -> None:
    refused(current, EFAULT, set_trap_table, pointer)


def test_a_table_without_an_end_goes_on_piece_by_piece(current: Current) -> None:
    put_traps(current, *[trap_info(7, 0, 0, ADDRESS)] * 600)
    with pytest.raises(Continue) as again:
        call(current, set_trap_table, ARGUMENT)
    assert again.value.new_args == (ARGUMENT + 256 * 16,)


# Callbacks.


def seen(trap: Trap) -> tuple[int, bool]:
    return trap.address, trap.mask_events


def register(current: Current, kind: int, address: int, how: int = 0) -> int:
    current.write_struct(ARGUMENT, callback_register(kind, how, address.to_bytes(8, "little")))
    return call(current, callback_op, CALLBACKOP_register, ARGUMENT)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (CALLBACKTYPE_failsafe, "failsafe_callback"),
        (CALLBACKTYPE_syscall, "syscall_callback"),
        (CALLBACKTYPE_syscall32, "syscall32_callback"),
        (CALLBACKTYPE_sysenter, "sysenter_callback"),
    ],
)
def test_a_callback_masks_events_if_asked(current: Current, kind: int, field: str) -> None:
    register(current, kind, ADDRESS, CALLBACKF_mask_events)
    assert seen(getattr(pv(current), field)) == (ADDRESS, True)
    register(current, kind, ADDRESS)
    assert seen(getattr(pv(current), field)) == (ADDRESS, False)


def test_an_event_callback_always_masks_events(current: Current) -> None:
    register(current, CALLBACKTYPE_event, ADDRESS)
    assert seen(pv(current).event_callback) == (ADDRESS, True)


def test_an_nmi_callback_is_a_trap(current: Current) -> None:
    register(current, CALLBACKTYPE_nmi, ADDRESS)
    assert pv(current).traps[flags.NMI] == Trap(FLAT_RING3_CS64, ADDRESS, mask_events=True)


@pytest.mark.parametrize(
    ("kind", "address", "errno"),
    [
        (CALLBACKTYPE_event, BAD, EINVAL),
        (99, BAD, EINVAL),
        (99, ADDRESS, ENOSYS),
        (CALLBACKTYPE_sysenter_deprecated, ADDRESS, ENOSYS),
    ],
)
def test_a_callback_is_refused(current: Current, kind: int, address: int, errno: int) -> None:
    current.write_struct(ARGUMENT, callback_register(kind, 0, address.to_bytes(8, "little")))
    refused(current, errno, callback_op, CALLBACKOP_register, ARGUMENT)


@pytest.mark.parametrize("kind", [0, 1, 2, 5, 7])
def test_most_callbacks_cannot_be_forgotten(current: Current, kind: int) -> None:
    register(current, kind, ADDRESS)
    current.write_struct(ARGUMENT, callback_unregister(kind, 0))
    refused(current, EINVAL, callback_op, CALLBACKOP_unregister, ARGUMENT)


def test_an_nmi_callback_can_be_forgotten(current: Current) -> None:
    register(current, CALLBACKTYPE_nmi, ADDRESS)
    current.write_struct(ARGUMENT, callback_unregister(CALLBACKTYPE_nmi, 0))
    for _ in range(2):
        call(current, callback_op, CALLBACKOP_unregister, ARGUMENT)
        assert flags.NMI not in pv(current).traps


@pytest.mark.parametrize("kind", [CALLBACKTYPE_sysenter_deprecated, 6, 8, 0xFFFF])
def test_there_is_no_such_callback_to_forget(current: Current, kind: int) -> None:
    current.write_struct(ARGUMENT, callback_unregister(kind, 0))
    refused(current, ENOSYS, callback_op, CALLBACKOP_unregister, ARGUMENT)


@pytest.mark.parametrize(("command", "pointer", "errno"), [(0, END, EFAULT), (2, 0, ENOSYS)])
def test_callback_op_refuses(current: Current, command: int, pointer: int, errno: int) -> None:
    refused(current, errno, callback_op, command, pointer)


def test_set_callbacks_sets_the_three_classic_ones(current: Current) -> None:
    TABLE.call(current, Nr.set_callbacks, [ADDRESS, ADDRESS + 1, ADDRESS + 2, 0, 0, 0])
    state = pv(current)
    assert seen(state.event_callback) == (ADDRESS, True)
    assert seen(state.failsafe_callback) == (ADDRESS + 1, False)
    assert seen(state.syscall_callback) == (ADDRESS + 2, False)


def test_set_callbacks_skips_one_that_is_impossible(current: Current) -> None:
    assert TABLE.call(current, Nr.set_callbacks, [ADDRESS, BAD, ADDRESS + 2, 0, 0, 0]) == 0
    assert pv(current).failsafe_callback.address == 0
    assert pv(current).syscall_callback.address == ADDRESS + 2


# nmi_op.


@pytest.mark.parametrize("vcpu", [0, 1])
def test_nmi_op_is_for_the_vcpu_that_calls(current: Current, vcpu: int) -> None:
    current.vcpu = current.domain.vcpus[vcpu]
    current.write_struct(ARGUMENT, xennmi_callback(ADDRESS, 0))
    call(current, nmi_op, XENNMI_register_callback, ARGUMENT)
    assert pv(current).traps[flags.NMI].address == ADDRESS
    call(current, nmi_op, XENNMI_unregister_callback, 0)
    assert flags.NMI not in pv(current).traps


@pytest.mark.parametrize(
    ("command", "pointer", "errno"),
    [(XENNMI_register_callback, END, EFAULT), (2, ARGUMENT, ENOSYS)],
)
def test_nmi_op_refuses(current: Current, command: int, pointer: int, errno: int) -> None:
    refused(current, errno, nmi_op, command, pointer)


def test_an_nmi_handler_has_a_canonical_address(current: Current) -> None:
    current.write_struct(ARGUMENT, xennmi_callback(BAD, 0))
    refused(current, EINVAL, nmi_op, XENNMI_register_callback, ARGUMENT)
