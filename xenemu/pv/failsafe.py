"""The data segments of a PV vcpu that gets the CPU, and its failsafe callback if one is gone.

Xen loads the selectors of DS, ES, FS and GS anew when it switches to a vcpu. Meanwhile another vcpu
may have changed a descriptor, so that a load faults. Then the register is null, and the guest's
failsafe callback finds all four selectors on its stack.

In Xen: arch/x86/domain.c (load_segments)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from xenemu.abi.arch_x86.xen import FLAT_RING1_SS
from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.errors import XenError
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pv import traps
from xenemu.pv.crash import no_frame
from xenemu.pv.descriptors import data_segment
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.state import pv
from xenemu.x86 import flags, segment
from xenemu.x86.paging import Maddr

DATA_SEGMENTS: Final = (Seg.DS, Seg.ES, Seg.FS, Seg.GS)  # as the frame has them
WITH_BASE: Final = (Seg.FS, Seg.GS)  # of a 64-bit guest, which has it apart from the selector


def reload_data_segments(current: Current) -> None:
    """Load the data segments of the vcpu that has come into the CPU anew."""
    selectors = [current.cpu.selector(which) for which in DATA_SEGMENTS]
    if max(selectors) <= segment.SEL_RPL:  # all are null
        return
    named = dict(zip(DATA_SEGMENTS, selectors, strict=True))
    if not load(current, named):
        enter_failsafe(current, named)


def load(current: Current, selectors: Mapping[Seg, int]) -> bool:
    """Load data segments; those that cannot be loaded become null. Whether all could be."""
    cpu, done = current.cpu, True
    for which, selector in selectors.items():
        loaded = data_segment(current, selector)
        done &= loaded is not None
        if loaded is None:
            loaded = Segment(0)
        if current.domain.width == 8 and which in WITH_BASE:
            loaded = replace(loaded, base=cpu.segment(which).base)
        cpu.set_segment(which, loaded)
    return done


def enter_failsafe(current: Current, selectors: Mapping[Seg, int]) -> None:
    """Enter the failsafe callback; a crash of the domain if the stack cannot take the frame."""
    for observer in current.watch or ():
        observer.entered(current, "the failsafe callback", None)
    memory, mask_byte = current.domain.memory, Maddr(current.vcpu.info + traps.UPCALL_MASK)
    data = tuple(selectors[which] for which in DATA_SEGMENTS)
    try:
        (_bounce64 if current.domain.width == 8 else _bounce32)(
            current, data, memory.bytes[mask_byte]
        )
    except XenError as error:
        raise no_frame("the failsafe callback", error) from None
    if pv(current).failsafe_callback.mask_events:
        memory.bytes[mask_byte] = 1


def _seen_rflags(current: Current, mask: int) -> int:
    """RFLAGS as the guest sees it: IF is the inverse of its event mask."""
    rflags = current.cpu.rflags & ~(flags.IF | flags.IOPL) | (0 if mask else flags.IF)
    if current.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        rflags |= pv(current).iopl << flags.IOPL_SHIFT
    return rflags


def _bounce64(current: Current, data: tuple[int, ...], mask: int) -> None:
    state, cpu = pv(current), current.cpu
    regs, rflags = cpu.regs, _seen_rflags(current, mask)
    cs, ss, old_rsp = cpu.selector(Seg.CS), cpu.selector(Seg.SS), regs[Reg.RSP]
    top = (old_rsp if state.kernel_mode else state.kernel_sp) & -traps.STACK_ALIGN
    if state.kernel_mode:
        cs &= ~segment.SEL_RPL
    else:
        toggle_guest_mode(current)
    frame = (regs[Reg.RCX], regs[Reg.R11], *data, cpu.rip, cs | mask << 32, rflags, old_rsp, ss)
    at = (top - 8 * len(frame)) & traps.WORD
    current.write(at, struct.pack(f"<{len(frame)}Q", *frame))
    cpu.rip, regs[Reg.RSP] = state.failsafe_callback.address, at
    cpu.rflags &= ~traps.NOT_INHERITED
    traps.load_syscall_state(current)


def _bounce32(current: Current, data: tuple[int, ...], mask: int) -> None:
    state, cpu = pv(current), current.cpu
    cs, ss, old_esp = cpu.selector(Seg.CS), cpu.selector(Seg.SS), cpu.regs[Reg.RSP]
    in_kernel = cs & segment.SEL_RPL == 1
    outer = () if in_kernel else (old_esp, ss)
    frame = (*data, cpu.rip, cs | mask << 16, _seen_rflags(current, mask), *outer)
    at = (old_esp if in_kernel else state.kernel_sp) - 4 * len(frame) & 0xFFFFFFFF
    current.write(at, struct.pack(f"<{len(frame)}I", *frame))
    cpu.rip, cpu.regs[Reg.RSP] = state.failsafe_callback.address, at
    cpu.rflags &= ~traps.NOT_INHERITED
    traps.resume(current, state.failsafe_callback.cs, FLAT_RING1_SS)
