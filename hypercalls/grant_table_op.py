"""Grant table operations: most take an array, and each element has its own status.

Header: public/grant_table.h
In Xen: common/grant_table.c (do_grant_table_op)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hypercalls.grant_map import map_grant, unmap_grant
from xenemu.abi.errno import EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from xenemu.abi.grant_table import (
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_domain,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_get_status_frames,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    gnttab_cache_flush,
    gnttab_copy,
    gnttab_get_status_frames,
    gnttab_get_version,
    gnttab_map_grant_ref,
    gnttab_query_size,
    gnttab_set_version,
    gnttab_setup_table,
    gnttab_swap_grant_ref,
    gnttab_unmap_and_replace,
    gnttab_unmap_grant_ref,
)
from xenemu.abi.xen import DOMID_SELF, Nr
from xenemu.errors import XenError
from xenemu.hv.dispatch import ALL, INT, PTR, Continue, Hypercall, SubOps
from xenemu.hv.domain import Current
from xenemu.hv.foreign import DOM0, lock_domain_by_any_id
from xenemu.hv.frame_table import DOMID_NONE
from xenemu.hv.grant_table import CopyEnd, GrantError, copy
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE

COMMAND_MASK: Final = 0xFFF  # Xen keeps a continuation's state above it
VERSION: Final = 1  # of the table's layout
OPERATION_WORK: Final = 8
BATCH: Final = 64  # operations, then the guest issues the rest of the call again


class GrantOps(SubOps):
    """Sub-operations on an array, called with (current, command, pointer, count)."""

    arguments = ("command", "pointer", "count")

    def __call__(self, current: Current, command: int, *args: int) -> int | None:
        pointer, count = args
        if current.domain.p2m is not None and command not in PVH_COMMANDS:
            raise XenError(ENOSYS, f"grant_table_op {command:#x} is not for a PVH guest")
        if count >> 31:
            raise XenError(EINVAL, f"{count:#x} is no count of operations")
        if command & ~COMMAND_MASK:
            raise XenError(EINVAL, f"grant_table_op has no command {command:#x}")
        if command in SINGLE:
            if count != 1 and command in COUNT_OF_1:
                raise XenError(EINVAL, f"{count} operations: this one comes alone")
            return super().__call__(current, command, pointer)
        op = self.table.get(command)
        if op is None or op.struct is None:
            return super().__call__(current, command, pointer)
        size = op.struct.sizeof(current.domain.width)
        done = min(count, BATCH)
        for index in range(done):
            super().__call__(current, command, pointer + index * size)
            current.domain.frames.work_left -= OPERATION_WORK
        if done < count:
            raise Continue(command, pointer + done * size, count - done)
        return 0


ops = GrantOps("grant_table_op")

COUNT_OF_1: Final = (GNTTABOP_setup_table, GNTTABOP_query_size, GNTTABOP_get_status_frames)
SINGLE: Final = (*COUNT_OF_1, GNTTABOP_set_version, GNTTABOP_get_version)
# In Xen: arch/x86/hvm/hypercall.c (hvm_grant_table_op)
PVH_COMMANDS: Final = (
    GNTTABOP_query_size,
    GNTTABOP_setup_table,
    GNTTABOP_set_version,
    GNTTABOP_get_version,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_grant_ref,
    GNTTABOP_swap_grant_ref,
)


def _status(current: Current, action: Callable[[], None]) -> int:
    """Run one operation, and give its GNTST_* status; the log gets why it was refused."""
    try:
        action()
    except GrantError as error:
        current.domain.log(f"grant_table_op gives the status {error.status}: {error.reason}")
        return error.status
    return GNTST_okay


def _check_own(current: Current, domid: int) -> None:
    """Whether a table is this domain's: GNTST_permission_denied for dom0's."""
    if domid == DOM0:
        raise GrantError(GNTST_permission_denied, "dom0's grant table is not this domain's")
    if domid not in (DOMID_SELF, current.domain.domid):
        raise GrantError(GNTST_bad_domain, f"there is no domain {domid}")


# The table.


@ops.sub(GNTTABOP_setup_table, gnttab_setup_table, copy_back=True)
def setup_table(current: Current, op: gnttab_setup_table) -> None:
    """Grow the table to `nr_frames`, and list its frames."""
    op.status = _status(current, lambda: _setup_table(current, op))


def _setup_table(current: Current, op: gnttab_setup_table) -> None:
    domain = current.domain
    _check_own(current, op.dom)
    domain.grants.grow(domain, op.nr_frames)
    for index, mfn in enumerate(domain.grants.frames[: op.nr_frames]):
        gfn = mfn if domain.p2m is None else domain.p2m.find(mfn)
        try:
            # A PVH guest may not have put the frame anywhere yet.
            current.write_ulong(op.frame_list + index * domain.width, -1 if gfn is None else gfn)
        except XenError as error:
            raise GrantError(GNTST_bad_virt_addr, error.reason) from None


@ops.sub(GNTTABOP_query_size, gnttab_query_size, copy_back=True)
def query_size(current: Current, op: gnttab_query_size) -> None:
    op.status = _status(current, lambda: _check_own(current, op.dom))
    if op.status == GNTST_okay:
        op.nr_frames = len(current.domain.grants.frames)
        op.max_nr_frames = current.domain.grants.max_frames


@ops.sub(GNTTABOP_set_version, shows=gnttab_set_version)
def set_version(current: Current, pointer: int) -> None:
    """Ask for a version; EINVAL: there is none such; ENOSYS: version 2, which is not offered.

    In any case the guest is told the one in use.
    """
    # DIVERGES: Xen's default offers version 2; this is Xen booted with gnttab=max-ver:1.
    version = current.read_struct(gnttab_set_version, pointer).version
    current.write_struct(pointer, gnttab_set_version(VERSION))
    if version == 2:
        raise XenError(ENOSYS, "grant tables have version 1")
    if version != VERSION:
        raise XenError(EINVAL, f"grant tables have no version {version}")


@ops.sub(GNTTABOP_get_version, gnttab_get_version, copy_back=True)
def get_version(current: Current, op: gnttab_get_version) -> None:
    """Say which version is in use; ESRCH: no such domain; EPERM: dom0's."""
    if lock_domain_by_any_id(current, op.dom) == DOM0:
        raise XenError(EPERM, "dom0's grant table is not this domain's")
    op.version = VERSION


@ops.sub(GNTTABOP_get_status_frames, gnttab_get_status_frames, copy_back=True)
def get_status_frames(current: Current, op: gnttab_get_status_frames) -> None:
    """List the frames that only a version 2 table has."""
    op.status = _status(current, lambda: _check_own(current, op.dom))
    if op.status == GNTST_okay and op.nr_frames:
        op.status = GNTST_general_error


@ops.sub(GNTTABOP_swap_grant_ref, gnttab_swap_grant_ref, copy_back=True)
def swap_grant_ref(current: Current, op: gnttab_swap_grant_ref) -> None:
    domain = current.domain
    op.status = _status(current, lambda: domain.grants.swap(domain, op.ref_a, op.ref_b))


# Using grants.


@ops.sub(GNTTABOP_copy, gnttab_copy, copy_back=True)
def copy_(current: Current, op: gnttab_copy) -> None:
    by_source = bool(op.flags & GNTCOPY_source_gref)
    by_dest = bool(op.flags & GNTCOPY_dest_gref)
    # A grant reference has 32 bits; the union's other arm has the guest's width.
    source_u = op.source_u & 0xFFFFFFFF if by_source else op.source_u
    dest_u = op.dest_u & 0xFFFFFFFF if by_dest else op.dest_u
    source = CopyEnd(by_source, source_u, op.source_domid, op.source_offset)
    dest = CopyEnd(by_dest, dest_u, op.dest_domid, op.dest_offset)
    op.status = _status(current, lambda: copy(current.domain, source, dest, op.len))


@ops.sub(GNTTABOP_map_grant_ref, gnttab_map_grant_ref, copy_back=True)
def map_grant_ref(current: Current, op: gnttab_map_grant_ref) -> None:
    op.status = _status(current, lambda: map_grant(current, op))


@ops.sub(GNTTABOP_unmap_grant_ref, gnttab_unmap_grant_ref, copy_back=True)
def unmap_grant_ref(current: Current, op: gnttab_unmap_grant_ref) -> None:
    op.status = _status(
        current, lambda: unmap_grant(current, op.handle, op.host_addr, op.dev_bus_addr)
    )


@ops.sub(GNTTABOP_unmap_and_replace, gnttab_unmap_and_replace, copy_back=True)
def unmap_and_replace(current: Current, op: gnttab_unmap_and_replace) -> None:
    op.status = _status(
        current, lambda: unmap_grant(current, op.handle, op.host_addr, 0, op.new_addr)
    )


@ops.sub(GNTTABOP_cache_flush, gnttab_cache_flush)
def cache_flush(current: Current, op: gnttab_cache_flush) -> None:
    """Write back a part of one of the domain's frames: there is no cache to write back.

    EINVAL: the part crosses the frame, or the frame is not RAM or another's; EPERM: nobody's;
    EOPNOTSUPP: invalidating without writing back, which x86 cannot do.
    """
    frames = current.domain.frames
    if op.offset >= PAGE_SIZE or op.offset + op.length > PAGE_SIZE:
        raise XenError(EINVAL, f"{op.length} bytes at {op.offset:#x} cross a page")
    if op.op & ~(GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL):
        raise XenError(EINVAL, f"there is no cache operation {op.op:#x}")
    if not op.length or not op.op:
        return
    mfn = op.dev_bus_addr >> PAGE_SHIFT
    if not current.domain.memory.contains(mfn):
        raise XenError(EINVAL, f"{op.dev_bus_addr:#x} is not RAM")
    if frames.owner[mfn] == DOMID_NONE:
        raise XenError(EPERM, f"{frames.describe(mfn)} has no owner")
    if frames.owner[mfn] != current.domain.domid:
        raise XenError(EINVAL, f"{frames.describe(mfn)} is not granted to this domain")
    if op.op == GNTTAB_CACHE_INVAL:
        raise XenError(EOPNOTSUPP, "x86 does not drop cache lines unwritten")


# DIVERGES: Xen's default allows transfers; this is Xen booted with gnttab=no-transfer.
ops.answer(GNTTABOP_transfer, "transfer", EOPNOTSUPP, "transfers are not offered")

grant_table_op = Hypercall(Nr.grant_table_op, "grant_table_op", ALL, (INT, PTR, INT), ops)
