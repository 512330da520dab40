"""Grant table operations: most take an array, and each element has its own status.

Header: public/grant_table.h
In Xen: common/grant_table.c (do_grant_table_op), common/compat/grant_table.c
"""

from __future__ import annotations

from typing import Any, Final

from hypercalls.grant_map import map_grant, unmap_grant
from hypercalls.grant_transfer import transfer as transfer_page
from xenemu.abi.errno import EFAULT, EILSEQ, EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from xenemu.abi.grant_table import (
    GNTST_NAMES,
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_dump_table,
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
    gnttab_transfer,
    gnttab_unmap_and_replace,
    gnttab_unmap_grant_ref,
)
from xenemu.abi.xen import DOMID_SELF, Nr
from xenemu.errors import XenError
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, Continue, Hypercall, SubOp, SubOps
from xenemu.hv.foreign import domain_by_any_id
from xenemu.hv.frame_table import DOMID_NONE
from xenemu.hv.grant_copy import CopyEnd, copy
from xenemu.hv.grant_table import GrantError, find_domain
from xenemu.pv.paging import in_guest_range
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Mfn

COMMAND_MASK: Final = 0xFFF  # above it is how far a cache_flush came that goes on
OPERATION_WORK: Final = 8  # of an operation, in units of Frames.work_left
BATCH: Final = 64  # operations, then the guest issues the rest of the call again


class GrantOps(SubOps):
    """Sub-operations on an array, called with (current, command, pointer, count).

    A `GrantError` becomes the status of its element, and the call goes on with the next. An errno
    ends the call; the elements before it are done.
    """

    arguments = ("command", "pointer", "count")

    def __call__(self, current: Current, command: int, *args: int) -> int | None:
        pointer, count = args
        if current.domain.p2m is not None and command not in PVH_COMMANDS:
            raise XenError(ENOSYS, f"grant_table_op {command:#x} is not for a PVH guest")
        if count >> 31:
            raise XenError(EINVAL, f"{count:#x} is no count of operations")
        came_to, command = command & ~COMMAND_MASK, command & COMMAND_MASK
        if came_to and command != GNTTABOP_cache_flush:
            raise XenError(EINVAL, f"grant_table_op {command:#x} does not go on at {came_to:#x}")
        op = self.table.get(command)
        if op is None or op.struct is None or command in COUNTLESS:
            return super().__call__(current, command, pointer)
        if command not in COUNT_OF_1:
            _check_array(current, pointer)
        elif count != 1:
            if not count and command in EMPTY_IN_COMPAT and current.vcpu.width == 4:
                return 0
            raise XenError(EINVAL, f"{count} operations: this one comes alone")
        if came_to and count:
            _check_goes_on(current.read_struct(gnttab_cache_flush, pointer))
        size = op.struct.sizeof(current.vcpu.width)
        done = min(count, BATCH)
        for index in range(done):
            self._perform(current, op, pointer + index * size)
            current.domain.frames.work_left -= OPERATION_WORK
        if done < count:
            raise Continue(command, pointer + done * size, count - done)
        return 0

    def _perform(self, current: Current, op: SubOp, pointer: int) -> None:
        """Do one operation; the guest gets back its status, or all that is OUT."""
        assert op.struct is not None and op.handler is not None
        argument: Any = current.read_struct(op.struct, pointer)
        status = GNTST_okay
        try:
            op.handler(current, argument)
        except GrantError as error:
            status = error.status
            current.vcpu.remark(f"{op.name}: {GNTST_NAMES[status]}: {error.reason}")
        if op.copy_back:
            argument.status = status
            current.write_struct(pointer, argument)
        elif op.command != GNTTABOP_cache_flush:
            at = pointer + op.struct.offsetof("status", current.vcpu.width)
            current.write_uint(at, 2, status)


ops = GrantOps("grant_table_op")

COUNT_OF_1: Final = (GNTTABOP_setup_table, GNTTABOP_query_size, GNTTABOP_get_status_frames)
COUNTLESS: Final = (GNTTABOP_set_version, GNTTABOP_get_version)
EMPTY_IN_COMPAT: Final = (GNTTABOP_setup_table, GNTTABOP_get_status_frames)
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


def _check_array(current: Current, pointer: int) -> None:
    """EFAULT for an array in Xen's part of a PV guest's address space, even an empty one."""
    if current.domain.p2m is None and not in_guest_range(pointer, current.vcpu.width):
        raise XenError(EFAULT, f"{pointer:#x} is Xen's")


def _check_own(current: Current, domid: int) -> None:
    """Whether a table is this domain's: GNTST_permission_denied for another's, GNTST_bad_domain."""
    if domid not in (DOMID_SELF, current.domain.domid):
        find_domain(current.domain, domid)
        raise GrantError(GNTST_permission_denied, f"d{domid}'s grant table is not this domain's")


def _list_frames(current: Current, frames: list[Mfn], pointer: int, size: int) -> None:
    """Tell the guest where frames are, each with `size` bytes; GNTST_bad_virt_addr."""
    p2m, fault = current.domain.p2m, ""
    for index, mfn in enumerate(frames):
        gfn = mfn if p2m is None else p2m.find(mfn)
        try:
            # A PVH guest may not have put the frame anywhere yet.
            current.write_uint(pointer + index * size, size, -1 if gfn is None else gfn)
        except XenError as error:
            fault = error.reason
    if fault:
        raise GrantError(GNTST_bad_virt_addr, fault)


# The table.


@ops.sub(GNTTABOP_setup_table, gnttab_setup_table)
def setup_table(current: Current, op: gnttab_setup_table) -> None:
    """Grow the table to `nr_frames`, and list its frames."""
    domain = current.domain
    _check_array(current, op.frame_list)
    _check_own(current, op.dom)
    grant_table.grow(domain, op.nr_frames)
    _list_frames(current, domain.grants.frames[: op.nr_frames], op.frame_list, current.vcpu.width)


@ops.sub(GNTTABOP_query_size, gnttab_query_size, copy_back=True)
def query_size(current: Current, op: gnttab_query_size) -> None:
    _check_own(current, op.dom)
    op.nr_frames = len(current.domain.grants.frames)
    op.max_nr_frames = current.domain.grants.max_frames


@ops.sub(GNTTABOP_set_version, shows=gnttab_set_version)
def set_version(current: Current, pointer: int) -> None:
    """Change the layout: errnos as `grant_table.set_version`. The guest is told the one in use."""
    domain = current.domain
    version = current.read_struct(gnttab_set_version, pointer).version
    try:
        grant_table.set_version(domain, version)
    finally:
        current.write_struct(pointer, gnttab_set_version(domain.grants.version))


@ops.sub(GNTTABOP_get_version, gnttab_get_version, copy_back=True)
def get_version(current: Current, op: gnttab_get_version) -> None:
    """Say which version is in use; ESRCH: no such domain; EPERM: another's."""
    if domain_by_any_id(current, op.dom) != current.domain.domid:
        raise XenError(EPERM, f"d{op.dom}'s grant table is not this domain's")
    op.version = current.domain.grants.version


@ops.sub(GNTTABOP_get_status_frames, gnttab_get_status_frames)
def get_status_frames(current: Current, op: gnttab_get_status_frames) -> None:
    """List the frames that only a version 2 table has."""
    frames = current.domain.grants.status_frames
    _check_array(current, op.frame_list)
    _check_own(current, op.dom)
    if op.nr_frames > len(frames):
        raise GrantError(
            GNTST_general_error,
            f"{op.nr_frames} status frames asked for: the table has {len(frames)}",
        )
    _list_frames(current, frames[: op.nr_frames], op.frame_list, 8)


@ops.sub(GNTTABOP_swap_grant_ref, gnttab_swap_grant_ref)
def swap_grant_ref(current: Current, op: gnttab_swap_grant_ref) -> None:
    grant_table.swap(current.domain, op.ref_a, op.ref_b)


# Using grants.


@ops.sub(GNTTABOP_copy, gnttab_copy)
def copy_(current: Current, op: gnttab_copy) -> None:
    by_source = bool(op.flags & GNTCOPY_source_gref)
    by_dest = bool(op.flags & GNTCOPY_dest_gref)
    # A grant reference has 32 bits; the union's other arm has the guest's width.
    source_u = op.source_u & 0xFFFFFFFF if by_source else op.source_u
    dest_u = op.dest_u & 0xFFFFFFFF if by_dest else op.dest_u
    source = CopyEnd(by_source, source_u, op.source_domid, op.source_offset)
    dest = CopyEnd(by_dest, dest_u, op.dest_domid, op.dest_offset)
    copy(current.domain, source, dest, op.len)


@ops.sub(GNTTABOP_transfer, gnttab_transfer)
def transfer(current: Current, op: gnttab_transfer) -> None:
    transfer_page(current.domain, op)


@ops.sub(GNTTABOP_map_grant_ref, gnttab_map_grant_ref, copy_back=True)
def map_grant_ref(current: Current, op: gnttab_map_grant_ref) -> None:
    map_grant(current, op)


@ops.sub(GNTTABOP_unmap_grant_ref, gnttab_unmap_grant_ref)
def unmap_grant_ref(current: Current, op: gnttab_unmap_grant_ref) -> None:
    unmap_grant(current, op.handle, op.host_addr, op.dev_bus_addr)


@ops.sub(GNTTABOP_unmap_and_replace, gnttab_unmap_and_replace)
def unmap_and_replace(current: Current, op: gnttab_unmap_and_replace) -> None:
    unmap_grant(current, op.handle, op.host_addr, 0, op.new_addr)


@ops.sub(GNTTABOP_cache_flush, gnttab_cache_flush)
def cache_flush(current: Current, op: gnttab_cache_flush) -> None:
    """Write back a part of one of the domain's frames: there is no cache to write back.

    EINVAL: the part crosses the frame, or the frame is not RAM, or is another domain's. EPERM: the
    frame is nobody's. EOPNOTSUPP: the call asks to invalidate without writing back, which x86
    cannot do.
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


def _check_goes_on(op: gnttab_cache_flush) -> None:
    """EILSEQ for a flush of nothing that would go on after a part of it."""
    if not op.length or not op.op:
        raise XenError(EILSEQ, "a flush of nothing cannot go on")


ops.answer(GNTTABOP_dump_table, "dump_table", ENOSYS, "Xen dumps no tables for guests any more")

grant_table_op = Hypercall(
    Nr.grant_table_op,
    "grant_table_op",
    ALL,
    (INT, PTR, INT),
    ops,
    diverges="of a 32-bit guest's array of copies, Xen reads 200 before it does the first",
)
