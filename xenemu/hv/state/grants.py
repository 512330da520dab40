"""What is known of a domain's grants. The rules are in `xenemu.hv.grant_table`.

In Xen: common/grant_table.c (struct grant_table, struct active_grant_entry)
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

from xenemu.hv.maptrack import Maptrack
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SIZE, Mfn

MAX_FRAMES: Final = 64  # xl.cfg's max_grant_frames


@dataclass
class Active:
    """A grant in use: of which frame and by whom, which bytes of it, and how often."""

    mfn: Mfn
    domid: int  # the grantee
    start: int = 0
    length: int = PAGE_SIZE
    pin: int = 0


@dataclass
class GrantTable:
    """A domain's grant table; its own mappings of any grants, and dom0's mappings of its grants."""

    version: int = 1
    frames: list[Mfn] = field(default_factory=list)
    status_frames: list[Mfn] = field(default_factory=list)  # of version 2
    max_frames: int = MAX_FRAMES
    active: dict[int, Active] = field(default_factory=dict)  # by grant reference
    maptrack: Maptrack = field(default_factory=Maptrack)
    dom0: Maptrack = field(default_factory=Maptrack)
