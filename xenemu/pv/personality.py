"""The personalities of PV guests.

In Xen: tools/libs/guest/xg_dom_x86.c
"""

from __future__ import annotations

from xenemu.abi.arch_x86.xen import FLAT_RING1_CS, FLAT_RING1_DS
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.personality import Exits, Personality
from xenemu.pv import descriptors
from xenemu.pv.audit import audit
from xenemu.pv.context import load_context
from xenemu.pv.failsafe import reload_data_segments
from xenemu.pv.paging import translate, translate32
from xenemu.pv.state import StartContext, pv
from xenemu.pv.traps import CS64, SS64, send_nmi
from xenemu.x86 import flags, segment

CODE32 = Segment(FLAT_RING1_CS, 0, 0xFFFFFFFF, segment.CODE32_RING1)
DATA32 = Segment(FLAT_RING1_DS, 0, 0xFFFFFFFF, segment.DATA_RING1)


def start_vcpu(current: Current) -> None:
    """Load the first registers that the vcpu's entry says (vcpu_x86_64, vcpu_x86_32)."""
    state, cpu = pv(current), current.cpu
    entry = state.entry
    assert entry is not None
    if isinstance(entry, StartContext):
        load_context(current, entry)
        return
    for register in range(16):
        cpu.regs[register] = 0
    cpu.rip, cpu.regs[Reg.RSP], cpu.regs[Reg.RSI] = entry.rip, entry.rsp, entry.rsi
    cpu.rflags = flags.IF | flags.FIXED
    wide = current.domain.width == 8
    for which in (Seg.DS, Seg.ES, Seg.FS, Seg.GS):
        cpu.set_segment(which, Segment(0) if wide else DATA32)
    cpu.set_segment(Seg.SS, SS64 if wide else DATA32)
    cpu.set_segment(Seg.CS, CS64 if wide else CODE32)
    descriptors.map_initial_gdt(current)
    descriptors.load_gdt_register(current)
    descriptors.load_ldt_register(current)
    cpu.set_debug_register(6, state.dr6)
    cpu.set_debug_register(7, state.dr7)


def _address_space(current: Current) -> int:
    state = pv(current)
    return state.kernel_root if state.kernel_mode else state.user_root


def leave(current: Current) -> None:
    """The CPU has nothing of a PV vcpu but its registers."""


def enter(current: Current) -> None:
    """Let the current vcpu's calls go on with its own old tables; reload its data segments."""
    current.domain.frames.old_tables = pv(current).old_tables
    reload_data_segments(current)


def _exits64(current: Current) -> Exits:
    from xenemu.pv.exits import PvExits  # noqa: PLC0415 (other guests need no disassembler)

    return PvExits(current)


def _exits32(current: Current) -> Exits:
    from xenemu.pv.exits import Pv32Exits  # noqa: PLC0415

    return Pv32Exits(current)


PV64 = Personality(
    translate=translate,
    start=start_vcpu,
    leave=leave,
    enter=enter,
    exits=_exits64,
    address_space=_address_space,
    send_nmi=send_nmi,
    audit=audit,
)

PV32 = Personality(
    translate=translate32,
    start=start_vcpu,
    leave=leave,
    enter=enter,
    exits=_exits32,
    address_space=_address_space,
    send_nmi=send_nmi,
    audit=audit,
)
