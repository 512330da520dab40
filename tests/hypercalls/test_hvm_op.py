"""hypercalls/hvm_op.py"""

from __future__ import annotations

import pytest

from fakes import FakeCpu, make_current
from hypercalls.hvm_op import hvm_op
from xenemu.abi.errno import EINVAL, ENOSYS, EOPNOTSUPP, ESRCH
from xenemu.abi.hvm import hvm_op as abi
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv.domain import Current

ARGUMENT = 0x20000


@pytest.fixture
def current() -> Current:
    return make_current()


def call(current: Current, command: int, op: Struct) -> int:
    current.write_struct(ARGUMENT, op)
    assert hvm_op.handler is not None
    return hvm_op.handler(current, command, ARGUMENT) or 0


def refused(current: Current, errno: int, command: int, op: Struct) -> None:
    with pytest.raises(XenError) as error:
        call(current, command, op)
    assert error.value.errno == errno
    assert current.read(ARGUMENT, op.sizeof(8)) == op.pack(8)


@pytest.mark.parametrize(
    ("domid", "index", "errno"), [(DOMID_SELF, 1, EINVAL), (7, 1, ESRCH), (7, 39, EINVAL)]
)
def test_a_pv_guest_has_no_parameters(current: Current, domid: int, index: int, errno: int) -> None:
    for command in (abi.HVMOP_get_param, abi.HVMOP_set_param):
        refused(current, errno, command, abi.xen_hvm_param(domid, 0, index, 5))


def test_the_time_is_system_time(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.now_ns = 12345
    call(current, abi.HVMOP_get_time, abi.xen_hvm_get_time(0))
    assert current.read_struct(abi.xen_hvm_get_time, ARGUMENT).now == 12345


@pytest.mark.parametrize(("event", "size"), [(0x1000, 0), (0, 29)])
def test_a_trace_record_has_a_form(current: Current, event: int, size: int) -> None:
    assert call(current, abi.HVMOP_xentrace, abi.xen_hvm_xentrace(0xFFF, 28, bytes(28))) == 0
    refused(current, EINVAL, abi.HVMOP_xentrace, abi.xen_hvm_xentrace(event, size, bytes(28)))


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (abi.HVMOP_flush_tlbs, EINVAL),
        (abi.HVMOP_set_evtchn_upcall_vector, EINVAL),
        (abi.HVMOP_guest_request_vm_event, EINVAL),
        (abi.HVMOP_altp2m, EOPNOTSUPP),
        (2, ENOSYS),
        (99, ENOSYS),
    ],
)
def test_what_is_not_for_a_pv_guest(current: Current, command: int, errno: int) -> None:
    refused(current, errno, command, abi.xen_hvm_evtchn_upcall_vector(0, 0x20))
