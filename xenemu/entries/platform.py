"""The machines that a kernel can be put into, as they are without a kernel.

Xen has two kinds of domain for its guests. The PV kind comes in two widths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from xenemu.hv.building import DomainConfig
from xenemu.hv.personality import Personality
from xenemu.hv.state.domain import Domain
from xenemu.pv import builder as pv_builder
from xenemu.pv.layout import PvParameters
from xenemu.pv.personality import PV32, PV64
from xenemu.pvh import builder as pvh_builder
from xenemu.pvh.layout import Kernel as PvhKernel
from xenemu.pvh.personality import PVH
from xenemu.records import dataclass

KernelT_contra = TypeVar("KernelT_contra", contravariant=True)
RoomT = TypeVar("RoomT")
PlacedT = TypeVar("PlacedT")


@dataclass(frozen=True)
class Platform(Generic[KernelT_contra, RoomT, PlacedT]):
    """A machine without a kernel.

    `make_room` says which places an entry may fill, before anything there is made. `build` makes
    the domain, with what the entry has placed. A domain that is `paged` has no ring 0, so the
    hypervisor loads its first tables.
    """

    personality: Personality
    make_room: Callable[[DomainConfig, KernelT_contra], RoomT]
    build: Callable[[DomainConfig, RoomT, PlacedT], Domain]
    paged: bool


PV64_PLATFORM: Platform[PvParameters, int, pv_builder.Placed] = Platform(
    PV64, pv_builder.make_room, partial(pv_builder.build, 8), paged=True
)
PV32_PLATFORM: Platform[PvParameters, int, pv_builder.Placed] = Platform(
    PV32, pv_builder.make_room, partial(pv_builder.build, 4), paged=True
)
PVH_PLATFORM: Platform[PvhKernel, pvh_builder.Room, pvh_builder.Placed] = Platform(
    PVH, pvh_builder.make_room, pvh_builder.build, paged=False
)
