"""Memory reservations, the domain's memory map, and the machine-to-physical table.

A PV guest's frame numbers are machine frame numbers; it keeps its own map from pfn to mfn.

Header: public/memory.h
In Xen: common/memory.c, arch/x86/mm.c (arch_memory_op), arch/x86/x86_64/mm.c
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from hypercalls import physmap
from hypercalls.memory_exchange import MAX_ORDER, PAGE_WORK, PAGES_PER_CALL, mfn_limit
from hypercalls.memory_exchange import exchange as memory_exchange
from xenemu.abi.arch_x86.xen import (
    HYPERVISOR_COMPAT_VIRT_START,
    MACH2PHYS_VIRT_END,
    MACH2PHYS_VIRT_START,
)
from xenemu.abi.errno import (
    EACCES,
    EDOM,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSYS,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
)
from xenemu.abi.memory import (
    E820_ENTRY,
    MEMOP_CMD_MASK,
    MEMOP_EXTENT_SHIFT,
    XENMEM_RDM_ALL,
    XENMAPSPACE_dev_mmio,
    XENMAPSPACE_gmfn_foreign,
    XENMAPSPACE_gmfn_range,
    XENMEM_access_op,
    XENMEM_acquire_resource,
    XENMEM_add_to_physmap,
    XENMEM_add_to_physmap_batch,
    XENMEM_claim_pages,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_get_pod_target,
    XENMEM_get_sharing_freed_pages,
    XENMEM_get_sharing_shared_pages,
    XENMEM_get_vnumainfo,
    XENMEM_increase_reservation,
    XENMEM_machine_memory_map,
    XENMEM_machphys_compat_mfn_list,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_paging_op,
    XENMEM_populate_physmap,
    XENMEM_remove_from_physmap,
    XENMEM_reserved_device_memory_map,
    XENMEM_set_memory_map,
    XENMEM_set_pod_target,
    XENMEM_sharing_op,
    XENMEMF_populate_on_demand,
    xen_add_to_physmap,
    xen_add_to_physmap_batch,
    xen_foreign_memory_map,
    xen_machphys_mapping,
    xen_machphys_mfn_list,
    xen_mem_access_op,
    xen_mem_acquire_resource,
    xen_memory_exchange,
    xen_memory_map,
    xen_memory_reservation,
    xen_pod_target,
    xen_remove_from_physmap,
    xen_reserved_device_memory_map,
    xen_vnuma_topology_info,
)
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv import shared_info
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, PTR, ULONG, Continue, Hypercall, SubOp, SubOps
from xenemu.hv.foreign import check_target, domain_by_any_id, remote_domain_by_id
from xenemu.hv.state.domain import DOM0
from xenemu.x86.paging import ENTRIES, PAGE_SHIFT, Mfn

MAX_EXTENTS: Final = 0xFFFFFFFF >> MEMOP_EXTENT_SHIFT
E820MAX: Final = 1024
MACH2PHYS_COMPAT_VIRT_END: Final = 0xFFE00000

# Only these go on from a first extent in the command. The others of the common part refuse one,
# and the architecture's do not know such a command.
MAPPING: Final = (XENMEM_add_to_physmap, XENMEM_add_to_physmap_batch)
CONTINUED: Final = (
    XENMEM_increase_reservation,
    XENMEM_decrease_reservation,
    XENMEM_populate_physmap,
    *MAPPING,
)
WHOLE: Final = (
    XENMEM_exchange,
    XENMEM_maximum_ram_page,
    XENMEM_current_reservation,
    XENMEM_maximum_reservation,
    XENMEM_maximum_gpfn,
    XENMEM_remove_from_physmap,
    XENMEM_claim_pages,
    XENMEM_get_vnumainfo,
    XENMEM_reserved_device_memory_map,
)


class MemoryOps(SubOps):
    """Sub-operations whose command may hold a continuation's first extent in its upper bits."""

    def find(self, command: int) -> SubOp | None:
        """The sub-operation below the extent."""
        return super().find(command & MEMOP_CMD_MASK)

    def __call__(self, current: Current, command: int, pointer: int) -> int | None:
        start, op = command >> MEMOP_EXTENT_SHIFT, command & MEMOP_CMD_MASK
        if start > 0xFFFF and op in MAPPING:
            raise XenError(EDOM, f"memory_op {op} cannot start at extent {start}")
        if start and op in CONTINUED:
            handler = self.table[op].handler
            assert handler is not None
            return handler(current, pointer, start)
        if start and op in WHOLE:
            raise XenError(EINVAL, f"memory_op {op} has no extents to start at")
        if start:
            raise XenError(ENOSYS, f"memory_op has no command {command:#x}")
        return super().__call__(current, op, pointer)


ops = MemoryOps("memory_op")


# Reservations. What stops one is not an errno: the guest gets the number of extents done.

Extent = Callable[[Current, xen_memory_reservation, int], None]


def _for_each_extent(
    current: Current, command: int, pointer: int, start: int, do_extent: Extent
) -> int:
    """Do the extents of a reservation from `start` on; return how many are done in all."""
    done = start
    try:
        reservation = current.read_struct(xen_memory_reservation, pointer)
        _check_reservation(current, reservation, start)
        per_call = max(1, PAGES_PER_CALL >> reservation.extent_order)
        frames = current.domain.frames
        while done < reservation.nr_extents:
            if done > start and (done - start == per_call or frames.work_left <= 0):
                raise Continue(command | done << MEMOP_EXTENT_SHIFT, pointer)
            do_extent(current, reservation, done)
            done += 1
            frames.work_left -= PAGE_WORK << reservation.extent_order
    except XenError as error:
        current.log(f"memory_op {command} stopped at extent {done}: {error.reason}")
    return done


def _check_reservation(current: Current, reservation: xen_memory_reservation, start: int) -> None:
    nr_extents = reservation.nr_extents
    if nr_extents > MAX_EXTENTS or start >= nr_extents:
        raise XenError(EINVAL, f"{nr_extents} extents, from {start}, are none or too many")
    check_target(current, domain_by_any_id(current, reservation.domid))
    mfn_limit(current, reservation.mem_flags)
    if reservation.extent_order > MAX_ORDER:
        raise XenError(EPERM, f"extents of order {reservation.extent_order} are for dom0")


def _allocate(
    current: Current, reservation: xen_memory_reservation, wanted: int | None = None
) -> Mfn:
    """Take an extent from the heap, the frame `wanted` if it is free.

    ENOMEM if the domain has all it may have.
    """
    domain = current.domain
    order = reservation.extent_order
    if domain.pages.tot_pages + (1 << order) > domain.pages.max_pages:
        raise XenError(ENOMEM, f"the domain may have no more than {domain.pages.max_pages} pages")
    if wanted is not None and not order and domain.frames.alloc_frame_at(wanted, domain.domid):
        return Mfn(wanted)
    below = mfn_limit(current, reservation.mem_flags)
    return domain.frames.alloc_frames(domain.domid, order, below)[0]


def _frame_at(current: Current, reservation: xen_memory_reservation, index: int) -> int:
    return current.read_ulong(reservation.extent_start + index * current.vcpu.width)


def _set_frame_at(
    current: Current, reservation: xen_memory_reservation, index: int, mfn: Mfn
) -> None:
    current.write_ulong(reservation.extent_start + index * current.vcpu.width, mfn)


@ops.sub(XENMEM_increase_reservation, shows=xen_memory_reservation)
def increase_reservation(current: Current, pointer: int, start: int = 0) -> int:
    """Get extents of memory; list their first mfns if there is a list. Returns how many.

    A translated guest gets them without a place in its physmap, and is not told where they are.
    """

    def do_extent(current: Current, reservation: xen_memory_reservation, index: int) -> None:
        mfn = _allocate(current, reservation)
        if reservation.extent_start and current.domain.p2m is None:
            _set_frame_at(current, reservation, index, mfn)

    return _for_each_extent(current, XENMEM_increase_reservation, pointer, start, do_extent)


@ops.sub(XENMEM_populate_physmap, shows=xen_memory_reservation)
def populate_physmap(current: Current, pointer: int, start: int = 0) -> int:
    """Get memory for the listed pfns; the list then has the mfns. Returns how many extents."""

    def do_extent(current: Current, reservation: xen_memory_reservation, index: int) -> None:
        pfn = _frame_at(current, reservation, index)
        if reservation.mem_flags & XENMEMF_populate_on_demand:
            raise XenError(EPERM, "no domain populates itself on demand")
        translated = current.domain.p2m is not None
        if translated:
            physmap.check_gfn(pfn + (1 << reservation.extent_order) - 1)
        mfn = _allocate(current, reservation, pfn if translated else None)
        for page in range(1 << reservation.extent_order):
            if translated:
                physmap.populate(current, pfn + page, Mfn(mfn + page))
            else:
                current.domain.frames.set_m2p(mfn + page, pfn + page)
        if not translated:
            _set_frame_at(current, reservation, index, mfn)

    return _for_each_extent(current, XENMEM_populate_physmap, pointer, start, do_extent)


@ops.sub(XENMEM_decrease_reservation, shows=xen_memory_reservation)
def decrease_reservation(current: Current, pointer: int, start: int = 0) -> int:
    """Give back the listed mfns; each is gone when nothing maps it. Returns how many extents."""

    def do_extent(current: Current, reservation: xen_memory_reservation, index: int) -> None:
        frames, domid = current.domain.frames, current.domain.domid
        first = _frame_at(current, reservation, index)
        for mfn in range(first, first + (1 << reservation.extent_order)):
            if current.domain.p2m is not None:
                current.domain.p2m.lookup(mfn)
                physmap.discard(current, mfn)
                continue
            try:
                frames.get_page(mfn, domid)
            except XenError as error:
                raise XenError(ENXIO, error.reason) from None
            frames.release(Mfn(mfn))
            frames.put_page(mfn)

    return _for_each_extent(current, XENMEM_decrease_reservation, pointer, start, do_extent)


ops.sub(XENMEM_exchange, shows=xen_memory_exchange)(memory_exchange)


# What there is.


@ops.sub(XENMEM_maximum_ram_page)
def maximum_ram_page(current: Current, pointer: int) -> int:
    """The machine's first mfn beyond RAM."""
    return current.domain.memory.nr_frames


def _own_domid(current: Current, pointer: int) -> int:
    """Read a domid that must be the caller's; ESRCH, EPERM, EFAULT."""
    domid = domain_by_any_id(current, current.read_uint(pointer, 2))
    check_target(current, domid)
    return domid


@ops.sub(XENMEM_current_reservation)
def current_reservation(current: Current, pointer: int) -> int:
    """How many pages the domain has."""
    _own_domid(current, pointer)
    return current.domain.pages.tot_pages


@ops.sub(XENMEM_maximum_reservation)
def maximum_reservation(current: Current, pointer: int) -> int:
    """How many pages the domain may have."""
    _own_domid(current, pointer)
    return current.domain.pages.max_pages


@ops.sub(XENMEM_maximum_gpfn)
def maximum_gpfn(current: Current, pointer: int) -> int:
    """The highest pfn in use: a PV guest writes one more than that to arch.max_pfn itself."""
    _own_domid(current, pointer)
    domain = current.domain
    if domain.p2m is not None:
        return domain.p2m.highest
    return domain.memory.read_uint(shared_info.field(domain, "arch"), current.vcpu.width) - 1


@ops.sub(XENMEM_memory_map, xen_memory_map, copy_back=True)
def memory_map(current: Current, op: xen_memory_map) -> None:
    """Copy the memory map that the toolstack set; without a buffer, only count its entries.

    ENOSYS: none was set. EFAULT: the buffer cannot be written.
    """
    e820 = current.domain.e820
    if not e820:
        raise XenError(ENOSYS, "the toolstack set no memory map")
    if op.buffer:
        e820 = e820[: op.nr_entries]
        current.write(op.buffer, b"".join(struct.pack(E820_ENTRY, *entry) for entry in e820))
    op.nr_entries = len(e820)


@ops.sub(XENMEM_set_memory_map, xen_foreign_memory_map)
def set_memory_map(current: Current, op: xen_foreign_memory_map) -> None:
    """Replace the domain's memory map. EINVAL: too many entries. EFAULT, ESRCH, EPERM."""
    new = xen_memory_map.unpack(current.vcpu.width, op.map)
    if new.nr_entries > E820MAX:
        raise XenError(EINVAL, f"a memory map has at most {E820MAX} entries")
    check_target(current, domain_by_any_id(current, op.domid))
    data = current.read(new.buffer, new.nr_entries * struct.calcsize(E820_ENTRY))
    current.domain.e820 = list(struct.iter_unpack(E820_ENTRY, data))


ops.answer(XENMEM_machine_memory_map, "machine_memory_map", EPERM, "it is dom0's to know")


@ops.sub(XENMEM_machphys_mapping, shows=xen_machphys_mapping)
def machphys_mapping(current: Current, pointer: int) -> None:
    """Where the guest sees the machine-to-physical table, and how far it could reach.

    ENOSYS: a translated guest does not see it.
    """
    if current.domain.p2m is not None:
        raise XenError(ENOSYS, "a PVH guest does not see the machine-to-physical table")
    width = current.vcpu.width
    start, end = MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END
    if width == 4:
        start, end = HYPERVISOR_COMPAT_VIRT_START, MACH2PHYS_COMPAT_VIRT_END
    last_mfn = (end - start) // width - 1
    current.write_struct(pointer, xen_machphys_mapping(start, end, last_mfn))


@ops.sub(XENMEM_machphys_mfn_list, xen_machphys_mfn_list, copy_back=True)
def machphys_mfn_list(current: Current, op: xen_machphys_mfn_list) -> None:
    """List the first frame of each 2 MiB of the machine-to-physical table."""
    domain = current.domain
    base = domain.frames.m2p_base
    size = domain.memory.nr_frames * current.vcpu.width
    pieces = 0 if base is None else -(-size // (ENTRIES << PAGE_SHIFT))
    op.nr_extents = min(op.max_extents, pieces)
    for index in range(op.nr_extents):
        mfn = ((base or 0) >> PAGE_SHIFT) + index * ENTRIES
        current.write_ulong(op.extent_start + index * current.vcpu.width, mfn)


ops.answer(
    XENMEM_machphys_compat_mfn_list,
    "machphys_compat_mfn_list",
    ENOSYS,
    "there is no table of the other width",
    diverges="Xen also has one, for the 32-bit guests of other domains",
)


# What needs a translated guest, or rights, or a device.


def _check_physmap(current: Current, domid: int, space: int) -> None:
    """ESRCH: no such domain. EACCES: a PV domain, or memory of devices. EPERM: another domain."""
    domid = domain_by_any_id(current, domid)
    if current.domain.p2m is None or domid == DOM0:
        raise XenError(EACCES, f"d{domid} is a PV domain, and keeps its own physmap")
    if space == XENMAPSPACE_dev_mmio:
        raise XenError(EACCES, "the memory of devices is for the hardware domain")
    check_target(current, domid)


@ops.sub(XENMEM_add_to_physmap, shows=xen_add_to_physmap)
def add_to_physmap(current: Current, pointer: int, start: int = 0) -> None:
    """Put a frame, or a range of them, into the physmap.

    EACCES: a PV guest has no physmap of Xen's. ENOSYS: another domain's frames. ESRCH. EINVAL.
    """
    op = current.read_struct(xen_add_to_physmap, pointer)
    if op.space == XENMAPSPACE_gmfn_foreign:
        raise XenError(ENOSYS, "other domains' frames go by add_to_physmap_batch")
    _check_physmap(current, op.domid, op.space)
    count = op.size if op.space == XENMAPSPACE_gmfn_range else 1
    end = min(count, start + PAGES_PER_CALL)
    for n in range(start, end):
        physmap.add(current, op.space, op.idx + n, op.gpfn + n)
    current.domain.frames.work_left -= PAGE_WORK * max(0, end - start)
    if end < count:
        raise Continue(XENMEM_add_to_physmap | end << MEMOP_EXTENT_SHIFT, pointer)


@ops.sub(XENMEM_add_to_physmap_batch, shows=xen_add_to_physmap_batch)
def add_to_physmap_batch(current: Current, pointer: int, start: int = 0) -> None:
    """Put frames into the physmap, each with an errno of its own.

    EACCES: a PV guest has no physmap of Xen's. EOPNOTSUPP: a range of frames. EINVAL: nothing is
    left from `start` on. ESRCH.
    """
    op = current.read_struct(xen_add_to_physmap_batch, pointer)
    if op.space == XENMAPSPACE_gmfn_range:
        raise XenError(EOPNOTSUPP, "a range is not for add_to_physmap_batch")
    if start > op.size:
        raise XenError(EINVAL, f"a batch of {op.size} cannot go on at {start}")
    _check_physmap(current, op.domid, op.space)
    width = current.vcpu.width
    end = min(op.size, start + PAGES_PER_CALL)
    for n in range(start, end):
        index = current.read_ulong(op.idxs + n * width)
        gfn = current.read_ulong(op.gpfns + n * width)
        errno = 0
        try:
            physmap.add(current, op.space, index, gfn)
        except XenError as error:
            errno = -error.errno
            current.log(f"add_to_physmap_batch of gfn {gfn:#x} is refused: {error.reason}")
        current.write_uint(op.errs + n * 4, 4, errno)
    current.domain.frames.work_left -= PAGE_WORK * (end - start)
    if end < op.size:
        raise Continue(XENMEM_add_to_physmap_batch | end << MEMOP_EXTENT_SHIFT, pointer)


@ops.sub(XENMEM_remove_from_physmap, xen_remove_from_physmap)
def remove_from_physmap(current: Current, op: xen_remove_from_physmap) -> None:
    """Make a hole in the physmap; a PV guest has none, and its own frame stays.

    ENOENT: nothing there, or not its frame. ESRCH, EPERM.
    """
    domid = domain_by_any_id(current, op.domid)
    check_target(current, domid)
    frames = current.domain.frames
    if current.domain.p2m is not None:
        physmap.remove(current, op.gpfn)
        return
    if not (op.gpfn < len(frames.owner) and frames.owner[op.gpfn] == domid):
        raise XenError(ENOENT, f"{frames.describe(op.gpfn)} does not belong to d{domid}")


@ops.sub(XENMEM_set_pod_target, xen_pod_target)
def set_pod_target(current: Current, op: xen_pod_target) -> None:
    """EPERM: only dom0 sets it. ESRCH."""
    domain_by_any_id(current, op.domid)
    raise XenError(EPERM, "populate-on-demand targets are dom0's to set")


@ops.sub(XENMEM_get_pod_target, xen_pod_target)
def get_pod_target(current: Current, op: xen_pod_target) -> None:
    """EPERM: only dom0 reads it. ESRCH."""
    domain_by_any_id(current, op.domid)
    raise XenError(EPERM, "populate-on-demand targets are dom0's to read")


@ops.sub(XENMEM_claim_pages, xen_memory_reservation)
def claim_pages(current: Current, op: xen_memory_reservation) -> None:
    """EPERM: only dom0 claims. EINVAL: not a plain number of pages, or no such domain by id."""
    if op.extent_start or op.extent_order or op.mem_flags:
        raise XenError(EINVAL, "a claim is a number of single pages")
    if op.domid not in (0, current.domain.domid):
        raise XenError(EINVAL, f"there is no domain {op.domid}")
    raise XenError(EPERM, "claims are dom0's to make")


@ops.sub(XENMEM_get_vnumainfo, xen_vnuma_topology_info)
def get_vnumainfo(current: Current, op: xen_vnuma_topology_info) -> None:
    """EOPNOTSUPP: the domain has no virtual NUMA topology. EINVAL: padding. ESRCH, EPERM."""
    if op.pad:
        raise XenError(EINVAL, "padding is not 0")
    check_target(current, domain_by_any_id(current, op.domid))
    raise XenError(EOPNOTSUPP, "the domain has no virtual NUMA topology")


@ops.sub(XENMEM_reserved_device_memory_map, xen_reserved_device_memory_map, copy_back=True)
def reserved_device_memory_map(current: Current, op: xen_reserved_device_memory_map) -> None:
    """No memory is reserved for devices, as there is no IOMMU. EINVAL: unknown flags."""
    if op.flags & ~XENMEM_RDM_ALL:
        raise XenError(EINVAL, f"flags {op.flags:#x} are unknown")
    op.nr_entries = 0


@ops.sub(XENMEM_acquire_resource, xen_mem_acquire_resource)
def acquire_resource(current: Current, op: xen_mem_acquire_resource) -> None:
    """EPERM: oneself, or a domain that is not one's to serve. EINVAL: padding. ESRCH."""
    if op.pad:
        raise XenError(EINVAL, "padding is not 0")
    check_target(current, remote_domain_by_id(current, op.domid))


@ops.sub(XENMEM_access_op, xen_mem_access_op)
def access_op(current: Current, op: xen_mem_access_op) -> None:
    """EPERM: oneself. EINVAL: dom0 is a PV domain. ESRCH."""
    domid = remote_domain_by_id(current, op.domid)
    raise XenError(EINVAL, f"d{domid} has no access rights to set: it is a PV domain")


for _command, _name in (
    (XENMEM_get_sharing_freed_pages, "get_sharing_freed_pages"),
    (XENMEM_get_sharing_shared_pages, "get_sharing_shared_pages"),
    (XENMEM_paging_op, "paging_op"),
    (XENMEM_sharing_op, "sharing_op"),
):
    ops.answer(_command, _name, ENOSYS, "Xen is built without memory sharing and paging")

memory_op = Hypercall(Nr.memory_op, "memory_op", ALL, (ULONG, PTR), ops)
