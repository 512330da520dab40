"""hypercalls/sched_op.py"""

from __future__ import annotations

import pytest

from fakes import FakeCpu, make_current
from hypercalls.sched_op import sched_op, sched_op_compat
from xenemu.abi import sched as abi
from xenemu.abi.errno import EFAULT, EINVAL, ENOSPC, ENOSYS, EPERM, ESRCH
from xenemu.abi.layout import Struct
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.current import Current
from xenemu.hv.prices import YIELD_NS
from xenemu.hv.scheduler import WATCHDOG
from xenemu.hv.shared_info import event_pending, set_upcall_mask
from xenemu.hv.waking import ANY_PORT, POLL

ARGUMENT = 0x20000
PORTS = 0x21000
SECOND = 1_000_000_000


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    return make_current(request.param)


def call(current: Current, command: int, op: Struct | None = None) -> int:
    if op is not None:
        current.write_struct(ARGUMENT, op)
    assert sched_op.handler is not None
    return sched_op.handler(current, command, ARGUMENT) or 0


def refused(current: Current, errno: int, command: int, op: Struct) -> None:
    with pytest.raises(XenError) as error:
        call(current, command, op)
    assert error.value.errno == errno
    assert not current.vcpu.blocked
    assert current.domain.shutdown_code is None


def stopped(current: Current) -> bool:
    assert isinstance(current.cpu, FakeCpu)
    return current.cpu.stopped


# Yield and block.


def test_to_yield_is_nothing_without_another_vcpu(current: Current) -> None:
    assert call(current, abi.SCHEDOP_yield) == 0
    assert not stopped(current)


def test_to_yield_and_to_poll_take_time(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    call(current, abi.SCHEDOP_yield)
    assert current.cpu.spent_ns == YIELD_NS
    call(current, abi.SCHEDOP_poll, abi.sched_poll(0, 0, 0))
    assert current.cpu.spent_ns == 2 * YIELD_NS


def test_to_yield_lets_a_runnable_vcpu_run() -> None:
    current = make_current(vcpus=2)
    current.domain.vcpus[1].online = True
    call(current, abi.SCHEDOP_yield)
    assert stopped(current)


def test_block_unmasks_upcalls_and_waits(current: Current) -> None:
    set_upcall_mask(current.domain, current.vcpu, True)
    assert call(current, abi.SCHEDOP_block) == 0
    assert current.vcpu.blocked and stopped(current)
    assert current.domain.memory.bytes[current.vcpu.info + 1] == 0


def test_block_does_not_wait_when_an_upcall_is_due(current: Current) -> None:
    set_upcall_mask(current.domain, current.vcpu, True)
    domain = current.domain
    event_channel.send(domain, event_channel.bind_ipi(domain, 0))
    call(current, abi.SCHEDOP_block)
    assert not current.vcpu.blocked
    assert event_pending(domain, current.vcpu)


# Poll.


def poll(current: Current, ports: list[int], timeout: int = 0) -> abi.sched_poll:
    current.write(PORTS, b"".join(port.to_bytes(4, "little") for port in ports))
    return abi.sched_poll(PORTS, len(ports), timeout)


def test_a_poll_waits_for_its_port(current: Current) -> None:
    port = event_channel.bind_ipi(current.domain, 0)
    call(current, abi.SCHEDOP_poll, poll(current, [port]))
    assert current.vcpu.blocked and current.vcpu.poll_ports == {port}
    event_channel.send(current.domain, port)
    assert not current.vcpu.blocked


def test_a_poll_of_several_ports_ends_with_any_event(current: Current) -> None:
    ports = [event_channel.bind_ipi(current.domain, 0) for _ in range(2)]
    call(current, abi.SCHEDOP_poll, poll(current, ports))
    assert current.vcpu.poll_ports == {ANY_PORT}


def test_a_poll_for_what_is_pending_does_not_wait(current: Current) -> None:
    set_upcall_mask(current.domain, current.vcpu, True)
    port = event_channel.bind_ipi(current.domain, 0)
    event_channel.send(current.domain, port)
    call(current, abi.SCHEDOP_poll, poll(current, [port]))
    assert not current.vcpu.blocked


def test_a_poll_ends_at_its_timeout(current: Current) -> None:
    call(current, abi.SCHEDOP_poll, poll(current, [], timeout=500))
    assert current.domain.timers.deadlines_ns == {(POLL, 0): 500}


@pytest.mark.parametrize(
    ("op", "errno"),
    [
        (abi.sched_poll(PORTS, 129, 0), EINVAL),
        (abi.sched_poll(1 << 30, 1, 0), EFAULT),
        (abi.sched_poll(PORTS, 1, 5), EINVAL),
    ],
)
def test_a_poll_that_is_refused(current: Current, op: abi.sched_poll, errno: int) -> None:
    current.write_uint(PORTS, 4, 64)
    refused(current, errno, abi.SCHEDOP_poll, op)
    assert current.domain.timers.next_ns() is None


# Shutdown.


def test_a_shutdown_stops_the_cpu_with_its_reasons_low_byte(current: Current) -> None:
    call(current, abi.SCHEDOP_shutdown, abi.sched_shutdown(0x103))
    assert current.domain.shutdown_code == abi.SHUTDOWN_crash
    assert stopped(current)


@pytest.mark.parametrize(("domid", "errno"), [(0, EPERM), (1, EPERM), (7, ESRCH), (0x7FF0, ESRCH)])
def test_nobody_else_can_be_shut_down(current: Current, domid: int, errno: int) -> None:
    op = abi.sched_remote_shutdown(domid, abi.SHUTDOWN_poweroff)
    refused(current, errno, abi.SCHEDOP_remote_shutdown, op)


# Watchdogs.


def watchdog(current: Current, number: int, timeout: int) -> int:
    return call(current, abi.SCHEDOP_watchdog, abi.sched_watchdog(number, timeout))


def test_a_new_watchdog_gets_a_number(current: Current) -> None:
    assert [watchdog(current, 0, 5), watchdog(current, 0, 6)] == [1, 2]
    deadlines = {(WATCHDOG, 1): 5 * SECOND, (WATCHDOG, 2): 6 * SECOND}
    assert current.domain.timers.deadlines_ns == deadlines
    refused(current, ENOSPC, abi.SCHEDOP_watchdog, abi.sched_watchdog(0, 5))


def test_a_watchdog_is_moved_and_stopped(current: Current) -> None:
    watchdog(current, 0, 5)
    assert watchdog(current, 1, 9) == 0
    assert current.domain.timers.next_ns() == 9 * SECOND
    watchdog(current, 1, 0)
    assert current.domain.timers.next_ns() is None


@pytest.mark.parametrize("number", [1, 2, 3, 0xFFFFFFFF])
def test_a_watchdog_that_does_not_run_is_not_moved(current: Current, number: int) -> None:
    refused(current, EINVAL, abi.SCHEDOP_watchdog, abi.sched_watchdog(number, 5))


def test_a_domu_pins_nothing(current: Current) -> None:
    refused(current, EPERM, abi.SCHEDOP_pin_override, abi.sched_pin_override(0))


# The compat form.


def test_the_compat_form_has_the_reason_by_value(current: Current) -> None:
    assert sched_op_compat.handler is not None
    sched_op_compat.handler(current, abi.SCHEDOP_shutdown, abi.SHUTDOWN_reboot)
    assert current.domain.shutdown_code == abi.SHUTDOWN_reboot


def test_the_compat_form_has_no_poll(current: Current) -> None:
    assert sched_op_compat.handler is not None
    with pytest.raises(XenError) as error:
        sched_op_compat.handler(current, abi.SCHEDOP_poll, ARGUMENT)
    assert error.value.errno == ENOSYS
    assert not current.vcpu.blocked


def test_the_code_that_was_chosen_counts(current: Current) -> None:
    call(current, abi.SCHEDOP_shutdown_code, abi.sched_shutdown(0x100 | abi.SHUTDOWN_suspend))
    assert current.domain.shutdown_code is None
    call(current, abi.SCHEDOP_shutdown_code, abi.sched_shutdown(abi.SHUTDOWN_reboot))
    call(current, abi.SCHEDOP_shutdown, abi.sched_shutdown(abi.SHUTDOWN_crash))
    assert current.domain.shutdown_code == abi.SHUTDOWN_suspend
