"""The lane: ordinary hypercalls that the CPU does for a PV vcpu without the model.

The model tells the CPU what it needs to know of the vcpu, and whether the lane is open. It is shut
while somebody watches the guest, and while something comes first: an NMI, old tables to be dropped,
or a page of the LDT that a new address space would unmap.

The C shim has the lane itself: cpu/native/lane.c.
"""

from __future__ import annotations

from xenemu.abi.xen import VMASST_TYPE_m2p_strict
from xenemu.hv.cpu import Lane
from xenemu.hv.current import Current
from xenemu.hv.frame_table import OPERATION_WORK, REQUEST_WORK
from xenemu.hv.prices import WORK_NS
from xenemu.pv.paging import m2p_entry
from xenemu.pv.state import PvVcpu


class LaneGate:
    """Opens the lane and shuts it; remembers what the CPU was told."""

    def __init__(self) -> None:
        self._told = (0, 0, 0, 0)

    def look(self, current: Current, state: PvVcpu) -> None:
        """Open the lane for the current vcpu, or shut it, before the guest goes on."""
        domain, vcpu = current.domain, current.vcpu
        frames = domain.frames
        now = (id(state.words), id(domain), vcpu.info, frames.vm_assist)
        if now != self._told:
            self._told = now
            current.cpu.join_lane(lane_of(current, state))
        current.cpu.open_lane(
            domain.watch is None
            and not frames.old_tables
            and not state.ldt_frames
            and not state.nmi_pending
            and not domain.debug_xen
        )


def lane_of(current: Current, state: PvVcpu) -> Lane:
    """What the CPU must know of the current vcpu."""
    domain, vcpu = current.domain, current.vcpu
    rules = domain.frames.rules
    return Lane(
        words=state.words,
        info=vcpu.info,
        vcpu_id=vcpu.vcpu_id,
        domid=domain.domid,
        width=domain.width,
        root_type=rules.root_type,
        l1_disallow=rules.l1_disallow,
        l1_kernel_bits=rules.l1_kernel_bits,
        l1_user_bits=rules.l1_user_bits,
        m2p_entry=m2p_entry(domain),
        m2p_strict=bool(domain.vm_assist >> VMASST_TYPE_m2p_strict & 1),
        log=domain.calls.by_cpu,
        request_ns=REQUEST_WORK * WORK_NS,
        operation_ns=OPERATION_WORK * WORK_NS,
    )
