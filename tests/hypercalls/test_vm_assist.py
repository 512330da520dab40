"""hypercalls/vm_assist.py"""

from __future__ import annotations

import pytest

from fakes import make_current
from hypercalls.vm_assist import vm_assist
from xenemu.abi.errno import EINVAL, ENOSYS
from xenemu.abi.features import XENFEAT_auto_translated_physmap
from xenemu.abi.xen import (
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_runstate_update_flag,
    VMASST_TYPE_writable_pagetables,
)
from xenemu.errors import XenError
from xenemu.hv.current import Current


def call(current: Current, command: int, assist: int) -> int | None:
    assert vm_assist.handler is not None
    return vm_assist.handler(current, command, assist)


def refused(current: Current, errno: int, command: int, assist: int) -> None:
    with pytest.raises(XenError) as error:
        call(current, command, assist)
    assert error.value.errno == errno
    assert current.domain.vm_assist == 0


def test_an_assist_is_turned_on_and_off() -> None:
    current = make_current()
    assert call(current, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables) == 0
    assert current.domain.vm_assist == 1 << VMASST_TYPE_writable_pagetables
    call(current, VMASST_CMD_disable, VMASST_TYPE_writable_pagetables)
    assert current.domain.vm_assist == 0


def test_only_64_bit_guests_have_a_strict_m2p() -> None:
    refused(make_current(width=4), EINVAL, VMASST_CMD_enable, VMASST_TYPE_m2p_strict)
    assert call(make_current(width=8), VMASST_CMD_enable, VMASST_TYPE_m2p_strict) == 0


def test_a_translated_guest_has_one_assist() -> None:
    current = make_current()
    current.domain.features = 1 << XENFEAT_auto_translated_physmap
    refused(current, EINVAL, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables)
    assert call(current, VMASST_CMD_enable, VMASST_TYPE_runstate_update_flag) == 0


@pytest.mark.parametrize(
    ("command", "assist", "errno"),
    [(VMASST_CMD_enable, 6, EINVAL), (VMASST_CMD_enable, 0xFFFFFFFF, EINVAL), (2, 2, ENOSYS)],
)
def test_what_there_is_not(command: int, assist: int, errno: int) -> None:
    refused(make_current(), errno, command, assist)
