"""The physmap of a translated guest: what add_to_physmap puts there, and how it leaves again.

In Xen: arch/x86/mm.c (xenmem_add_to_physmap_one), common/memory.c, common/grant_table.c
(gnttab_map_frame)
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL, ENOENT, EPERM, EXDEV
from xenemu.abi.memory import (
    XENMAPIDX_grant_table_status,
    XENMAPSPACE_gmfn,
    XENMAPSPACE_gmfn_foreign,
    XENMAPSPACE_gmfn_range,
    XENMAPSPACE_grant_table,
    XENMAPSPACE_shared_info,
)
from xenemu.errors import XenError
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.p2m import MAX_GFN, P2m
from xenemu.x86.paging import Mfn


def p2m_of(current: Current) -> P2m:
    """The current domain's physmap; the domain must have one."""
    assert current.domain.p2m is not None
    return current.domain.p2m


def check_gfn(gfn: int) -> None:
    """EINVAL for a guest frame number that no memory can have."""
    if gfn > MAX_GFN:
        raise XenError(EINVAL, f"guest frame {gfn:#x} is beyond what an address reaches")


def add(current: Current, space: int, index: int, gfn: int) -> None:
    """Put the frame that `space` and `index` name at `gfn`; what was there is given back.

    EINVAL: no such frame, no such space, no such `gfn`. EPERM: another domain's. EXDEV: the frame
    is there as a grant.
    """
    check_gfn(gfn)
    p2m = p2m_of(current)
    mfn = _frame(current, space, index)
    before = p2m.find(mfn)
    if before is not None:
        p2m.remove(before)
    discard(current, gfn)
    p2m.set(gfn, mfn)


def _frame(current: Current, space: int, index: int) -> Mfn:
    domain = current.domain
    if space == XENMAPSPACE_shared_info:
        if index:
            raise XenError(EINVAL, f"shared_info has one frame, not number {index}")
        return domain.shared_info
    if space == XENMAPSPACE_grant_table:
        return _grant_frame(current, index)
    if space in (XENMAPSPACE_gmfn, XENMAPSPACE_gmfn_range):
        p2m = p2m_of(current)
        if index in p2m.granted:
            raise XenError(EXDEV, f"guest frame {index:#x} maps a grant, and is no place to move")
        return p2m.lookup(index)
    if space == XENMAPSPACE_gmfn_foreign:
        raise XenError(EPERM, "another domain's frames are not this one's to map")
    raise XenError(EINVAL, f"there is no map space {space}")


def _grant_frame(current: Current, index: int) -> Mfn:
    grants = current.domain.grants
    index &= 0xFFFFFFFF
    status = grants.version == 2 and bool(index & XENMAPIDX_grant_table_status)
    if status:
        index &= ~XENMAPIDX_grant_table_status
    return grant_table.frame_at(current.domain, index, status)


def discard(current: Current, gfn: int) -> None:
    """Make a hole at `gfn`; RAM that was there goes back to the machine."""
    domain = current.domain
    mfn = p2m_of(current).remove(gfn)
    if mfn is not None and not domain.frames.is_xen_heap(mfn):
        domain.frames.release(mfn)


def remove(current: Current, gfn: int) -> None:
    """XENMEM_remove_from_physmap: make a hole; ENOENT: there is one.

    As in Xen, the domain keeps the frame, though it has no place any more.
    """
    if p2m_of(current).remove(gfn) is None:
        raise XenError(ENOENT, f"there is no memory at guest frame {gfn:#x}")


def populate(current: Current, gfn: int, mfn: Mfn) -> None:
    """Put new memory at `gfn`; what was there stays the domain's, without a place."""
    p2m = p2m_of(current)
    p2m.check_no_grant(gfn)
    p2m.remove(gfn)
    p2m.set(gfn, mfn)
