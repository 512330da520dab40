"""The virtual performance counters: commands and their argument. A Xen without them refuses all.

Header: public/pmu.h
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.layout import U32, U64, Struct

XENPMU_mode_get: Final = 0
XENPMU_mode_set: Final = 1
XENPMU_feature_get: Final = 2
XENPMU_feature_set: Final = 3
XENPMU_init: Final = 4
XENPMU_finish: Final = 5
XENPMU_lvtpc_set: Final = 6
XENPMU_flush: Final = 7


class xen_pmu_params(Struct, size=(24, 24)):
    """What to set, or what is set, and of which vcpu."""

    version_maj: U32
    version_min: U32
    val: U64
    vcpu: U32
    pad: U32
