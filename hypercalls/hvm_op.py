"""HVM operations: a PVH guest's own, and their refusal to a PV guest.

Header: public/hvm/hvm_op.h
In Xen: arch/x86/hvm/hvm.c (do_hvm_op)
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EPERM
from xenemu.abi.hvm.hvm_op import (
    TRACE_EXTRA_MAX,
    TRC_SUBCLS_SHIFT,
    HVMMEM_mmio_dm,
    HVMMEM_ram_rw,
    HVMOP_altp2m,
    HVMOP_flush_tlbs,
    HVMOP_get_mem_access,
    HVMOP_get_mem_type,
    HVMOP_get_param,
    HVMOP_get_time,
    HVMOP_guest_request_vm_event,
    HVMOP_pagetable_dying,
    HVMOP_set_evtchn_upcall_vector,
    HVMOP_set_isa_irq_level,
    HVMOP_set_mem_access,
    HVMOP_set_param,
    HVMOP_set_pci_intx_level,
    HVMOP_set_pci_link_route,
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
    HVM_PARAM_BUFIOREQ_EVTCHN,
    HVM_PARAM_CALLBACK_IRQ,
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_DM_DOMAIN,
    HVM_PARAM_MEMORY_EVENT_CR0,
    HVM_PARAM_MEMORY_EVENT_CR3,
    HVM_PARAM_MEMORY_EVENT_CR4,
    HVM_PARAM_MEMORY_EVENT_INT3,
    HVM_PARAM_MEMORY_EVENT_MSR,
    HVM_PARAM_MEMORY_EVENT_SINGLE_STEP,
    HVM_PARAM_NESTEDHVM,
    HVM_PARAM_PAE_ENABLED,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
    HVM_PARAM_VM86_TSS,
    HVM_PARAM_VM86_TSS_SIZED,
    HVM_PARAM_VM_GENERATION_ID_ADDR,
    HVM_PARAM_X87_FIP_WIDTH,
)
from xenemu.abi.xen import Nr
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, PTR, ULONG, Hypercall, StandingAnswer, SubOps
from xenemu.hv.foreign import check_target, domain_by_any_id
from xenemu.hv.state.domain import DOM0
from xenemu.pvh.callbacks import FIRST_VECTOR, assert_upcall, set_callback_via
from xenemu.pvh.state import pvh_domain, pvh_vcpu

ops = SubOps("hvm_op")

# In Xen: hvm_allow_set_param, hvm_allow_get_param.
GUEST_SETS = frozenset(
    {
        HVM_PARAM_CALLBACK_IRQ,
        HVM_PARAM_VM86_TSS,
        HVM_PARAM_VM86_TSS_SIZED,
        HVM_PARAM_ACPI_IOPORTS_LOCATION,
        HVM_PARAM_VM_GENERATION_ID_ADDR,
        HVM_PARAM_STORE_EVTCHN,
        HVM_PARAM_CONSOLE_EVTCHN,
        HVM_PARAM_X87_FIP_WIDTH,
    }
)
GUEST_READS = GUEST_SETS | {HVM_PARAM_STORE_PFN, HVM_PARAM_CONSOLE_PFN, HVM_PARAM_ALTP2M}
DEPRECATED = frozenset(
    {
        HVM_PARAM_PAE_ENABLED,
        HVM_PARAM_DM_DOMAIN,
        HVM_PARAM_MEMORY_EVENT_CR0,
        HVM_PARAM_MEMORY_EVENT_CR3,
        HVM_PARAM_MEMORY_EVENT_CR4,
        HVM_PARAM_MEMORY_EVENT_INT3,
        HVM_PARAM_NESTEDHVM,
        HVM_PARAM_MEMORY_EVENT_SINGLE_STEP,
        HVM_PARAM_BUFIOREQ_EVTCHN,
        HVM_PARAM_MEMORY_EVENT_MSR,
    }
)
# The TSS that Xen lends to real-mode guests of old CPUs: its address, and above it its size.
TSS_SIZE_SHIFT, TSS_OLD_SIZE = 32, 128
TSS_MIN_SIZE, TSS_MAX_SIZE = 104, 104 + 0x100 // 8 + 0x10000 // 8 + 1


def _hvm_params(current: Current, op: xen_hvm_param, allowed: frozenset[int]) -> dict[int, int]:
    """The parameters that a guest may reach.

    EINVAL: no such parameter, or no longer; or another domain, because dom0 is a PV domain. ESRCH:
    no such domain. EPERM: the parameter is the toolstack's.
    """
    if op.index >= HVM_NR_PARAMS:
        raise XenError(EINVAL, f"there is no HVM parameter {op.index}")
    domid = domain_by_any_id(current, op.domid)
    if current.domain.p2m is None or domid == DOM0:
        raise XenError(EINVAL, f"d{domid} is not an HVM domain")
    check_target(current, domid)
    if op.index in DEPRECATED:
        raise XenError(EINVAL, f"HVM parameter {op.index} is no more")
    if op.index not in allowed:
        raise XenError(EPERM, f"HVM parameter {op.index} is not the guest's")
    return pvh_domain(current).params


@ops.sub(HVMOP_set_param, xen_hvm_param)
def set_param(current: Current, op: xen_hvm_param) -> None:
    """Set one of the parameters that are the guest's own.

    EINVAL, ESRCH, EPERM: see `_hvm_params`. EINVAL also for an x87 width that does not exist.
    ENODEV: a PVH domain has no PM timer to move.
    """
    params = _hvm_params(current, op, GUEST_SETS)
    index, value = op.index, op.value
    if index == HVM_PARAM_CALLBACK_IRQ:
        set_callback_via(current, value)
    elif index == HVM_PARAM_ACPI_IOPORTS_LOCATION:
        raise XenError(ENODEV, "there is no PM timer")
    elif index == HVM_PARAM_X87_FIP_WIDTH and value not in (0, 4, 8):
        raise XenError(EINVAL, f"an x87 instruction pointer of {value} bytes")
    elif index == HVM_PARAM_VM86_TSS:
        if value >> TSS_SIZE_SHIFT:
            raise DomainCrash(f"a TSS for real mode at {value:#x}, above 4 GiB")
        index = HVM_PARAM_VM86_TSS_SIZED
        value |= TSS_OLD_SIZE << TSS_SIZE_SHIFT if value else 0
    elif index == HVM_PARAM_VM86_TSS_SIZED:
        size = value >> TSS_SIZE_SHIFT
        if size < TSS_MIN_SIZE:
            raise DomainCrash(f"a TSS for real mode of only {size} bytes")
        value = value & 0xFFFFFFFF | min(size, TSS_MAX_SIZE) << TSS_SIZE_SHIFT
    params[index] = value


@ops.sub(HVMOP_get_param, xen_hvm_param, copy_back=True)
def get_param(current: Current, op: xen_hvm_param) -> None:
    """Read a parameter that the guest may see. EINVAL, ESRCH, EPERM: see `_hvm_params`."""
    params = _hvm_params(current, op, GUEST_READS)
    if op.index == HVM_PARAM_VM86_TSS:
        op.value = params.get(HVM_PARAM_VM86_TSS_SIZED, 0) & 0xFFFFFFFF
    else:
        op.value = params.get(op.index, 0)


@ops.sub(HVMOP_flush_tlbs)
def flush_tlbs(current: Current, pointer: int) -> None:
    """Flush the TLBs of all vcpus. EINVAL: the pointer is not null, or this is a PV guest."""
    if pointer or current.domain.p2m is None:
        raise XenError(EINVAL, "this is not an HVM domain" if not pointer else "no argument")
    current.cpu.flush_tlb()


@ops.sub(HVMOP_pagetable_dying, xen_hvm_pagetable_dying)
def pagetable_dying(current: Current, op: xen_hvm_pagetable_dying) -> None:
    """Refuse: no domain has shadow page tables. ESRCH; EOPNOTSUPP: another domain's; EINVAL."""
    if domain_by_any_id(current, op.domid) == DOM0:
        raise XenError(EOPNOTSUPP, "dom0's page tables are not this domain's")
    raise StandingAnswer(EINVAL, "the domain has no shadow page tables")


@ops.sub(HVMOP_get_time, xen_hvm_get_time, copy_back=True)
def get_time(current: Current, op: xen_hvm_get_time) -> None:
    op.now = current.cpu.now_ns


@ops.sub(HVMOP_xentrace, xen_hvm_xentrace)
def xentrace(current: Current, op: xen_hvm_xentrace) -> None:
    """Accept a record for the trace buffer, which is off; EINVAL: this is no form of a record."""
    if op.extra_bytes > 4 * TRACE_EXTRA_MAX or op.event >> TRC_SUBCLS_SHIFT:
        raise XenError(EINVAL, f"a trace record {op.event:#x} of {op.extra_bytes} bytes")


@ops.sub(HVMOP_get_mem_type, xen_hvm_get_mem_type, copy_back=True)
def get_mem_type(current: Current, op: xen_hvm_get_mem_type) -> None:
    """Tell RAM from what is not RAM. ESRCH; EPERM: dom0's memory; EINVAL: this is a PV guest."""
    check_target(current, domain_by_any_id(current, op.domid))
    if current.domain.p2m is None:
        raise XenError(EINVAL, "this is not an HVM domain")
    is_ram = current.domain.p2m.get(op.pfn) is not None
    op.mem_type = HVMMEM_ram_rw if is_ram else HVMMEM_mmio_dm


@ops.sub(HVMOP_set_evtchn_upcall_vector, xen_hvm_evtchn_upcall_vector)
def set_evtchn_upcall_vector(current: Current, op: xen_hvm_evtchn_upcall_vector) -> None:
    """Let a vcpu hear of events by a vector of its local APIC, which Xen raises at once.

    EINVAL: a PV guest, or a vector of the CPU's own; ENOENT: no such vcpu.
    """
    if current.domain.p2m is None:
        raise XenError(EINVAL, "a PV guest's events have no vector")
    if op.vector < FIRST_VECTOR:
        raise XenError(EINVAL, f"vector {op.vector:#x} is the CPU's own")
    if op.vcpu >= len(current.domain.vcpus):
        raise XenError(ENOENT, f"there is no vcpu {op.vcpu}")
    vcpu = current.domain.vcpus[op.vcpu]
    pvh_vcpu(vcpu).upcall_vector = op.vector
    assert_upcall(current, vcpu)


@ops.sub(HVMOP_guest_request_vm_event)
def guest_request_vm_event(current: Current, pointer: int) -> None:
    """Tell a monitor, but there is none; EINVAL: the pointer is not null."""
    if pointer:
        raise XenError(EINVAL, "HVMOP_guest_request_vm_event takes no argument")


for _command, _name in (
    (HVMOP_set_pci_intx_level, "set_pci_intx_level"),
    (HVMOP_set_isa_irq_level, "set_isa_irq_level"),
    (HVMOP_set_pci_link_route, "set_pci_link_route"),
    (HVMOP_set_mem_access, "set_mem_access"),
    (HVMOP_get_mem_access, "get_mem_access"),
):
    ops.answer(_command, _name, ENOSYS, "moved to dm_op and memory_op long ago")
ops.answer(HVMOP_altp2m, "altp2m", EOPNOTSUPP, "there are no alternate p2m tables")

hvm_op = Hypercall(Nr.hvm_op, "hvm_op", ALL, (ULONG, PTR), ops)
