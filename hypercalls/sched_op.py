"""Scheduler operations: yield, block, poll, shut down, watchdogs.

Header: public/sched.h
In Xen: common/sched/core.c, common/sched/compat.c
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import EINVAL, ENOSPC, ENOSYS, EPERM, ESRCH
from xenemu.abi.sched import (
    SCHEDOP_block,
    SCHEDOP_pin_override,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    sched_poll,
    sched_remote_shutdown,
    sched_shutdown,
    sched_watchdog,
)
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv import event_channel, scheduler, waking
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, PV, ULONG, Hypercall, SubOps
from xenemu.hv.prices import YIELD_NS
from xenemu.hv.shared_info import event_pending, set_upcall_mask
from xenemu.hv.state.domain import DOM0
from xenemu.pvh.callbacks import interrupt_due

ops = SubOps("sched_op")

MAX_POLL_PORTS: Final = 128
NR_DOMAIN_WATCHDOG_TIMERS: Final = 2
NS_PER_S: Final = 1_000_000_000


@ops.sub(SCHEDOP_yield)
def yield_(current: Current, pointer: int) -> None:
    """Let other vcpus run."""
    current.cpu.spend(YIELD_NS)
    if any(vcpu.runnable for vcpu in current.domain.vcpus if vcpu is not current.vcpu):
        current.cpu.stop()


@ops.sub(SCHEDOP_block)
def block(current: Current, pointer: int) -> None:
    """Unmask upcalls, and wait for one unless one is due.

    A PVH guest may not let interrupts in at present. Then it waits even if one is pending, for
    another.
    """
    set_upcall_mask(current.domain, current.vcpu, False)
    if not _upcall_due(current):
        scheduler.block(current)


def _upcall_due(current: Current) -> bool:
    """Whether the vcpu would hear of an event at once."""
    if current.domain.p2m is None:
        return event_pending(current.domain, current.vcpu)
    return interrupt_due(current)


@ops.sub(SCHEDOP_shutdown, sched_shutdown)
def shutdown(current: Current, op: sched_shutdown) -> None:
    """End the domain; Xen takes the reason's low byte."""
    scheduler.shutdown(current.domain, op.reason & 0xFF)
    current.cpu.stop()


@ops.sub(SCHEDOP_poll, sched_poll)
def poll(current: Current, op: sched_poll) -> None:
    """Wait for an event on one of some ports, masked or not, or until a time.

    EINVAL: too many ports, or no such port; EFAULT.
    """
    domain, vcpu = current.domain, current.vcpu
    current.cpu.spend(YIELD_NS)
    if op.nr_ports > MAX_POLL_PORTS:
        raise XenError(EINVAL, f"{op.nr_ports} ports to poll: {MAX_POLL_PORTS} are allowed")
    if _upcall_due(current):
        return
    port = waking.ANY_PORT
    for index in range(op.nr_ports):
        port = current.read_uint(op.ports + 4 * index, 4)
        if event_channel.is_pending(domain, port):
            return
    # With several ports, an event on any other one ends the wait too, as the ABI allows.
    waited_for = port if op.nr_ports == 1 else waking.ANY_PORT
    if op.timeout:
        domain.timers.set((waking.POLL, vcpu.vcpu_id), op.timeout)
    scheduler.block(current, frozenset({waited_for}))


@ops.sub(
    SCHEDOP_remote_shutdown, sched_remote_shutdown, answer=EPERM, note="for the control domain"
)
def remote_shutdown(current: Current, op: sched_remote_shutdown) -> None:
    """Refuse: only a control domain may. ESRCH: no such domain; EPERM: not even oneself."""
    if op.domain_id not in (DOM0, current.domain.domid):
        raise XenError(ESRCH, f"there is no domain {op.domain_id}")
    raise XenError(EPERM, "only a control domain shuts down others")


@ops.sub(SCHEDOP_shutdown_code, sched_shutdown)
def shutdown_code(current: Current, op: sched_shutdown) -> None:
    """Choose the reason of a shutdown to come, unless one is chosen."""
    scheduler.choose_shutdown_code(current.domain, op.reason & 0xFF)


@ops.sub(SCHEDOP_watchdog, sched_watchdog)
def watchdog(current: Current, op: sched_watchdog) -> int:
    """Start (id 0; return its id), move or stop (timeout 0) a watchdog.

    EINVAL: no such watchdog, or it is not running; ENOSPC: all are.
    """
    timers = current.domain.timers
    deadline_ns = current.cpu.now_ns + op.timeout * NS_PER_S
    if op.id > NR_DOMAIN_WATCHDOG_TIMERS:
        raise XenError(EINVAL, f"there is no watchdog {op.id}")
    if op.id == 0:
        for number in range(1, NR_DOMAIN_WATCHDOG_TIMERS + 1):
            if (scheduler.WATCHDOG, number) not in timers.deadlines_ns:
                timers.set((scheduler.WATCHDOG, number), deadline_ns)
                return number
        raise XenError(ENOSPC, f"all {NR_DOMAIN_WATCHDOG_TIMERS} watchdogs are in use")
    key = (scheduler.WATCHDOG, op.id)
    if key not in timers.deadlines_ns:
        raise XenError(EINVAL, f"watchdog {op.id} is not running")
    if op.timeout:
        timers.set(key, deadline_ns)
    else:
        timers.cancel(key)
    return 0


ops.answer(SCHEDOP_pin_override, "pin_override", EPERM, "for the hardware domain")


def compat(current: Current, command: int, argument: int) -> int | None:
    """The oldest form: the reason of a shutdown is passed by value."""
    if command in (SCHEDOP_yield, SCHEDOP_block):
        return ops(current, command, 0)
    if command == SCHEDOP_shutdown:
        shutdown(current, sched_shutdown(argument & 0xFF))
        return 0
    raise XenError(ENOSYS, f"the compat form has no command {command}")


sched_op = Hypercall(Nr.sched_op, "sched_op", ALL, (INT, PTR), ops)
sched_op_compat = Hypercall(Nr.sched_op_compat, "sched_op_compat", PV, (INT, ULONG), compat)
