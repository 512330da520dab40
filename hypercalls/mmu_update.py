"""Change page-table entries, and the machine-to-physical table, in batches.

Header: public/xen.h (MMU_*)
In Xen: arch/x86/mm.c (do_mmu_update)
"""

from __future__ import annotations

from typing import Final

from hypercalls.mmu_batch import Batch, finish_earlier
from xenemu.abi.errno import EINVAL, ENOSYS, ESRCH
from xenemu.abi.xen import (
    DOMID_IO,
    MMU_MACHPHYS_UPDATE,
    MMU_NORMAL_PT_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMU_UPDATE_PREEMPTED,
    Nr,
)
from xenemu.abi.xen import mmu_update as mmu_update_t
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import INT, PTR, PV, Hypercall, Points
from xenemu.hv.foreign import check_target, get_pg_owner
from xenemu.hv.frame_table import LEVELS, REQUEST_WORK, PGT_l1_page_table, PGT_writable_page
from xenemu.hv.observe import mod_entry
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Maddr

REQUEST: Final = mmu_update_t.layout(8).packer  # the same in both widths
REQUEST_SIZE: Final = REQUEST.size
BATCH: Final = 512  # requests done before events are looked at
COMMAND: Final = 7  # in `ptr`: an entry is 8 bytes


def do_mmu_update(current: Current, ureqs: int, count: int, pdone: int, foreigndom: int) -> int:
    """Do `count` requests at `ureqs`, in order; at `pdone`, if given, store how many were done.

    The low half of `foreigndom` names the domain whose frames the new entries point to. The high
    half, if not 0, is 1 + the domain whose tables are changed.

    ESRCH: no such domain. EPERM: a domain that is not the caller's to change. EFAULT: a request
    cannot be read. ENOSYS: unknown command. EINVAL: the frame is not the domain's, or is in use as
    something that cannot be updated. Other errnos are those of `Frames.mod_entry`.
    """
    domain, frames = current.domain, current.domain.frames
    if frames.old_tables or count & MMU_UPDATE_PREEMPTED:
        result = finish_earlier(current, ureqs, count, pdone, foreigndom)
        if result is not None:
            return result
    pt_dom = foreigndom >> 16
    if pt_dom not in (0, domain.domid + 1, 1):
        raise XenError(ESRCH, f"there is no domain {pt_dom - 1}")
    pt_owner = pt_dom - 1 if pt_dom else domain.domid
    flush = False
    with Batch(current, (ureqs, count, pdone, foreigndom), REQUEST_SIZE, BATCH) as todo:
        try:
            pg_owner = get_pg_owner(current, foreigndom & 0xFFFF)
            while todo.done < todo.count:
                todo.check()
                for ptr, value in _read_requests(current, todo):
                    flush |= _update(current, ptr, value, pt_owner, pg_owner)
                    todo.done += 1
                    frames.work_left -= REQUEST_WORK
                    if frames.old_tables or frames.work_left <= 0:
                        break
        finally:
            if flush:
                current.cpu.flush_tlb()
    return 0


def _read_requests(current: Current, todo: Batch) -> list[tuple[int, int]]:
    """Read the next requests up to the end of the page, at least one."""
    at = todo.start + todo.done * REQUEST_SIZE
    count = min(todo.count, BATCH) - todo.done
    if count > 1:
        count = min(count, max(1, (PAGE_SIZE - (at & PAGE_MASK)) // REQUEST_SIZE))
    return list(REQUEST.iter_unpack(current.read(at, count * REQUEST_SIZE)))


def _update(current: Current, ptr: int, value: int, pt_owner: int, pg_owner: int) -> bool:
    """Do one request; return whether to flush the TLB."""
    frames = current.domain.frames
    command = ptr & COMMAND
    if command == MMU_MACHPHYS_UPDATE:
        _update_m2p(current, ptr, value, pt_owner, pg_owner)
        return False
    if command not in (MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_PRESERVE_AD, MMU_PT_UPDATE_NO_TRANSLATE):
        raise XenError(ENOSYS, f"mmu_update has no command {command}")
    if not pg_owner == pt_owner == current.domain.domid:
        if pg_owner != DOMID_IO:
            check_target(current, pg_owner)
        check_target(current, pt_owner)
    mfn, watch = ptr >> PAGE_SHIFT, current.domain.watch
    preserve = command == MMU_PT_UPDATE_PRESERVE_AD
    if (
        watch is None
        and mfn < current.domain.memory.nr_frames
        and frames.type[mfn] == PGT_l1_page_table
        and frames.owner[mfn] == pt_owner
    ):  # the commonest; an L1 table does not go away by a change to it, and needs no reference
        return frames.mod_l1_entry(ptr - command, value, pg_owner, preserve)
    frames.get_page(mfn, pt_owner)
    try:
        used_as = frames.type[mfn]
        if used_as in LEVELS:
            if watch is None:
                return frames.mod_entry(ptr - command, value, pg_owner, preserve)
            return mod_entry(current, ptr - command, value, pg_owner, preserve)
        if used_as != PGT_writable_page:
            raise XenError(EINVAL, f"mmu_update of {frames.describe(mfn)}, which is no page table")
        current.domain.memory.write_uint(Maddr(ptr - command), 8, value)
        return False
    finally:
        frames.put_page(mfn)


def _update_m2p(current: Current, ptr: int, pfn: int, pt_owner: int, pg_owner: int) -> None:
    check_target(current, pt_owner)
    if pg_owner != DOMID_IO:
        check_target(current, pg_owner)
    mfn = ptr >> PAGE_SHIFT
    frames = current.domain.frames
    frames.get_page(mfn, pg_owner)
    frames.set_m2p(mfn, pfn)
    frames.put_page(mfn)


mmu_update = Hypercall(
    Nr.mmu_update,
    "mmu_update",
    PV,
    (PTR, INT, PTR, INT),
    do_mmu_update,
    points=Points(0, mmu_update_t, count=1),
    diverges="Xen reads each request only when its turn comes: a batch can rewrite itself",
)
