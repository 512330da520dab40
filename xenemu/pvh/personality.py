"""The personality of PVH guests."""

from __future__ import annotations

from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.personality import Personality
from xenemu.pvh import context, lapic_glue
from xenemu.pvh.audit import audit
from xenemu.pvh.callbacks import update_upcall
from xenemu.pvh.exits import PvhExits
from xenemu.pvh.paging import translate
from xenemu.pvh.renewal import soft_reset
from xenemu.pvh.state import pvh
from xenemu.x86 import flags
from xenemu.x86.paging import mfn_of

FLAT_LIMIT = 0xFFFFFFFF
CODE32, DATA32 = 0x00C09B00, 0x00C09300  # base 0, 4 GiB, ring 0, accessed
TSS_LIMIT, BUSY_TSS = 0x67, 0x00008B00
LDT = 0x00008200


def start_vcpu(current: Current) -> None:
    """Load the first registers: of vcpu 0 those that docs/misc/pvh.pandoc promises."""
    cpu, entry = current.cpu, pvh(current).entry
    if entry is None:  # as another vcpu wants it
        context.load(current)
        return
    for register in range(16):
        cpu.regs[register] = 0
    cpu.rip, cpu.regs[Reg.RBX] = entry.ip, entry.info
    cpu.rflags = flags.FIXED
    for which in (Seg.DS, Seg.ES, Seg.SS):
        cpu.set_segment(which, Segment(0, 0, FLAT_LIMIT, DATA32))
    for which in (Seg.FS, Seg.GS):  # unusable
        cpu.set_segment(which, Segment(0))
    cpu.set_segment(Seg.CS, Segment(0, 0, FLAT_LIMIT, CODE32))
    cpu.set_segment(Seg.TR, Segment(0, 0, TSS_LIMIT, BUSY_TSS))
    cpu.set_segment(Seg.LDTR, Segment(0, 0, 0, LDT))
    cpu.set_segment(Seg.GDTR, Segment(0))
    cpu.set_segment(Seg.IDTR, Segment(0))
    update_upcall(current)


def leave(current: Current) -> None:
    """Let the current vcpu's local APIC know what its CPU has taken."""
    lapic_glue.sync(current)


def enter(current: Current) -> None:
    """Tell the CPU what waits for the current vcpu, which others may have changed.

    They may even have reset it, so that it starts now.
    """
    context.load(current)
    lapic_glue.update(current)
    lapic_glue.update_nmi(current)
    update_upcall(current)


PVH = Personality(
    translate=translate,
    start=start_vcpu,
    leave=leave,
    enter=enter,
    exits=PvhExits,
    address_space=lambda current: mfn_of(current.cpu.cr3),
    send_nmi=lapic_glue.send_nmi,
    audit=audit,
    timers=lapic_glue.TIMERS,
    soft_reset=soft_reset,
)
