"""HVM operations: commands and their arguments.

Header: public/hvm/hvm_op.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import U8, U16, U32, U64, Struct, blob

HVMOP_set_param: Final = 0
HVMOP_get_param: Final = 1
HVMOP_set_pci_intx_level: Final = 2
HVMOP_set_isa_irq_level: Final = 3
HVMOP_set_pci_link_route: Final = 4
HVMOP_flush_tlbs: Final = 5
HVMOP_pagetable_dying: Final = 9
HVMOP_get_time: Final = 10
HVMOP_xentrace: Final = 11
HVMOP_set_mem_access: Final = 12
HVMOP_get_mem_access: Final = 13
HVMOP_get_mem_type: Final = 15
HVMOP_set_evtchn_upcall_vector: Final = 23
HVMOP_guest_request_vm_event: Final = 24
HVMOP_altp2m: Final = 25

HVMMEM_ram_rw: Final = 0
HVMMEM_mmio_dm: Final = 2

TRACE_EXTRA_MAX: Final = 7  # public/trace.h
TRC_SUBCLS_SHIFT: Final = 12  # public/trace.h


class xen_hvm_param(Struct, size=(16, 16)):
    """A parameter of a domain."""

    domid: U16
    pad: U16
    index: U32
    value: U64


class xen_hvm_pagetable_dying(Struct, size=(16, 16)):
    """A page table is about to be torn down."""

    domid: U16
    pad: Annotated[bytes, blob(6, 2)]
    gpa: U64


class xen_hvm_get_time(Struct, size=(8, 8)):
    """The time in ns."""

    now: U64


class xen_hvm_xentrace(Struct, size=(32, 32)):
    """A record for Xen's trace buffer."""

    event: U16
    extra_bytes: U16
    extra: Annotated[bytes, blob(4 * TRACE_EXTRA_MAX)]


class xen_hvm_get_mem_type(Struct, size=(16, 16)):
    """What kind of memory a page is."""

    domid: U16
    mem_type: U16
    pad: Annotated[bytes, blob(4, 2)]
    pfn: U64


class xen_hvm_evtchn_upcall_vector(Struct, size=(8, 8)):
    """The vector by which a vcpu hears of events."""

    vcpu: U32
    vector: U8
