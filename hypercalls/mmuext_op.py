"""Extended MMU operations: pin tables, switch address spaces, flush, set the LDT, clear and copy.

Header: public/xen.h (MMUEXT_*)
In Xen: arch/x86/mm.c (do_mmuext_op), arch/x86/x86_64/compat/mm.c
"""

from __future__ import annotations

from typing import Final

from hypercalls.mmu_batch import Batch, finish_earlier
from xenemu.abi.errno import EACCES, EINVAL, EOPNOTSUPP
from xenemu.abi.xen import (
    MMU_UPDATE_PREEMPTED,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_FLUSH_CACHE,
    MMUEXT_FLUSH_CACHE_GLOBAL,
    MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_INVLPG_MULTI,
    MMUEXT_MARK_SUPER,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L2_TABLE,
    MMUEXT_PIN_L3_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_TLB_FLUSH_MULTI,
    MMUEXT_UNMARK_SUPER,
    MMUEXT_UNPIN_TABLE,
    Nr,
)
from xenemu.abi.xen import mmuext_op as mmuext_op_t
from xenemu.errors import XenError
from xenemu.hv import observe
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, Hypercall, Points, SubOps
from xenemu.hv.foreign import check_target, get_pg_owner
from xenemu.hv.frame_table import (
    OPERATION_WORK,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_writable_page,
)
from xenemu.pv.descriptors import set_ldt as pv_set_ldt
from xenemu.pv.paging import in_guest_range, new_guest_cr3
from xenemu.pv.paging import new_user_baseptr as pv_new_user_baseptr
from xenemu.x86.paging import Mfn, is_canonical

BATCH: Final = 64  # operations done before events are looked at

ops = SubOps("mmuext_op")  # called with (current, the operation)


def do_mmuext_op(current: Current, uops: int, count: int, pdone: int, foreigndom: int) -> int:
    """Do `count` operations at `uops`, in order; at `pdone`, if given, store how many were done.

    ESRCH, EPERM: `foreigndom` is not the caller as DOMID_SELF. EINVAL: the caller is not a PV
    guest. EFAULT: an operation cannot be read. ENOSYS: unknown command.
    """
    if current.domain.frames.old_tables or count & MMU_UPDATE_PREEMPTED:
        result = finish_earlier(current, uops, count, pdone, foreigndom)
        if result is not None:
            return result
    pg_owner = get_pg_owner(current, foreigndom & 0xFFFF)
    if current.domain.p2m is not None and pg_owner == current.domain.domid:
        raise XenError(EINVAL, "a PVH guest has its own page tables")
    check_target(current, pg_owner)
    size = mmuext_op_t.sizeof(current.vcpu.width)
    with Batch(current, (uops, count, pdone, foreigndom), size, BATCH) as todo:
        while todo.done < todo.count:
            todo.check()
            op = current.read_struct(mmuext_op_t, todo.at)
            _, handler = ops.implemented(current, op.cmd)
            handler(current, op)
            todo.done += 1
            current.domain.frames.work_left -= OPERATION_WORK
    return 0


# Page tables.


def _pin(current: Current, mfn: int, level: int) -> None:
    domain = current.domain
    if level <= domain.frames.rules.root_type:  # a 32-bit guest has no L4: ignored
        observe.pin(current, mfn, level)


@ops.sub(MMUEXT_PIN_L1_TABLE)
def pin_l1_table(current: Current, op: mmuext_op_t) -> None:
    """Validate a frame as an L1 table and keep it so; errnos as `Frames.pin` has them."""
    _pin(current, op.arg1, PGT_l1_page_table)


@ops.sub(MMUEXT_PIN_L2_TABLE)
def pin_l2_table(current: Current, op: mmuext_op_t) -> None:
    """The same for an L2 table and all below it."""
    _pin(current, op.arg1, PGT_l2_page_table)


@ops.sub(MMUEXT_PIN_L3_TABLE)
def pin_l3_table(current: Current, op: mmuext_op_t) -> None:
    """The same for an L3 table and all below it."""
    _pin(current, op.arg1, PGT_l3_page_table)


@ops.sub(MMUEXT_PIN_L4_TABLE)
def pin_l4_table(current: Current, op: mmuext_op_t) -> None:
    """The same for an L4 table and all below it."""
    _pin(current, op.arg1, PGT_l4_page_table)


@ops.sub(MMUEXT_UNPIN_TABLE)
def unpin_table(current: Current, op: mmuext_op_t) -> None:
    """Let a pinned table go; EINVAL if it is not pinned."""
    observe.unpin(current, op.arg1)


@ops.sub(MMUEXT_NEW_BASEPTR)
def new_baseptr(current: Current, op: mmuext_op_t) -> None:
    """Switch the kernel's address space."""
    new_guest_cr3(current, op.arg1)


@ops.sub(MMUEXT_NEW_USER_BASEPTR)
def new_user_baseptr(current: Current, op: mmuext_op_t) -> None:
    """Switch the user's address space, or leave it without one; EINVAL from a 32-bit guest."""
    if current.vcpu.width == 4:
        raise XenError(EINVAL, "a 32-bit guest has one address space for kernel and user")
    pv_new_user_baseptr(current, op.arg1)


# Flushing.


def vcpus_in_mask(current: Current, pointer: int) -> int:
    """Read a guest's bitmap of vcpus, in words of its width, up to the last vcpu it has.

    EFAULT if it cannot be read.
    """
    width = current.vcpu.width
    nr_vcpus = len(current.domain.vcpus)
    size = -(-nr_vcpus // (8 * width)) * width
    mask = int.from_bytes(current.read(pointer, size), "little")
    return mask & ((1 << nr_vcpus) - 1)


def _multi(current: Current, op: mmuext_op_t) -> bool:
    """Whether the operation's vcpu mask names any vcpu; EINVAL if it cannot be read."""
    try:
        return bool(vcpus_in_mask(current, op.arg2))
    except XenError as error:
        raise XenError(EINVAL, f"the vcpu mask cannot be read: {error.reason}") from None


@ops.sub(MMUEXT_TLB_FLUSH_LOCAL)
def tlb_flush_local(current: Current, op: mmuext_op_t) -> None:
    """Flush this vcpu's TLB."""
    current.cpu.flush_tlb()


@ops.sub(MMUEXT_INVLPG_LOCAL)
def invlpg_local(current: Current, op: mmuext_op_t) -> None:
    """Flush one page from this vcpu's TLB."""
    if is_canonical(op.arg1):
        current.cpu.flush_tlb_page(op.arg1)


@ops.sub(MMUEXT_TLB_FLUSH_MULTI)
def tlb_flush_multi(current: Current, op: mmuext_op_t) -> None:
    """Flush the TLBs of some vcpus: a vcpu that is not in the CPU has nothing in a TLB."""
    if _multi(current, op):
        current.cpu.flush_tlb()


@ops.sub(MMUEXT_INVLPG_MULTI)
def invlpg_multi(current: Current, op: mmuext_op_t) -> None:
    """Flush one page from the TLBs of some vcpus."""
    if _multi(current, op) and in_guest_range(op.arg1, current.vcpu.width):
        current.cpu.flush_tlb_page(op.arg1)


@ops.sub(MMUEXT_TLB_FLUSH_ALL)
def tlb_flush_all(current: Current, op: mmuext_op_t) -> None:
    """Flush the TLBs of all vcpus."""
    current.cpu.flush_tlb()


@ops.sub(MMUEXT_INVLPG_ALL)
def invlpg_all(current: Current, op: mmuext_op_t) -> None:
    """Flush one page from the TLBs of all vcpus."""
    if in_guest_range(op.arg1, current.vcpu.width):
        current.cpu.flush_tlb_page(op.arg1)


ops.answer(MMUEXT_FLUSH_CACHE, "flush_cache", EACCES, "the domain has no device")
ops.answer(MMUEXT_FLUSH_CACHE_GLOBAL, "flush_cache_global", EINVAL, "the domain has no device")


# Descriptors and pages.


@ops.sub(MMUEXT_SET_LDT)
def set_ldt(current: Current, op: mmuext_op_t) -> None:
    """Set the LDT to `arg2` entries at linear address `arg1`; EINVAL if that is not possible."""
    entries = op.arg2 & 0xFFFFFFFF
    pv_set_ldt(current, op.arg1 if entries else 0, entries)


@ops.sub(MMUEXT_CLEAR_PAGE)
def clear_page(current: Current, op: mmuext_op_t) -> None:
    """Fill a frame with zeroes; EINVAL if it is not the domain's, or in use as a table."""
    domain = current.domain
    domain.frames.get_page_and_type(op.arg1, domain.domid, PGT_writable_page)
    domain.memory.clear_frame(Mfn(op.arg1))
    domain.frames.put_page_and_type(op.arg1)


@ops.sub(MMUEXT_COPY_PAGE)
def copy_page(current: Current, op: mmuext_op_t) -> None:
    """Copy frame `arg2` to `arg1`; EINVAL as for clear_page, and for another domain's source."""
    domain = current.domain
    domain.frames.get_page(op.arg2, domain.domid)
    try:
        domain.frames.get_page_and_type(op.arg1, domain.domid, PGT_writable_page)
        domain.memory.copy_frame(Mfn(op.arg1), Mfn(op.arg2))
        domain.frames.put_page_and_type(op.arg1)
    finally:
        domain.frames.put_page(op.arg2)


ops.answer(MMUEXT_MARK_SUPER, "mark_super", EOPNOTSUPP, "Xen has no superpages for PV guests")
ops.answer(MMUEXT_UNMARK_SUPER, "unmark_super", EOPNOTSUPP, "Xen has no superpages for PV guests")

mmuext_op = Hypercall(
    Nr.mmuext_op,
    "mmuext_op",
    ALL,
    (PTR, INT, PTR, INT),
    do_mmuext_op,
    points=Points(0, mmuext_op_t, count=1),
    batch_of=ops,
)
