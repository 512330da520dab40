"""The lane: ordinary work that the CPU does for a PV vcpu without the model.

The model tells the CPU what it needs to know of the vcpu, and whether the lane is open. It is shut
while somebody watches the guest who would not see what the lane does. It is also shut while
something comes first. For example, an NMI waits, a table is validated or dropped in part, or a new
address space would unmap a page of the LDT.

The C shim has the lane itself: cpu/native/lane.c and the files that include lane.h.
"""

from __future__ import annotations

from xenemu.abi.version import XEN_VERSION
from xenemu.abi.xen import (
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_writable_pagetables,
)
from xenemu.hv.cpu import Lane
from xenemu.hv.current import Current
from xenemu.hv.frame_table import OPERATION_WORK, REQUEST_WORK, PGT_l2_page_table
from xenemu.hv.prices import EMULATION_NS, WORK_NS
from xenemu.hv.validation import L1_WORK
from xenemu.pv.paging import m2p_entry
from xenemu.pv.state import NO_TRAP, PvVcpu, pv_domain
from xenemu.x86.flags import PAGE_FAULT

INT80 = 0x80  # a vector: system calls of a 32-bit guest
WORD = 0xFFFFFFFF


class LaneGate:
    """Opens the lane and shuts it; remembers what the CPU was told."""

    def __init__(self) -> None:
        self._told: tuple[object, ...] = ()
        self._of: tuple[object, ...] = ()  # so that what is told by its id() stays

    def look(self, current: Current, state: PvVcpu) -> None:
        """Open the lane for the current vcpu, or shut it, before the guest goes on."""
        domain, vcpu = current.domain, current.vcpu
        frames, traps = domain.frames, state.traps
        gdt = state.gdt_frames[:1]
        handlers = state.syscall_callback, traps.get(PAGE_FAULT), traps.get(INT80)
        now = (id(state), id(domain), vcpu.info, frames.vm_assist, gdt, handlers)
        if now != self._told:
            self._told, self._of = now, (state, domain)
            current.cpu.join_lane(lane_of(current, state))
            frames.by_cpu = current.cpu
        current.cpu.open_lane(
            (domain.watch is None or not domain.watch.shuts_lane)
            and not (frames.old_tables or frames.partial)
            and not state.ldt_frames
            and not (state.nmi_pending or state.nmi_masked or vcpu.areas_stale)
            and not domain.debug_xen
        )


def lane_of(current: Current, state: PvVcpu) -> Lane:
    """What the CPU must know of the current vcpu."""
    domain, vcpu = current.domain, current.vcpu
    rules, assists = domain.frames.rules, domain.vm_assist
    syscall, page_fault = state.syscall_callback, state.traps.get(PAGE_FAULT, NO_TRAP)
    int80 = state.traps.get(INT80, NO_TRAP)
    return Lane(
        words=state.words,
        info=vcpu.info,
        vcpu_id=vcpu.vcpu_id,
        domid=domain.domid,
        width=domain.width,
        nr_vcpus=len(domain.vcpus),
        xen_version=XEN_VERSION,
        root_type=rules.root_type,
        l1_disallow=rules.l1_disallow,
        l1_kernel_bits=rules.l1_kernel_bits,
        l1_user_bits=rules.l1_user_bits,
        table_disallow=rules.table_disallow,
        table_bits=rules.table_bits[PGT_l2_page_table],
        m2p_entry=m2p_entry(domain),
        m2p_strict=bool(assists >> VMASST_TYPE_m2p_strict & 1),
        log=domain.calls.by_cpu,
        bells=domain.events.bells,
        request_ns=REQUEST_WORK * WORK_NS,
        operation_ns=OPERATION_WORK * WORK_NS,
        emulation_ns=EMULATION_NS,
        l1_ns=L1_WORK * WORK_NS,
        plain_iopl=not assists >> VMASST_TYPE_architectural_iopl & 1,
        writable_tables=bool(assists >> VMASST_TYPE_writable_pagetables & 1),
        gdt_frame=state.gdt_frames[0] if state.gdt_frames else 0,
        xen_gdt=pv_domain(current).xen_gdt,
        pf_handler=page_fault.address,
        pf_masks=page_fault.mask_events,
        pf_cs=page_fault.cs,
        syscall_handler=syscall.address,
        syscall_masks=syscall.mask_events,
        int80_handler=int80.address & WORD,
        int80_masks=int80.mask_events,
        int80_cs=int80.cs,
    )
