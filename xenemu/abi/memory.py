"""Memory reservations, maps and the machine-to-physical table.

Header: public/memory.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import HANDLE, U8, U16, U32, U64, U64A, ULONG, Struct, blob

XENMEM_increase_reservation: Final = 0
XENMEM_decrease_reservation: Final = 1
XENMEM_maximum_ram_page: Final = 2
XENMEM_current_reservation: Final = 3
XENMEM_maximum_reservation: Final = 4
XENMEM_machphys_mfn_list: Final = 5
XENMEM_populate_physmap: Final = 6
XENMEM_add_to_physmap: Final = 7
XENMEM_memory_map: Final = 9
XENMEM_machine_memory_map: Final = 10
XENMEM_exchange: Final = 11
XENMEM_machphys_mapping: Final = 12
XENMEM_set_memory_map: Final = 13
XENMEM_maximum_gpfn: Final = 14
XENMEM_remove_from_physmap: Final = 15
XENMEM_set_pod_target: Final = 16
XENMEM_get_pod_target: Final = 17
XENMEM_get_sharing_freed_pages: Final = 18
XENMEM_get_sharing_shared_pages: Final = 19
XENMEM_paging_op: Final = 20
XENMEM_access_op: Final = 21
XENMEM_sharing_op: Final = 22
XENMEM_add_to_physmap_batch: Final = 23
XENMEM_claim_pages: Final = 24
XENMEM_machphys_compat_mfn_list: Final = 25
XENMEM_get_vnumainfo: Final = 26
XENMEM_reserved_device_memory_map: Final = 27
XENMEM_acquire_resource: Final = 28

MEMOP_EXTENT_SHIFT: Final = 6  # the command is below, the first extent of a continuation above
MEMOP_CMD_MASK: Final = (1 << MEMOP_EXTENT_SHIFT) - 1

# xen_memory_reservation.mem_flags: address bits, then a NUMA node + 1, then flags.
XENMEMF_address_bits: Final = 0xFF
XENMEMF_populate_on_demand: Final = 1 << 16
XENMEMF_vnode: Final = 1 << 18

XENMAPSPACE_shared_info: Final = 0
XENMAPSPACE_grant_table: Final = 1
XENMAPSPACE_gmfn: Final = 2
XENMAPSPACE_gmfn_range: Final = 3
XENMAPSPACE_gmfn_foreign: Final = 4
XENMAPSPACE_dev_mmio: Final = 5
XENMAPIDX_grant_table_status: Final = 1 << 31  # in the index: a status frame

XENMEM_RDM_ALL: Final = 1

E820_ENTRY: Final = "<QQI"  # an entry of a memory map, packed: base, size, type


class xen_memory_reservation(Struct, size=(32, 20)):
    """Extents of 2^order pages: a list of frame numbers, and whose they are."""

    extent_start: HANDLE
    nr_extents: ULONG
    extent_order: U32
    mem_flags: U32
    domid: U16


class xen_memory_exchange(Struct, size=(72, 44)):
    """Pages for pages; both halves are `xen_memory_reservation`."""

    in_: Annotated[bytes, blob(32, 8, 20, 4)]
    out: Annotated[bytes, blob(32, 8, 20, 4)]
    nr_exchanged: ULONG  # IN/OUT, in extents of `in_`


class xen_machphys_mfn_list(Struct, size=(24, 12)):
    """Where to list the frames of the machine-to-physical table, one per 2 MiB of it."""

    max_extents: U32
    extent_start: HANDLE
    nr_extents: U32  # OUT


class xen_machphys_mapping(Struct, size=(24, 12)):
    """OUT: where the guest sees the machine-to-physical table."""

    v_start: ULONG
    v_end: ULONG
    max_mfn: ULONG


class xen_add_to_physmap(Struct, size=(24, 16)):
    """Put a page at a guest frame number."""

    domid: U16
    size: U16
    space: U32
    idx: ULONG
    gpfn: ULONG


class xen_add_to_physmap_batch(Struct, size=(32, 20)):
    """Put pages at guest frame numbers."""

    domid: U16
    space: U16
    size: U16
    u: U16  # foreign_domid
    idxs: HANDLE
    gpfns: HANDLE
    errs: HANDLE


class xen_remove_from_physmap(Struct, size=(16, 8)):
    """Take away the page at a guest frame number."""

    domid: U16
    gpfn: ULONG


class xen_memory_map(Struct, size=(16, 8)):
    """A buffer for `nr_entries` of E820_ENTRY; `nr_entries` is OUT too."""

    nr_entries: U32
    buffer: HANDLE


class xen_foreign_memory_map(Struct, size=(24, 12)):
    """A memory map for a domain."""

    domid: U16
    map: Annotated[bytes, blob(16, 8, 8, 4)]  # xen_memory_map


class xen_pod_target(Struct, size=(40, 36)):
    """Populate-on-demand figures of a domain."""

    target_pages: U64
    tot_pages: U64
    pod_cache_pages: U64
    pod_entries: U64
    domid: U16


class xen_mem_access_op(Struct, size=(32, 24)):
    """Access rights to guest frames, for introspection."""

    op: U8
    access: U8
    domid: U16
    nr: U32
    pfn: U64A
    pfn_list: HANDLE
    access_list: HANDLE


class xen_vnuma_topology_info(Struct, size=(40, 40)):
    """A domain's virtual NUMA topology; the handles are 8 bytes in both widths."""

    domid: U16
    pad: U16
    nr_vnodes: U32
    nr_vcpus: U32
    nr_vmemranges: U32
    vdistance: U64
    vcpu_to_vnode: U64
    vmemrange: U64


class xen_reserved_device_memory_map(Struct, size=(24, 16)):
    """A buffer for the memory that firmware reserved for devices."""

    flags: U32
    nr_entries: U32  # IN/OUT
    buffer: HANDLE
    dev: U32  # pci: segment, bus and devfn


class xen_mem_acquire_resource(Struct, size=(32, 28)):
    """Map frames of another domain's resource."""

    domid: U16
    type: U16
    id: U32
    nr_frames: U32
    pad: U32
    frame: U64
    frame_list: HANDLE
