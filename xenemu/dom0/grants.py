"""What dom0's backends do with a domain's grants, by the code that a guest's own calls use.

A grant must be for dom0. While dom0 uses it, its entry tells the guest so.

In Xen: what tools/libs/gnttab and Linux's gntdev ask it for
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenemu.abi.grant_table import GNTMAP_host_map
from xenemu.hv import grant_copy, grant_map
from xenemu.hv.state.domain import DOM0
from xenemu.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenemu.hv.grant_copy import Part
    from xenemu.hv.maptrack import Maptrack
    from xenemu.hv.state.domain import Domain
    from xenemu.x86.paging import Mfn


@dataclass(frozen=True)
class Dom0Grantee:
    """dom0 as a grantee. It sees all of memory, so it only has to hold what it maps."""

    domain: Domain
    domid: int = DOM0
    vcpu_id: int = 0

    @property
    def maptrack(self) -> Maptrack:
        return self.domain.grants.dom0

    def map_for_cpu(self, granter: Domain, mfn: Mfn, host_addr: int, flags: int) -> None:
        grant_map.hold(granter, mfn, flags)

    def unmap_for_cpu(
        self, granter: Domain, mfn: Mfn, host_addr: int, new_addr: int, flags: int
    ) -> None:
        grant_map.drop(granter, mfn, flags)


NOWHERE: Final = 0  # the place of dom0's mappings


def map_grant(domain: Domain, ref: int, flags: int = GNTMAP_host_map) -> tuple[int, Mfn]:
    """Map a grant of a domain's; its handle, and the frame, which stays what it is.

    GrantError: as `hv.grant_map.map_grant`.
    """
    return grant_map.map_grant(Dom0Grantee(domain), domain, ref, flags, NOWHERE)


def unmap_grant(domain: Domain, handle: int) -> None:
    """Undo a mapping of `map_grant`'s."""
    grant_map.unmap_grant(Dom0Grantee(domain), domain, handle, GNTMAP_host_map, NOWHERE)


def read_grant(domain: Domain, ref: int, offset: int, length: int) -> bytes:
    """Copy out of what a domain has granted; GrantError: as `hv.grant_copy.read_grant`."""
    return grant_copy.read_grant(domain, DOM0, ref, offset, length)


def write_grant(domain: Domain, ref: int, offset: int, data: bytes) -> None:
    """Copy into what a domain has granted; GrantError: as `hv.grant_copy.write_grant`."""
    grant_copy.write_grant(domain, DOM0, ref, offset, data)


def frames_of(domain: Domain, refs: Sequence[int], parts: Sequence[Part], into: bool) -> list[Mfn]:
    """The frames of grants for a copy at this instant; GrantError: as `hv.grant_copy.frames_of`."""
    return grant_copy.frames_of(domain, DOM0, refs, parts, into)
