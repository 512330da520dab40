"""Mapping grants into a PV guest's page tables.

The mapping is an ordinary L1 entry, so it counts like any other in the frame table. A guest that
overwrites it loses only the right to unmap the grant, until it maps the frame there again.

In Xen: arch/x86/pv/grant_table.c
"""

from __future__ import annotations

from typing import Final

from hypercalls.update_va_mapping import guest_l1e
from xenemu.abi.errno import EINVAL
from xenemu.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_guest_avail0,
    GNTMAP_readonly,
)
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.observe import mod_entry
from xenemu.hv.state.domain import Domain
from xenemu.x86.paging import ADDR, AVAIL, NX, PAGE_SHIFT, RW, US, A, D, Mfn, P

AVAIL_SHIFT: Final = 9


def create_mapping(current: Current, granter: Domain, host_addr: int, mfn: Mfn, flags: int) -> None:
    """Set the L1 entry at `host_addr`, or that of this virtual address, to the granter's frame.

    EINVAL if there is none. Errnos of `Frames.mod_entry`, if the frame cannot be mapped.
    """
    entry = mfn << PAGE_SHIFT | _pte_flags(flags)
    _set_entry(current, _entry_maddr(current, host_addr, flags), entry, granter.domid)


def replace_mapping(current: Current, host_addr: int, new_addr: int, mfn: Mfn, flags: int) -> None:
    """Clear the entry of a mapping, or move the entry of `new_addr` there, unless that is 0.

    EINVAL: there is no entry, or the entry at `host_addr` does not map the grant. The entry of
    `new_addr` is lost even then.
    """
    frames, words = current.domain.frames, current.domain.memory.words
    owner = current.domain.domid
    if not new_addr:
        _set_entry(current, _granted_entry(current, host_addr, mfn, flags), 0, owner)
        return
    if flags & GNTMAP_contains_pte:
        raise XenError(EINVAL, "a mapping named by its entry cannot be replaced")
    new_maddr = guest_l1e(current, new_addr)
    stolen = words[new_maddr >> 3]
    target = (stolen & ADDR) >> PAGE_SHIFT
    if stolen & P:  # it may be the frame's last reference
        owner = frames.owner[target]
        frames.get_page(target, owner)
    try:
        _set_entry(current, new_maddr, 0, owner)
        _set_entry(current, _granted_entry(current, host_addr, mfn, flags), stolen, owner)
    finally:
        if stolen & P:
            frames.put_page(target)


def _granted_entry(current: Current, host_addr: int, mfn: Mfn, flags: int) -> int:
    """Where the entry is that maps the grant; EINVAL if it does not map it, or no longer."""
    maddr = _entry_maddr(current, host_addr, flags)
    entry = current.domain.memory.words[maddr >> 3]
    if (entry ^ (mfn << PAGE_SHIFT | _pte_flags(flags))) & (ADDR | P | RW):
        raise XenError(EINVAL, f"the entry {entry:#x} does not map the grant of mfn {mfn:#x}")
    return maddr


def _pte_flags(flags: int) -> int:
    entry = P | A | D | NX
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
        return guest_l1e(current, host_addr)
    frames = current.domain.frames
    mfn = host_addr >> PAGE_SHIFT
    own = current.domain.memory.contains(mfn) and frames.owner[mfn] == current.domain.domid
    if host_addr % 8 or not own or frames.type[mfn] != PGT_l1_page_table:
        raise XenError(EINVAL, f"{host_addr:#x} is not the machine address of an L1 entry")
    return host_addr


def _set_entry(current: Current, maddr: int, entry: int, owner: int) -> None:
    """Set an L1 entry; `owner` has the frame that it maps."""
    if mod_entry(current, maddr, entry, owner):
        current.cpu.flush_tlb()
