"""Mapping grants into a PV guest's page tables.

The mapping is an ordinary L1 entry, so that it counts as any other in the frame table: a guest
that overwrites it loses nothing but the right to unmap the grant.

In Xen: arch/x86/pv/grant_table.c
"""

from __future__ import annotations

from typing import Final

from hypercalls.update_va_mapping import _guest_l1e
from xenemu.abi.errno import EINVAL
from xenemu.abi.features import XENFEAT_auto_translated_physmap
from xenemu.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_guest_avail0,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_general_error,
    gnttab_map_grant_ref,
)
from xenemu.errors import XenError
from xenemu.hv.domain import Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.grant_table import KINDS, GrantError, check_bus_address
from xenemu.x86.paging import ADDR, AVAIL, NX, PAGE_SHIFT, RW, US, A, D, Mfn, P

AVAIL_SHIFT: Final = 9


def map_grant(current: Current, op: gnttab_map_grant_ref) -> None:
    """Pin one of the domain's own grants and map it as `op.flags` say; fill the OUT fields."""
    domain = current.domain
    if op.flags & GNTMAP_host_map and domain.features >> XENFEAT_auto_translated_physmap & 1:
        # DIVERGES: Xen would put the frame at a PVH guest's gfn.
        raise GrantError(GNTST_general_error, "grants are not mapped into a PVH guest's memory")
    handle, mfn = domain.grants.map(domain, op.dom, op.ref, op.flags)
    if op.flags & GNTMAP_host_map:
        try:
            maddr = _entry_maddr(current, op.host_addr, op.flags)
            _set_entry(current, maddr, _entry(mfn, op.flags))
        except XenError as error:
            domain.grants.unmap(domain, handle, KINDS)
            raise GrantError(GNTST_general_error, error.reason) from None
    op.handle = handle
    op.dev_bus_addr = mfn << PAGE_SHIFT


def unmap_grant(
    current: Current, handle: int, host_addr: int, dev_bus_addr: int, new_addr: int = 0
) -> None:
    """Undo the mappings whose addresses are given; `new_addr`'s entry replaces the host one's.

    GNTST_bad_handle, GNTST_bad_dev_addr; GNTST_general_error: the entry at `host_addr` does not
    map the grant, or one of the addresses has no entry.
    """
    domain = current.domain
    mapping = domain.grants.mapping(handle)
    check_bus_address(domain, mapping, dev_bus_addr)
    kinds = mapping.flags & KINDS
    if not dev_bus_addr:
        kinds &= GNTMAP_host_map
    if not host_addr:
        kinds &= ~GNTMAP_host_map
    if kinds & GNTMAP_host_map:
        mfn = domain.grants.active[mapping.ref].mfn
        try:
            _replace_entry(current, host_addr, new_addr, _entry(mfn, mapping.flags), mapping.flags)
        except XenError as error:
            raise GrantError(GNTST_general_error, error.reason) from None
    domain.grants.unmap(domain, handle, kinds)


def _replace_entry(
    current: Current, host_addr: int, new_addr: int, granted: int, flags: int
) -> None:
    words = current.domain.memory.words
    if new_addr and flags & GNTMAP_contains_pte:
        raise XenError(EINVAL, "a mapping named by its entry cannot be replaced")
    maddr = _entry_maddr(current, host_addr, flags)
    old = words[maddr >> 3]
    if (old ^ granted) & (ADDR | P | RW):
        raise XenError(EINVAL, f"the entry {old:#x} does not map the grant")
    if not new_addr:
        _set_entry(current, maddr, 0)
        return
    new_maddr = _entry_maddr(current, new_addr, flags)
    _set_entry(current, maddr, words[new_maddr >> 3])
    _set_entry(current, new_maddr, 0)


def _entry(mfn: Mfn, flags: int) -> int:
    """The L1 entry that maps a granted frame."""
    entry = mfn << PAGE_SHIFT | P | A | D | NX
    if flags & GNTMAP_application_map:
        entry |= US
    if not flags & GNTMAP_readonly:
        entry |= RW
    return entry | flags >> GNTMAP_guest_avail0 << AVAIL_SHIFT & AVAIL


def _entry_maddr(current: Current, host_addr: int, flags: int) -> int:
    """Where the L1 entry is: at `host_addr` itself, or found by that virtual address.

    EINVAL if there is none.
    """
    if not flags & GNTMAP_contains_pte:
        return _guest_l1e(current, host_addr)
    frames = current.domain.frames
    mfn = host_addr >> PAGE_SHIFT
    own = current.domain.memory.contains(mfn) and frames.owner[mfn] == current.domain.domid
    if host_addr % 8 or not own or frames.type[mfn] != PGT_l1_page_table:
        raise XenError(EINVAL, f"{host_addr:#x} is not the machine address of an L1 entry")
    return host_addr


def _set_entry(current: Current, maddr: int, entry: int) -> None:
    if current.domain.frames.mod_entry(maddr, entry, current.domain.domid):
        current.cpu.flush_tlb()
