"""Change the L1 entry that maps a virtual address, and flush.

Header: public/xen.h (UVMF_*)
In Xen: arch/x86/mm.c (do_update_va_mapping)
"""

from __future__ import annotations

from hypercalls.mmuext_op import vcpus_in_mask
from xenemu.abi.errno import EINVAL
from xenemu.abi.xen import (
    UVMF_ALL,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_LOCAL,
    UVMF_TLB_FLUSH,
    Nr,
)
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import INT, PV, U64, ULONG, Hypercall
from xenemu.hv.foreign import check_target, get_pg_owner
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.observe import mod_entry
from xenemu.pv.paging import in_guest_range
from xenemu.x86.paging import PAGE_SHIFT, Mfn, l1_entry


def do_update_va_mapping(current: Current, va: int, value: int, flags: int) -> int:
    """Map the page at `va` by the L1 entry `value`, then flush as `flags` (UVMF_*) say.

    EINVAL: the tables in use have no L1 table for `va`. EFAULT: the vcpu mask of the flush cannot
    be read. Other errnos are those of `Frames.mod_entry`.
    """
    return _update(current, va, value, flags, current.domain.domid)


def do_update_va_mapping_otherdomain(
    current: Current, va: int, value: int, flags: int, domid: int
) -> int:
    """The same for a frame of another domain; ESRCH or EPERM unless it is DOMID_SELF."""
    pg_owner = get_pg_owner(current, domid & 0xFFFF)
    check_target(current, pg_owner)
    return _update(current, va, value, flags, pg_owner)


def _update(current: Current, va: int, value: int, flags: int, pg_owner: int) -> int:
    if mod_entry(current, guest_l1e(current, va), value, pg_owner):
        current.cpu.flush_tlb()
    _flush(current, va, flags)
    return 0


def guest_l1e(current: Current, va: int) -> int:
    """The machine address of the L1 entry for `va`; EINVAL if there is none."""
    domain = current.domain
    frames = domain.frames
    if in_guest_range(va, current.vcpu.width):
        root = Mfn(current.cpu.cr3 >> PAGE_SHIFT)
        maddr = l1_entry(domain.memory.words, root, va, frames.rules.root_type)
        if maddr is not None:
            mfn = maddr >> PAGE_SHIFT
            if frames.owner[mfn] == domain.domid and frames.type[mfn] == PGT_l1_page_table:
                return maddr
    raise XenError(EINVAL, f"{va:#x} has no L1 page table in the tables in use")


def _flush(current: Current, va: int, flags: int) -> None:
    target = flags & ~UVMF_FLUSHTYPE_MASK
    kind = flags & UVMF_FLUSHTYPE_MASK
    if kind not in (UVMF_TLB_FLUSH, UVMF_INVLPG):
        return
    if target not in (UVMF_LOCAL, UVMF_ALL) and not vcpus_in_mask(current, target):
        return
    if kind == UVMF_TLB_FLUSH:
        current.cpu.flush_tlb()
    else:
        current.cpu.flush_tlb_page(va)


EAGER_FLUSH = "Xen flushes no more than it is asked to, and later, if the frame's type changes"
update_va_mapping = Hypercall(
    Nr.update_va_mapping,
    "update_va_mapping",
    PV,
    (ULONG, U64, ULONG),
    do_update_va_mapping,
    diverges=EAGER_FLUSH,
)
update_va_mapping_otherdomain = Hypercall(
    Nr.update_va_mapping_otherdomain,
    "update_va_mapping_otherdomain",
    PV,
    (ULONG, U64, ULONG, INT),
    do_update_va_mapping_otherdomain,
    diverges=EAGER_FLUSH,
)
