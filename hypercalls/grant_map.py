"""Mapping a domain's own grants: what is the same wherever the mapping is made.

A mapping pins the grant. One for devices holds the frame, and nothing more: there is no IOMMU.
One for the CPU is an L1 entry of a PV guest (`grant_map_pv`) or a place in a PVH guest's physmap
(`grant_map_pvh`).

In Xen: common/grant_table.c (map_grant_ref, unmap_common)
"""

from __future__ import annotations

from dataclasses import replace

from hypercalls import grant_map_pv, grant_map_pvh
from xenemu.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_dev_addr,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_general_error,
    GNTST_no_space,
    gnttab_map_grant_ref,
)
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.hv.grant_table import (
    DOM0,
    KINDS,
    GrantError,
    pin_increment,
    refuse_dom0,
)
from xenemu.hv.maptrack import Mapping
from xenemu.hv.state.domain import Domain
from xenemu.x86.paging import PAGE_SHIFT, Mfn

FLAGS_MASK = 0xFFFF  # what a mapping remembers of its flags
PV_ONLY = GNTMAP_device_map | GNTMAP_application_map | GNTMAP_contains_pte


def map_grant(current: Current, op: gnttab_map_grant_ref) -> None:
    """Pin one of the domain's own grants and map it as `op.flags` say; fill the OUT fields.

    GNTST_bad_gntref: no kind of mapping, or no such grant; GNTST_bad_domain: no such domain;
    GNTST_no_space: no handle is left; GNTST_general_error: a mapping that the guest cannot have,
    or no place for it at `op.host_addr`; others as `GrantTable.acquire`.
    """
    domain = current.domain
    maptrack = domain.grants.maptrack
    if not op.flags & KINDS:
        raise GrantError(GNTST_bad_gntref, f"map flags {op.flags:#x} ask for no mapping")
    if domain.p2m is not None and op.flags & PV_ONLY:
        raise GrantError(GNTST_general_error, f"map flags {op.flags:#x} are for PV guests")
    if op.dom not in (domain.domid, DOM0):
        raise GrantError(GNTST_bad_domain, f"there is no domain {op.dom}")
    handle = maptrack.get(current.vcpu.vcpu_id)
    if handle is None:
        raise GrantError(GNTST_no_space, "all handles for mappings are in use")
    try:
        mfn = _map(current, op)
    except (GrantError, DomainCrash):
        maptrack.put(handle)
        raise
    maptrack.mappings[handle] = Mapping(op.ref, op.flags & FLAGS_MASK)
    op.handle = handle
    op.dev_bus_addr = mfn << PAGE_SHIFT


def _map(current: Current, op: gnttab_map_grant_ref) -> Mfn:
    domain, grants = current.domain, current.domain.grants
    if op.dom == DOM0:
        refuse_dom0(op.ref)
    incr = pin_increment(op.flags)
    mfn = grants.acquire(domain, op.ref, incr, mapping=True).mfn
    held = 0
    try:
        if op.flags & GNTMAP_device_map:
            _hold(domain, mfn, op.flags)
            held = GNTMAP_device_map
        if op.flags & GNTMAP_host_map:
            _map_for_cpu(current, op.host_addr, mfn, op.flags)
    except (XenError, DomainCrash) as error:
        if held:
            _drop(domain, mfn, op.flags)
        grants.release(domain, op.ref, incr)
        if isinstance(error, DomainCrash):
            raise
        raise GrantError(GNTST_general_error, error.reason) from None
    return mfn


def unmap_grant(
    current: Current, handle: int, host_addr: int, dev_bus_addr: int, new_addr: int = 0
) -> None:
    """Undo the mappings whose addresses are given; `new_addr`'s entry replaces the host one's.

    GNTST_bad_handle, GNTST_bad_dev_addr; GNTST_general_error: what is at `host_addr` does not map
    the grant, or one of the addresses has no entry.
    """
    domain, grants = current.domain, current.domain.grants
    mapping = grants.maptrack.mappings.get(handle)
    if mapping is None:
        raise GrantError(GNTST_bad_handle, f"{handle:#x} is not the handle of a mapping")
    mfn = grants.active[mapping.ref].mfn
    kinds = GNTMAP_host_map if host_addr else 0
    kinds |= GNTMAP_device_map if dev_bus_addr else 0
    kinds &= mapping.flags
    if kinds & GNTMAP_device_map and dev_bus_addr != mfn << PAGE_SHIFT:
        raise GrantError(GNTST_bad_dev_addr, f"bus address {dev_bus_addr:#x} is not {mfn:#x}'s")
    if kinds & GNTMAP_host_map:
        try:
            _unmap_for_cpu(current, host_addr, new_addr, mfn, mapping.flags)
        except XenError as error:
            raise GrantError(GNTST_general_error, error.reason) from None
    if kinds & GNTMAP_device_map:
        _drop(domain, mfn, mapping.flags)
    if kinds:
        grants.release(domain, mapping.ref, pin_increment(kinds | mapping.flags & ~KINDS))
    left = mapping.flags & ~kinds
    if left & KINDS:
        grants.maptrack.mappings[handle] = replace(mapping, flags=left)
    else:
        grants.maptrack.put(handle)


def _map_for_cpu(current: Current, host_addr: int, mfn: Mfn, flags: int) -> None:
    if current.domain.p2m is None:
        grant_map_pv.create_mapping(current, host_addr, mfn, flags)
        return
    grant_map_pvh.check_mapping(host_addr, flags)
    current.domain.p2m.check_no_grant(host_addr >> PAGE_SHIFT)
    _hold(current.domain, mfn, flags)
    current.domain.p2m.map_grant(host_addr >> PAGE_SHIFT, mfn)


def _unmap_for_cpu(current: Current, host_addr: int, new_addr: int, mfn: Mfn, flags: int) -> None:
    if current.domain.p2m is None:
        grant_map_pv.replace_mapping(current, host_addr, new_addr, mfn, flags)
        return
    grant_map_pvh.remove_mapping(current.domain.p2m, host_addr, mfn)
    _drop(current.domain, mfn, flags)


def _hold(domain: Domain, mfn: Mfn, flags: int) -> None:
    """Take the references of a mapping that is not an L1 entry; EINVAL."""
    if flags & GNTMAP_readonly:
        domain.frames.get_page(mfn, domain.domid)
    else:
        domain.frames.get_page_and_type(mfn, domain.domid, PGT_writable_page)


def _drop(domain: Domain, mfn: Mfn, flags: int) -> None:
    if flags & GNTMAP_readonly:
        domain.frames.put_page(mfn)
    else:
        domain.frames.put_page_and_type(mfn)
