"""Event channel operations.

Header: public/event_channel.h
In Xen: common/event_channel.c
"""

from __future__ import annotations

from functools import partial
from typing import Final

from xenemu.abi.errno import EINVAL, ENOENT, ENOSYS, EPERM
from xenemu.abi.event_channel import (
    EVTCHN_FIFO_LINK_BITS,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_reset_cont,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
    evtchn_alloc_unbound,
    evtchn_bind_interdomain,
    evtchn_bind_ipi,
    evtchn_bind_pirq,
    evtchn_bind_vcpu,
    evtchn_bind_virq,
    evtchn_close,
    evtchn_expand_array,
    evtchn_init_control,
    evtchn_reset,
    evtchn_send,
    evtchn_set_priority,
    evtchn_status,
    evtchn_unmask,
)
from xenemu.abi.xen import DOMID_SELF, Nr
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, PV, Continue, Hypercall, SubOps
from xenemu.hv.event_fifo import CONTROL_BLOCK_SIZE
from xenemu.hv.foreign import domain_by_any_id
from xenemu.hv.scheduler import hypercall_preempt_check
from xenemu.x86.paging import PAGE_SIZE

ops = SubOps("event_channel_op")

COMPAT_COMMANDS: Final = range(EVTCHNOP_bind_interdomain, EVTCHNOP_unmask + 1)
COMPAT_ARGUMENT: Final = 4  # offset of the union in struct evtchn_op


def _check_own(current: Current, domid: int) -> None:
    """ESRCH: no such domain; EPERM: another, which a domU has no power over."""
    if domain_by_any_id(current, domid) != current.domain.domid:
        raise XenError(EPERM, f"d{domid}'s event channels are not this domain's")


@ops.sub(EVTCHNOP_bind_interdomain, evtchn_bind_interdomain, copy_back=True)
def bind_interdomain(current: Current, op: evtchn_bind_interdomain) -> None:
    domain = current.domain
    remote = domain_by_any_id(current, op.remote_dom)
    op.local_port = event_channel.bind_interdomain(domain, remote, op.remote_port)


@ops.sub(EVTCHNOP_bind_virq, evtchn_bind_virq, copy_back=True)
def bind_virq(current: Current, op: evtchn_bind_virq) -> None:
    op.port = event_channel.bind_virq(current.domain, op.virq, op.vcpu)


@ops.sub(EVTCHNOP_bind_pirq, evtchn_bind_pirq, copy_back=True)
def bind_pirq(current: Current, op: evtchn_bind_pirq) -> None:
    op.port = event_channel.bind_pirq(current.domain, op.pirq)


@ops.sub(EVTCHNOP_close, evtchn_close)
def close(current: Current, op: evtchn_close) -> None:
    event_channel.close(current.domain, op.port)


@ops.sub(EVTCHNOP_send, evtchn_send)
def send(current: Current, op: evtchn_send) -> None:
    current.domain.timers.asked_ns = current.cpu.now_ns
    event_channel.send(current.domain, op.port)


@ops.sub(EVTCHNOP_status, evtchn_status, copy_back=True)
def status(current: Current, op: evtchn_status) -> None:
    _check_own(current, op.dom)
    channel = event_channel.status(current.domain, op.port)
    op.status = channel.state
    op.vcpu = channel.notify_vcpu
    domid, padding, rest = op.u[:2], op.u[2:4], op.u[4:]
    if channel.state == EVTCHNSTAT_unbound:
        domid = channel.remote_domid.to_bytes(2, "little")
    elif channel.state == EVTCHNSTAT_interdomain:
        domid = channel.remote_domid.to_bytes(2, "little")
        rest = channel.remote_port.to_bytes(4, "little")
    elif channel.state in (EVTCHNSTAT_virq, EVTCHNSTAT_pirq):
        number = channel.virq if channel.state == EVTCHNSTAT_virq else channel.pirq
        domid, padding = number.to_bytes(2, "little"), bytes(2)
    op.u = domid + padding + rest


@ops.sub(EVTCHNOP_alloc_unbound, evtchn_alloc_unbound, copy_back=True)
def alloc_unbound(current: Current, op: evtchn_alloc_unbound) -> None:
    domain = current.domain
    _check_own(current, op.dom)
    remote = domain.domid if op.remote_dom == DOMID_SELF else op.remote_dom
    op.port = event_channel.alloc_unbound(domain, remote)


@ops.sub(EVTCHNOP_bind_ipi, evtchn_bind_ipi, copy_back=True)
def bind_ipi(current: Current, op: evtchn_bind_ipi) -> None:
    op.port = event_channel.bind_ipi(current.domain, op.vcpu)


@ops.sub(EVTCHNOP_bind_vcpu, evtchn_bind_vcpu)
def bind_vcpu(current: Current, op: evtchn_bind_vcpu) -> None:
    event_channel.bind_vcpu(current.domain, op.port, op.vcpu)


@ops.sub(EVTCHNOP_unmask, evtchn_unmask)
def unmask(current: Current, op: evtchn_unmask) -> None:
    event_channel.unmask(current.domain, op.port)


@ops.sub(EVTCHNOP_reset)
def reset(current: Current, pointer: int, resuming: bool = False) -> None:
    """Close all ports; events that are due interrupt it."""
    domain = current.domain
    _check_own(current, current.read_struct(evtchn_reset, pointer).dom)
    if not event_channel.reset(domain, resuming, partial(hypercall_preempt_check, current)):
        raise Continue(EVTCHNOP_reset_cont, pointer)


@ops.sub(EVTCHNOP_reset_cont)
def reset_cont(current: Current, pointer: int) -> None:
    """Go on with a reset that was interrupted; EBUSY: none was."""
    reset(current, pointer, resuming=True)


@ops.sub(EVTCHNOP_init_control, evtchn_init_control, copy_back=True)
def init_control(current: Current, op: evtchn_init_control) -> None:
    domain = current.domain
    if op.vcpu >= len(domain.vcpus):
        raise XenError(ENOENT, f"there is no vcpu {op.vcpu}")
    if op.offset > PAGE_SIZE - CONTROL_BLOCK_SIZE or op.offset % 8:
        raise XenError(EINVAL, f"a control block does not fit at offset {op.offset:#x} of a page")
    event_channel.init_control(domain, op.vcpu, op.control_gfn, op.offset)
    op.link_bits = EVTCHN_FIFO_LINK_BITS


@ops.sub(EVTCHNOP_expand_array, evtchn_expand_array)
def expand_array(current: Current, op: evtchn_expand_array) -> None:
    event_channel.expand_array(current.domain, op.array_gfn)


@ops.sub(EVTCHNOP_set_priority, evtchn_set_priority)
def set_priority(current: Current, op: evtchn_set_priority) -> None:
    event_channel.set_priority(current.domain, op.port, op.priority)


def compat(current: Current, pointer: int) -> int | None:
    """The oldest form: the command is in the struct, before its argument."""
    command = current.read_uint(pointer, 4)
    if command not in COMPAT_COMMANDS:
        raise XenError(ENOSYS, f"the compat form has no command {command}")
    return ops(current, command, pointer + COMPAT_ARGUMENT)


event_channel_op = Hypercall(Nr.event_channel_op, "event_channel_op", ALL, (INT, PTR), ops)
event_channel_op_compat = Hypercall(
    Nr.event_channel_op_compat, "event_channel_op_compat", PV, (PTR,), compat
)
