"""Mapping grants into a PVH guest's physmap.

A mapped frame that is the guest's own leaves its place in RAM for the place of the mapping. When
the mapping is undone, the frame has no place.

In Xen: arch/x86/hvm/grant_table.c
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL
from xenemu.abi.grant_table import GNTMAP_host_map, GNTMAP_readonly
from xenemu.errors import XenError
from xenemu.hv.p2m import MAX_GFN, P2m
from xenemu.x86.paging import PAGE_SHIFT, Mfn


def check_mapping(host_addr: int, flags: int) -> None:
    """EINVAL for a mapping that a PVH guest cannot have, or where no memory can be."""
    # DIVERGES: Xen drops a write through a read-only mapping. Here the write is done: the
    # frame is the guest's own, and it can write it anyway.
    if flags & ~GNTMAP_readonly != GNTMAP_host_map:
        raise XenError(EINVAL, f"map flags {flags:#x} are for PV guests")
    if host_addr >> PAGE_SHIFT > MAX_GFN:
        raise XenError(EINVAL, f"{host_addr:#x} is beyond what an address reaches")


def remove_mapping(p2m: P2m, host_addr: int, mfn: Mfn) -> None:
    """Make a hole where the mapping is; EINVAL if it is not there."""
    gfn = host_addr >> PAGE_SHIFT
    if gfn not in p2m.granted or p2m.get(gfn) != mfn:
        raise XenError(EINVAL, f"guest frame {gfn:#x} does not map the grant of mfn {mfn:#x}")
    p2m.remove(gfn)
