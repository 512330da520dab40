"""vcpu operations: commands and their arguments.

Header: public/vcpu.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import S32, U32, U64, Struct, blob

VCPUOP_initialise: Final = 0
VCPUOP_up: Final = 1
VCPUOP_down: Final = 2
VCPUOP_is_up: Final = 3
VCPUOP_get_runstate_info: Final = 4
VCPUOP_register_runstate_memory_area: Final = 5
VCPUOP_set_periodic_timer: Final = 6
VCPUOP_stop_periodic_timer: Final = 7
VCPUOP_set_singleshot_timer: Final = 8
VCPUOP_stop_singleshot_timer: Final = 9
VCPUOP_register_vcpu_info: Final = 10
VCPUOP_send_nmi: Final = 11
VCPUOP_get_physid: Final = 12
VCPUOP_register_vcpu_time_memory_area: Final = 13
VCPUOP_register_runstate_phys_area: Final = 14  # of Xen 4.18
VCPUOP_register_vcpu_time_phys_area: Final = 15  # of Xen 4.18

XEN_RUNSTATE_UPDATE: Final = 1 << 63  # in state_entry_time: an update is under way
VCPU_SSHOTTMR_future: Final = 1 << 0

XEN_PVCLOCK_TSC_STABLE_BIT: Final = 1 << 0  # public/xen.h: vcpu_time_info.flags


class vcpu_runstate_info(Struct, size=(48, 44)):
    """A vcpu's state, since when, and the time spent in each (ns)."""

    state: S32
    state_entry_time: U64
    time: Annotated[bytes, blob(32, 8)]


class vcpu_register_runstate_memory_area(Struct, size=(8, 8)):
    """The union's 64-bit arm; a guest handle is its first bytes."""

    addr: U64


class vcpu_set_periodic_timer(Struct, size=(8, 8)):
    """The period of VIRQ_TIMER."""

    period_ns: U64


class vcpu_set_singleshot_timer(Struct, size=(16, 12)):
    """When to raise VIRQ_TIMER, in system time."""

    timeout_abs_ns: U64
    flags: U32


class vcpu_register_vcpu_info(Struct, size=(16, 16)):
    """Where the vcpu_info is to be."""

    mfn: U64
    offset: U32
    rsvd: U32


class vcpu_get_physid(Struct, size=(8, 8)):
    """The physical CPU of a vcpu."""

    phys_id: U64


class vcpu_register_time_memory_area(Struct, size=(8, 8)):
    """The union's 64-bit arm; a guest handle is its first bytes."""

    addr: U64
