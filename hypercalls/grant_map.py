"""A guest's mappings of grants: what it may ask for, and where its CPU gets them.

A PV guest gets an L1 entry (`grant_map_pv`), a PVH guest a place in its physmap (`grant_map_pvh`).

In Xen: common/grant_table.c (map_grant_ref, unmap_common)
"""

from __future__ import annotations

from hypercalls import grant_map_pv, grant_map_pvh
from xenemu.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTST_bad_dev_addr,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_general_error,
    gnttab_map_grant_ref,
)
from xenemu.hv import grant_map
from xenemu.hv.current import Current
from xenemu.hv.grant_table import KINDS, GrantError, find_domain
from xenemu.hv.maptrack import Maptrack
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT, Mfn

PV_ONLY = GNTMAP_device_map | GNTMAP_application_map | GNTMAP_contains_pte


@dataclass(frozen=True)
class VcpuGrantee:
    """The running vcpu as a grantee."""

    current: Current

    @property
    def domid(self) -> int:
        return self.current.domain.domid

    @property
    def vcpu_id(self) -> int:
        return self.current.vcpu.vcpu_id

    @property
    def maptrack(self) -> Maptrack:
        return self.current.domain.grants.maptrack

    def map_for_cpu(self, granter: Domain, mfn: Mfn, host_addr: int, flags: int) -> None:
        p2m = self.current.domain.p2m
        if p2m is None:
            grant_map_pv.create_mapping(self.current, granter, host_addr, mfn, flags)
            return
        grant_map_pvh.check_mapping(host_addr, flags)
        p2m.check_no_grant(host_addr >> PAGE_SHIFT)
        grant_map.hold(granter, mfn, flags)
        p2m.map_grant(host_addr >> PAGE_SHIFT, mfn)

    def unmap_for_cpu(
        self, granter: Domain, mfn: Mfn, host_addr: int, new_addr: int, flags: int
    ) -> None:
        p2m = self.current.domain.p2m
        if p2m is None:
            grant_map_pv.replace_mapping(self.current, host_addr, new_addr, mfn, flags)
            return
        grant_map_pvh.remove_mapping(p2m, host_addr, mfn)
        grant_map.drop(granter, mfn, flags)


def map_grant(current: Current, op: gnttab_map_grant_ref) -> None:
    """Map a grant of `op.dom`'s as `op.flags` say; fill the OUT fields.

    GNTST_bad_gntref: no kind of mapping, or no such grant; GNTST_bad_domain: no such domain;
    GNTST_general_error: a mapping that the guest cannot have; others as `hv.grant_map.map_grant`.
    """
    if not op.flags & KINDS:
        raise GrantError(GNTST_bad_gntref, f"map flags {op.flags:#x} ask for no mapping")
    if current.domain.p2m is not None and op.flags & PV_ONLY:
        raise GrantError(GNTST_general_error, f"map flags {op.flags:#x} are for PV guests")
    granter = find_domain(current.domain, op.dom)
    grantee = VcpuGrantee(current)
    op.handle, mfn = grant_map.map_grant(grantee, granter, op.ref, op.flags, op.host_addr)
    op.dev_bus_addr = mfn << PAGE_SHIFT


def unmap_grant(
    current: Current, handle: int, host_addr: int, dev_bus_addr: int, new_addr: int = 0
) -> None:
    """Undo the mappings whose addresses are given; `new_addr`'s entry replaces the host one's.

    GNTST_bad_handle, GNTST_bad_dev_addr. GNTST_general_error: what is at `host_addr` does not map
    the grant, or one of the addresses has no entry.
    """
    mapping = current.domain.grants.maptrack.mappings.get(handle)
    if mapping is None:
        raise GrantError(GNTST_bad_handle, f"{handle:#x} is not the handle of a mapping")
    granter = find_domain(current.domain, mapping.domid)
    assert granter is not None  # dom0 has granted nothing
    mfn = granter.grants.active[mapping.ref].mfn
    kinds = GNTMAP_host_map if host_addr else 0
    if dev_bus_addr and mapping.flags & GNTMAP_device_map:
        kinds |= GNTMAP_device_map
        if dev_bus_addr != mfn << PAGE_SHIFT:
            raise GrantError(GNTST_bad_dev_addr, f"bus address {dev_bus_addr:#x} is not {mfn:#x}'s")
    grantee = VcpuGrantee(current)
    grant_map.unmap_grant(grantee, granter, handle, kinds, host_addr, new_addr)
