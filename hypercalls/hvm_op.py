"""HVM operations, as a PV guest gets them.

Header: public/hvm/hvm_op.h
In Xen: arch/x86/hvm/hvm.c (do_hvm_op)
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL, EOPNOTSUPP, EPERM
from xenemu.abi.hvm.hvm_op import (
    TRACE_EXTRA_MAX,
    TRC_SUBCLS_SHIFT,
    HVMOP_altp2m,
    HVMOP_flush_tlbs,
    HVMOP_get_mem_type,
    HVMOP_get_param,
    HVMOP_get_time,
    HVMOP_guest_request_vm_event,
    HVMOP_pagetable_dying,
    HVMOP_set_evtchn_upcall_vector,
    HVMOP_set_param,
    HVMOP_xentrace,
    xen_hvm_evtchn_upcall_vector,
    xen_hvm_get_mem_type,
    xen_hvm_get_time,
    xen_hvm_pagetable_dying,
    xen_hvm_param,
    xen_hvm_xentrace,
)
from xenemu.abi.hvm.params import HVM_NR_PARAMS
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv.dispatch import PTR, PV, ULONG, Hypercall, SubOps
from xenemu.hv.domain import Current
from xenemu.hv.foreign import DOM0, lock_domain_by_any_id

ops = SubOps("hvm_op")


def _refuse(current: Current, domid: int) -> None:
    """ESRCH: no such domain; EINVAL: dom0 and this domain are PV domains."""
    lock_domain_by_any_id(current, domid)
    raise XenError(EINVAL, f"domain {domid} is not an HVM domain")


@ops.sub(HVMOP_set_param, xen_hvm_param)
def set_param(current: Current, op: xen_hvm_param) -> None:
    if op.index >= HVM_NR_PARAMS:
        raise XenError(EINVAL, f"there is no HVM parameter {op.index}")
    _refuse(current, op.domid)


@ops.sub(HVMOP_get_param, xen_hvm_param)
def get_param(current: Current, op: xen_hvm_param) -> None:
    set_param(current, op)


@ops.sub(HVMOP_pagetable_dying, xen_hvm_pagetable_dying)
def pagetable_dying(current: Current, op: xen_hvm_pagetable_dying) -> None:
    _refuse(current, op.domid)


@ops.sub(HVMOP_get_time, xen_hvm_get_time, copy_back=True)
def get_time(current: Current, op: xen_hvm_get_time) -> None:
    op.now = current.cpu.now_ns


@ops.sub(HVMOP_xentrace, xen_hvm_xentrace)
def xentrace(current: Current, op: xen_hvm_xentrace) -> None:
    """Accept a record for the trace buffer, which is off; EINVAL: it has no such form."""
    if op.extra_bytes > 4 * TRACE_EXTRA_MAX or op.event >> TRC_SUBCLS_SHIFT:
        raise XenError(EINVAL, f"a trace record {op.event:#x} of {op.extra_bytes} bytes")


@ops.sub(HVMOP_get_mem_type, xen_hvm_get_mem_type)
def get_mem_type(current: Current, op: xen_hvm_get_mem_type) -> None:
    if op.domid == DOM0:
        raise XenError(EPERM, "dom0's memory is not this domain's")
    _refuse(current, op.domid)


@ops.sub(HVMOP_set_evtchn_upcall_vector, xen_hvm_evtchn_upcall_vector)
def set_evtchn_upcall_vector(current: Current, op: xen_hvm_evtchn_upcall_vector) -> None:
    raise XenError(EINVAL, "a PV guest's events have no vector")


@ops.sub(HVMOP_guest_request_vm_event)
def guest_request_vm_event(current: Current, pointer: int) -> None:
    """Tell a monitor, which there is none; EINVAL: the pointer is not null."""
    if pointer:
        raise XenError(EINVAL, "HVMOP_guest_request_vm_event takes no argument")


ops.answer(HVMOP_flush_tlbs, "flush_tlbs", EINVAL, "this is not an HVM domain")
ops.answer(HVMOP_altp2m, "altp2m", EOPNOTSUPP, "there are no alternate p2m tables")

hvm_op = Hypercall(Nr.hvm_op, "hvm_op", PV, (ULONG, PTR), ops)
