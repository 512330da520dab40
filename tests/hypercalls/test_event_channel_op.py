"""hypercalls/event_channel_op.py"""

from __future__ import annotations

import pytest

from fakes import DOMID, FIRST_GUEST_FRAME, connect_to_dom0, make_current
from hypercalls.event_channel_op import event_channel_op, event_channel_op_compat
from xenemu.abi import event_channel as abi
from xenemu.abi.errno import EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF, Virq
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.p2m import P2m

ARGUMENT = 0x20000
READ_ONLY = 0x5000
DOM0 = 0
STRANGER = 7


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    return make_current(request.param)


def call(current: Current, command: int, op: Struct) -> int:
    current.write_struct(ARGUMENT, op)
    assert event_channel_op.handler is not None
    return event_channel_op.handler(current, command, ARGUMENT) or 0


def refused(current: Current, errno: int, command: int, op: Struct) -> None:
    channels = repr(current.domain.events)
    with pytest.raises(XenError) as error:
        call(current, command, op)
    assert error.value.errno == errno
    assert repr(current.domain.events) == channels


def test_the_port_is_copied_back(current: Current) -> None:
    call(current, abi.EVTCHNOP_bind_ipi, abi.evtchn_bind_ipi(vcpu=0, port=99))
    assert current.read_struct(abi.evtchn_bind_ipi, ARGUMENT).port == 1


@pytest.mark.parametrize("domid", [DOMID_SELF, DOMID])
def test_a_domain_names_itself_in_two_ways(current: Current, domid: int) -> None:
    alloc = abi.evtchn_alloc_unbound(dom=domid, remote_dom=DOMID_SELF, port=0)
    call(current, abi.EVTCHNOP_alloc_unbound, alloc)
    bind = abi.evtchn_bind_interdomain(remote_dom=domid, remote_port=1, local_port=0)
    call(current, abi.EVTCHNOP_bind_interdomain, bind)
    assert current.read_struct(abi.evtchn_bind_interdomain, ARGUMENT).local_port == 2


@pytest.mark.parametrize(("domid", "errno"), [(DOM0, EPERM), (STRANGER, ESRCH)])
def test_only_its_own_ports_are_a_domains_business(
    current: Current, domid: int, errno: int
) -> None:
    for command, op in (
        (abi.EVTCHNOP_alloc_unbound, abi.evtchn_alloc_unbound(domid, 0, 0)),
        (abi.EVTCHNOP_status, abi.evtchn_status(domid, 0, 0, 0, bytes(8))),
        (abi.EVTCHNOP_reset, abi.evtchn_reset(domid)),
    ):
        refused(current, errno, command, op)


def test_a_remote_domain_must_exist(current: Current) -> None:
    bind = abi.evtchn_bind_interdomain(STRANGER, 1, 0)
    refused(current, ESRCH, abi.EVTCHNOP_bind_interdomain, bind)


def status(current: Current, port: int) -> abi.evtchn_status:
    call(current, abi.EVTCHNOP_status, abi.evtchn_status(DOMID_SELF, port, 99, 99, b"\xff" * 8))
    return current.read_struct(abi.evtchn_status, ARGUMENT)


def test_the_status_of_an_unbound_port_is_who_may_bind(current: Current) -> None:
    event_channel.alloc_unbound(current.domain, STRANGER)
    result = status(current, 1)
    assert result.status == abi.EVTCHNSTAT_unbound
    assert result.u[:2] == STRANGER.to_bytes(2, "little")


def test_the_status_of_a_connected_port_is_its_peer(current: Current) -> None:
    port = connect_to_dom0(current.domain, "console")
    result = status(current, port)
    assert result.status == abi.EVTCHNSTAT_interdomain
    assert result.u == b"\0\0\xff\xff" + (32).to_bytes(4, "little")


def test_the_status_of_a_virq_is_its_number(current: Current) -> None:
    port = event_channel.bind_virq(current.domain, Virq.DEBUG, 0)
    result = status(current, port)
    assert (result.status, result.vcpu) == (abi.EVTCHNSTAT_virq, 0)
    assert result.u[:4] == (1).to_bytes(4, "little")


def test_port_0_is_closed(current: Current) -> None:
    assert status(current, 0).status == abi.EVTCHNSTAT_closed


@pytest.mark.parametrize(("pirq", "errno"), [(0, EPERM), (55, EPERM), (56, EINVAL)])
def test_a_pv_guest_binds_no_physical_interrupt(current: Current, pirq: int, errno: int) -> None:
    refused(current, errno, abi.EVTCHNOP_bind_pirq, abi.evtchn_bind_pirq(pirq, 0, 0))


def test_a_translated_guest_binds_one_that_never_comes(current: Current) -> None:
    current.domain.p2m = P2m(range(80))
    call(current, abi.EVTCHNOP_bind_pirq, abi.evtchn_bind_pirq(40, 0, 0))
    assert current.read_struct(abi.evtchn_bind_pirq, ARGUMENT).port == 1
    result = status(current, 1)
    assert result.status == abi.EVTCHNSTAT_pirq
    assert result.u == (40).to_bytes(4, "little") + b"\xff" * 4
    refused(current, EEXIST, abi.EVTCHNOP_bind_pirq, abi.evtchn_bind_pirq(40, 0, 0))
    refused(current, EINVAL, abi.EVTCHNOP_send, abi.evtchn_send(1))
    call(current, abi.EVTCHNOP_bind_vcpu, abi.evtchn_bind_vcpu(1, 0))
    call(current, abi.EVTCHNOP_close, abi.evtchn_close(1))
    call(current, abi.EVTCHNOP_bind_pirq, abi.evtchn_bind_pirq(40, 0, 0))


def test_a_control_block_reports_how_many_bits_a_link_has(current: Current) -> None:
    op = abi.evtchn_init_control(FIRST_GUEST_FRAME, 4096 - 72, 0, 0, bytes(7))
    call(current, abi.EVTCHNOP_init_control, op)
    assert current.read_struct(abi.evtchn_init_control, ARGUMENT).link_bits == 17


@pytest.mark.parametrize(
    ("offset", "vcpu", "errno"), [(4096 - 64, 0, EINVAL), (4, 0, EINVAL), (0, 1, ENOENT)]
)
def test_a_control_block_that_does_not_fit(
    current: Current, offset: int, vcpu: int, errno: int
) -> None:
    op = abi.evtchn_init_control(FIRST_GUEST_FRAME, offset, vcpu, 0, bytes(7))
    refused(current, errno, abi.EVTCHNOP_init_control, op)


def test_an_argument_that_cannot_be_read(current: Current) -> None:
    assert event_channel_op.handler is not None
    with pytest.raises(XenError) as error:
        event_channel_op.handler(current, abi.EVTCHNOP_send, 1 << 30)
    assert error.value.errno == EFAULT


def test_a_reset_that_is_interrupted_goes_on_as_another_command(current: Current) -> None:
    for _ in range(70):
        event_channel.bind_ipi(current.domain, 0)
    current.domain.memory.bytes[current.vcpu.info] = 1
    with pytest.raises(Continue) as again:
        call(current, abi.EVTCHNOP_reset, abi.evtchn_reset(DOMID_SELF))
    assert again.value.new_args == (abi.EVTCHNOP_reset_cont, ARGUMENT)
    current.domain.memory.bytes[current.vcpu.info] = 0
    call(current, abi.EVTCHNOP_reset_cont, abi.evtchn_reset(DOMID_SELF))
    refused(current, EBUSY, abi.EVTCHNOP_reset_cont, abi.evtchn_reset(DOMID_SELF))


def test_an_unknown_command(current: Current) -> None:
    refused(current, ENOSYS, 15, abi.evtchn_close(1))


def test_the_compat_form_has_the_command_in_its_struct(current: Current) -> None:
    current.write(ARGUMENT, bytes((abi.EVTCHNOP_bind_ipi, 0, 0, 0)) + bytes(8))
    assert event_channel_op_compat.handler is not None
    event_channel_op_compat.handler(current, ARGUMENT)
    assert current.read_uint(ARGUMENT + 8, 4) == 1


def test_the_compat_form_ends_with_unmask(current: Current) -> None:
    current.write_uint(ARGUMENT, 4, abi.EVTCHNOP_reset)
    assert event_channel_op_compat.handler is not None
    with pytest.raises(XenError) as error:
        event_channel_op_compat.handler(current, ARGUMENT)
    assert error.value.errno == ENOSYS
