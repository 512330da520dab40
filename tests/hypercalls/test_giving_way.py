"""Which hypercalls give the rest of the slice away, because they make another vcpu runnable."""

from __future__ import annotations

import pytest

from fakes import FakeCpu, make_current, make_pv_current
from hypercalls import TABLE
from xenemu.abi.event_channel import EVTCHNOP_send, evtchn_send
from xenemu.abi.vcpu import VCPUOP_send_nmi, VCPUOP_up
from xenemu.abi.xen import Nr
from xenemu.hv import event_channel
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import hypercall
from xenemu.hv.shared_info import set_upcall_mask
from xenemu.hv.state.vcpu import Vcpu
from xenemu.hv.waking import ANY_PORT

ARGUMENT = 0x22000


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    current = make_current(request.param, vcpus=2)
    current.table = TABLE
    other(current).online = True
    return current


def other(current: Current) -> Vcpu:
    return current.domain.vcpus[1]


def call(current: Current, number: Nr, *arguments: int) -> None:
    registers = (Reg.RDI, Reg.RSI, Reg.RDX)
    if current.vcpu.width == 4:
        registers = (Reg.RBX, Reg.RCX, Reg.RDX)
    current.cpu.regs[Reg.RAX] = number
    for register, value in zip(registers, arguments, strict=False):
        current.cpu.regs[register] = value
    hypercall(current, 2)
    assert current.cpu.regs[Reg.RAX] == 0


def gave_way(current: Current) -> bool:
    assert isinstance(current.cpu, FakeCpu)
    stopped, current.cpu.stopped = current.cpu.stopped, False
    return stopped


def send(current: Current, port: int) -> bool:
    current.write_struct(ARGUMENT, evtchn_send(port))
    call(current, Nr.event_channel_op, EVTCHNOP_send, ARGUMENT)
    return gave_way(current)


def test_an_event_to_a_blocked_vcpu(current: Current) -> None:
    port = event_channel.bind_ipi(current.domain, 1)
    other(current).blocked = True
    assert send(current, port) and other(current).runnable


def test_an_event_to_a_vcpu_that_is_not_blocked(current: Current) -> None:
    port = event_channel.bind_ipi(current.domain, 1)
    assert not send(current, port)


def test_an_event_to_a_blocked_vcpu_that_masks_events(current: Current) -> None:
    port = event_channel.bind_ipi(current.domain, 1)
    set_upcall_mask(current.domain, other(current), True)
    other(current).blocked = True
    send(current, port)
    assert other(current).runnable


@pytest.mark.parametrize("polled", ["the port", "any", "another"])
def test_an_event_that_is_polled_for(current: Current, polled: str) -> None:
    port, quiet = (event_channel.bind_ipi(current.domain, 0) for _ in range(2))
    ports = {"the port": port, "any": ANY_PORT, "another": quiet}
    other(current).blocked, other(current).poll_ports = True, frozenset({ports[polled]})
    assert send(current, port) is (polled != "another")
    assert other(current).runnable is (polled != "another")


def test_a_vcpu_that_comes_up(current: Current) -> None:
    other(current).online, other(current).initialised = False, True
    call(current, Nr.vcpu_op, VCPUOP_up, 1)
    assert gave_way(current) and other(current).runnable
    call(current, Nr.vcpu_op, VCPUOP_up, 1)
    assert not gave_way(current)


def test_an_nmi_to_a_blocked_vcpu() -> None:
    current = make_pv_current(vcpus=2)
    current.table = TABLE
    other(current).online = other(current).blocked = True
    call(current, Nr.vcpu_op, VCPUOP_send_nmi, 1)
    assert gave_way(current) and other(current).runnable
