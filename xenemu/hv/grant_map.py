"""Mapping grants: what is the same for every grantee, wherever the mapping is made.

A mapping pins the grant, and has a handle. A mapping for devices holds the frame, and nothing more,
because there is no IOMMU. A mapping for the CPU depends on the grantee. For a PV guest it is an L1
entry. For a PVH guest it is a place in the physmap. dom0's backends see all of memory, so for them
it is nothing but the reference.

In Xen: common/grant_table.c (map_grant_ref, unmap_common)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from xenemu.abi.grant_table import (
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_general_error,
    GNTST_no_space,
)
from xenemu.errors import DomainCrash, XenError
from xenemu.hv import grant_table
from xenemu.hv.frame_table import PGT_none, PGT_writable_page
from xenemu.hv.grant_table import KINDS, GrantError, pin_increment, refuse_dom0
from xenemu.hv.maptrack import Mapping, Maptrack
from xenemu.hv.state.domain import DOM0, Domain
from xenemu.x86.paging import Mfn

FLAGS_MASK = 0xFFFF  # what a mapping remembers of its flags


class Grantee(Protocol):
    """A party that maps grants: a vcpu of a guest's, or dom0."""

    @property
    def domid(self) -> int:
        """The domain that a grant must be for."""

    @property
    def vcpu_id(self) -> int:
        """Whose list of free handles to take from."""

    @property
    def maptrack(self) -> Maptrack:
        """The handles of its mappings."""

    def map_for_cpu(self, granter: Domain, mfn: Mfn, host_addr: int, flags: int) -> None:
        """Let its CPU reach the frame at `host_addr`; XenError or DomainCrash, and nothing done."""

    def unmap_for_cpu(
        self, granter: Domain, mfn: Mfn, host_addr: int, new_addr: int, flags: int
    ) -> None:
        """Undo that, and put `new_addr`'s entry there if not 0. XenError: it is not there."""


def map_grant(
    grantee: Grantee, granter: Domain | None, ref: int, flags: int, host_addr: int
) -> tuple[int, Mfn]:
    """Pin a grant and map it as `flags` say; its handle and the frame. None is dom0, as granter.

    GNTST_no_space: no handle is left; GNTST_general_error: a mapping that the grantee cannot have,
    or no place for it at `host_addr`; others as `grant_table.acquire`.
    """
    maptrack = grantee.maptrack
    handle = maptrack.get(grantee.vcpu_id)
    if handle is None:
        raise GrantError(GNTST_no_space, "all handles for mappings are in use")
    try:
        if granter is None:
            refuse_dom0(ref)
        mfn = _map(grantee, granter, ref, flags, host_addr)
    except (GrantError, DomainCrash):
        maptrack.put(handle)
        raise
    maptrack.mappings[handle] = Mapping(granter.domid, ref, flags & FLAGS_MASK)
    return handle, mfn


def _map(grantee: Grantee, granter: Domain, ref: int, flags: int, host_addr: int) -> Mfn:
    incr = pin_increment(flags)
    mfn = grant_table.acquire(granter, grantee.domid, ref, incr, mapping=True).mfn
    held = 0
    try:
        if flags & GNTMAP_device_map:
            hold(granter, mfn, flags)
            held = GNTMAP_device_map
        if flags & GNTMAP_host_map:
            grantee.map_for_cpu(granter, mfn, host_addr, flags)
    except (XenError, DomainCrash) as error:
        if held:
            drop(granter, mfn, flags)
        grant_table.release(granter, ref, incr)
        if isinstance(error, DomainCrash):
            raise
        raise GrantError(GNTST_general_error, error.reason) from None
    return mfn


def unmap_grant(
    grantee: Grantee, granter: Domain, handle: int, kinds: int, host_addr: int, new_addr: int = 0
) -> None:
    """Undo what a mapping has of `kinds`; without any left, its handle is free.

    GNTST_general_error: what is at `host_addr` does not map the grant.
    """
    maptrack = grantee.maptrack
    mapping = maptrack.mappings[handle]
    mfn = granter.grants.active[mapping.ref].mfn
    kinds &= mapping.flags & KINDS
    if kinds & GNTMAP_host_map:
        try:
            grantee.unmap_for_cpu(granter, mfn, host_addr, new_addr, mapping.flags)
        except XenError as error:
            raise GrantError(GNTST_general_error, error.reason) from None
    if kinds & GNTMAP_device_map:
        drop(granter, mfn, mapping.flags)
    if kinds:
        grant_table.release(granter, mapping.ref, pin_increment(kinds | mapping.flags & ~KINDS))
    left = mapping.flags & ~kinds
    if left & KINDS:
        maptrack.mappings[handle] = replace(mapping, flags=left)
    else:
        maptrack.put(handle)


def hold(granter: Domain, mfn: Mfn, flags: int) -> None:
    """Take the references of a mapping that is not an L1 entry; EINVAL."""
    if flags & GNTMAP_readonly:
        granter.frames.get_page(mfn, granter.domid)
    else:
        granter.frames.get_page_and_type(mfn, granter.domid, PGT_writable_page)


def drop(granter: Domain, mfn: Mfn, flags: int) -> None:
    """Give back what `hold` took."""
    if flags & GNTMAP_readonly:
        granter.frames.put_page(mfn)
    else:
        granter.frames.put_page_and_type(mfn)


def mappings_of(granter: Domain) -> Iterator[tuple[int, Mapping]]:
    """The mappings of a domain's grants, each with its grantee's id before it."""
    for mapping in granter.grants.dom0.mappings.values():
        yield DOM0, mapping
    for grantee, domain in granter.peers.items():
        for mapping in domain.grants.maptrack.mappings.values():
            if mapping.domid == granter.domid:
                yield grantee, mapping


def granted(host: Iterable[Domain]) -> set[tuple[int, int]]:
    """The frames of some domains' that are in use as grants: (grantee, mfn)."""
    return {(active.domid, active.mfn) for one in host for active in one.grants.active.values()}


def held(granter: Domain) -> list[tuple[int, int]]:
    """The references, (mfn, type), that mappings hold without showing in a page table."""
    # In those of PV guests, host mappings do.
    shown = {domid: GNTMAP_host_map for domid, one in granter.peers.items() if one.p2m is None}
    return [
        (
            granter.grants.active[mapping.ref].mfn,
            PGT_none if mapping.flags & GNTMAP_readonly else PGT_writable_page,
        )
        for grantee, mapping in mappings_of(granter)
        for _ in range((mapping.flags & KINDS & ~shown.get(grantee, 0)).bit_count())
    ]
