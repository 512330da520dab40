"""HVM operations: a PVH guest's own, and their refusal to a PV guest.

Header: public/hvm/hvm_op.h
In Xen: arch/x86/hvm/hvm.c (do_hvm_op)
"""

from __future__ import annotations

from xenemu.abi.errno import EEXIST, EINVAL, ENOENT, EOPNOTSUPP, EPERM
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
from xenemu.abi.hvm.params import (
    HVM_NR_PARAMS,
    HVM_PARAM_ACPI_IOPORTS_LOCATION,
    HVM_PARAM_ALTP2M,
    HVM_PARAM_CALLBACK_IRQ,
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
    HVM_PARAM_VM86_TSS,
    HVM_PARAM_VM86_TSS_SIZED,
    HVM_PARAM_VM_GENERATION_ID_ADDR,
    HVM_PARAM_X87_FIP_WIDTH,
)
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv.dispatch import ALL, PTR, ULONG, Hypercall, SubOps
from xenemu.hv.domain import Current
from xenemu.hv.foreign import DOM0, lock_domain_by_any_id
from xenemu.pvh.callbacks import FIRST_VECTOR, set_callback_via, update_upcall
from xenemu.pvh.state import PvhVcpu, pvh_domain

ops = SubOps("hvm_op")

# In Xen: hvm_allow_set_param, hvm_allow_get_param.
SET_ONCE = frozenset(
    {
        HVM_PARAM_CONSOLE_EVTCHN,
        HVM_PARAM_STORE_EVTCHN,
        HVM_PARAM_ALTP2M,
        HVM_PARAM_X87_FIP_WIDTH,
        HVM_PARAM_ACPI_IOPORTS_LOCATION,
    }
)
GUEST_SETS = frozenset(
    {
        HVM_PARAM_CALLBACK_IRQ,
        HVM_PARAM_VM86_TSS,
        HVM_PARAM_VM86_TSS_SIZED,
        HVM_PARAM_VM_GENERATION_ID_ADDR,
        HVM_PARAM_STORE_EVTCHN,
        HVM_PARAM_CONSOLE_EVTCHN,
        HVM_PARAM_X87_FIP_WIDTH,
    }
)
GUEST_READS = frozenset(
    {
        HVM_PARAM_CALLBACK_IRQ,
        HVM_PARAM_VM86_TSS,
        HVM_PARAM_VM86_TSS_SIZED,
        HVM_PARAM_VM_GENERATION_ID_ADDR,
        HVM_PARAM_STORE_PFN,
        HVM_PARAM_STORE_EVTCHN,
        HVM_PARAM_CONSOLE_PFN,
        HVM_PARAM_CONSOLE_EVTCHN,
        HVM_PARAM_ALTP2M,
        HVM_PARAM_X87_FIP_WIDTH,
    }
)


def _refuse(current: Current, domid: int) -> None:
    """ESRCH: no such domain; EINVAL: dom0 and this domain are PV domains."""
    if current.domain.p2m is None or lock_domain_by_any_id(current, domid) == DOM0:
        lock_domain_by_any_id(current, domid)
        raise XenError(EINVAL, f"domain {domid} is not an HVM domain")


def _check_index(index: int) -> None:
    if index >= HVM_NR_PARAMS:
        raise XenError(EINVAL, f"there is no HVM parameter {index}")


@ops.sub(HVMOP_set_param, xen_hvm_param)
def set_param(current: Current, op: xen_hvm_param) -> None:
    """Set one of the parameters that are the guest's own.

    EINVAL: no such parameter; EPERM: the toolstack's; EEXIST: it may be set once, and was.
    """
    _check_index(op.index)
    _refuse(current, op.domid)
    params = pvh_domain(current).params
    if op.index not in GUEST_SETS:
        raise XenError(EPERM, f"HVM parameter {op.index} is not the guest's to set")
    if op.index in SET_ONCE and params.get(op.index, 0) not in (0, op.value):
        raise XenError(EEXIST, f"HVM parameter {op.index} is set for good")
    params[op.index] = op.value
    if op.index == HVM_PARAM_CALLBACK_IRQ:
        set_callback_via(current, op.value)


@ops.sub(HVMOP_get_param, xen_hvm_param, copy_back=True)
def get_param(current: Current, op: xen_hvm_param) -> None:
    """Read a parameter that the guest may see; EINVAL: none such; EPERM: it is not to be seen."""
    _check_index(op.index)
    _refuse(current, op.domid)
    if op.index not in GUEST_READS:
        raise XenError(EPERM, f"HVM parameter {op.index} is not the guest's to read")
    op.value = pvh_domain(current).params.get(op.index, 0)


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
    """Let a vcpu hear of events by a vector of its local APIC.

    EINVAL: a PV guest, or a vector of the CPU's own; ENOENT: no such vcpu.
    """
    if current.domain.p2m is None:
        raise XenError(EINVAL, "a PV guest's events have no vector")
    if op.vector < FIRST_VECTOR:
        raise XenError(EINVAL, f"vector {op.vector:#x} is the CPU's own")
    if op.vcpu >= len(current.domain.vcpus):
        raise XenError(ENOENT, f"there is no vcpu {op.vcpu}")
    vcpu = current.domain.vcpus[op.vcpu]
    assert isinstance(vcpu.arch, PvhVcpu)
    vcpu.arch.upcall_vector = op.vector
    # Events that came before it was known how to tell of them: tell now, as Xen does.
    vcpu.upcall_raised = bool(current.domain.memory.bytes[vcpu.info])
    update_upcall(current)


@ops.sub(HVMOP_guest_request_vm_event)
def guest_request_vm_event(current: Current, pointer: int) -> None:
    """Tell a monitor, which there is none; EINVAL: the pointer is not null."""
    if pointer:
        raise XenError(EINVAL, "HVMOP_guest_request_vm_event takes no argument")


ops.answer(HVMOP_flush_tlbs, "flush_tlbs", EINVAL, "this is not an HVM domain")
ops.answer(HVMOP_altp2m, "altp2m", EOPNOTSUPP, "there are no alternate p2m tables")

hvm_op = Hypercall(Nr.hvm_op, "hvm_op", ALL, (ULONG, PTR), ops)
