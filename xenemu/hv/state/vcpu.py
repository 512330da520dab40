"""A virtual CPU's state that PV and PVH share. Plain data.

In Xen: common/domain.c (struct vcpu).
"""

from __future__ import annotations

from dataclasses import field
from enum import IntEnum
from typing import Any, Final

from xenemu.records import dataclass
from xenemu.x86.paging import Maddr

MAX_REMARKS: Final = 8


class RunState(IntEnum):
    """Header: public/vcpu.h (RUNSTATE_*)."""

    RUNNING = 0
    RUNNABLE = 1
    BLOCKED = 2
    OFFLINE = 3


@dataclass
class Vcpu:
    """One virtual CPU.

    * `info` is the machine address of its vcpu_info.
    * `width` is the size of its unsigned long in bytes.
    * `environment` is its name in the hypercall table: pv64, pv32, pvh64 or pvh32.
    * `arch` belongs to the personality that built the domain, and is opaque to `hv`.
    * `saved` holds its registers while another vcpu is in the CPU. It is a `cpu.context.Packed`,
      or a `Context`, which `hv` only hands on.

    Each vcpu of a PVH guest changes its mode as it likes. So it has `width` and `environment` from
    its last hypercall.
    """

    vcpu_id: int
    info: Maddr
    width: int = 8
    environment: str = "pv64"
    arch: object = None
    online: bool = False
    initialised: bool = False
    blocked: bool = False
    upcall_raised: bool = False  # its pending byte went up since the personality last looked
    info_registered: bool = False
    poll_ports: frozenset[int] = frozenset()  # SCHEDOP_poll: any of these ends the wait
    runstate: RunState = RunState.OFFLINE
    runstate_since_ns: int = 0
    runstate_times_ns: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    runstate_area: int = 0  # guest virtual address, 0 if not registered
    time_area: int = 0  # guest virtual address of a secondary vcpu_time_info
    areas_stale: bool = False  # one of the two could not be written (pv.paging.toggle_guest_mode)
    periodic_ns: int = 0  # period, 0 if stopped
    periodic_from_ns: int = 0  # when the present period began
    msrs: dict[int, int] = field(default_factory=dict)  # those that hv/msr.py keeps, if written
    saved: Any = None
    remarks: list[str] = field(default_factory=list)  # see `remark`

    @property
    def runnable(self) -> bool:
        return self.online and not self.blocked

    def remark(self, sentence: str) -> None:
        """Note, for the person, what the hypercall under way has refused, although it did not fail.

        The remark goes to the record of the call. If the call is continued, it goes to the last
        record.
        """
        if len(self.remarks) < MAX_REMARKS:
            self.remarks.append(sentence)
        else:
            self.remarks[-1] = "and more"

    def take_remarks(self) -> str:
        """What was noted, in one line."""
        line = "; ".join(self.remarks)
        self.remarks.clear()
        return line
