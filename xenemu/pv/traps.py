"""Bounce frames: how exceptions, system calls and events enter a 64-bit PV kernel, and iret.

The kernel's handlers run at CPL 3 on the kernel's stack, with a frame that looks like the
hardware's, preceded by RCX and R11. In the CS slot, bits 39:32 are the event mask as it was;
in the RFLAGS slot, IF is its inverse.

In Xen: arch/x86/pv/traps.c (pv_inject_event), arch/x86/x86_64/entry.S (create_bounce_frame),
arch/x86/pv/iret.c.
"""

from __future__ import annotations

import struct

from xenemu.abi.arch_x86.xen import (
    FLAT_RING3_CS32,
    FLAT_RING3_CS64,
    FLAT_RING3_SS64,
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    VGCF_in_syscall,
    iret_context,
)
from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.domain import Current
from xenemu.pv.descriptors import read_descriptor
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.state import NO_TRAP, Trap, pv
from xenemu.x86 import flags, segment
from xenemu.x86.paging import PFEC_U, Maddr

CS64 = Segment(FLAT_RING3_CS64, 0, 0xFFFFFFFF, segment.CODE64_RING3)
SS64 = Segment(FLAT_RING3_SS64, 0, 0xFFFFFFFF, segment.DATA_RING3)
STACK_ALIGN = 16
UPCALL_MASK = 1  # offset in vcpu_info
CR2 = {8: 16, 4: 8}  # offset of arch.cr2 in vcpu_info, by width
NOT_INHERITED = flags.TF | flags.VM | flags.RF | flags.NT | flags.AC


def guest_cr2(current: Current) -> Maddr:
    """Where the guest's CR2 lives: in its vcpu_info."""
    return Maddr(current.vcpu.info + CR2[current.domain.width])


def bounce(
    current: Current, trap: Trap, what: str, error_code: int | None = None, failsafe: bool = False
) -> None:
    """Enter the guest's kernel at `trap`, with a frame for what it interrupts.

    Crashes the domain where Xen does: no handler, or a stack that cannot take the frame.
    """
    if not trap.address:
        raise DomainCrash(f"{what} at {current.cpu.rip:#x}, but the guest has no handler for it")
    state, cpu = pv(current), current.cpu
    regs, rflags = cpu.regs, cpu.rflags
    mask_byte = Maddr(current.vcpu.info + UPCALL_MASK)
    mask = current.domain.memory.bytes[mask_byte]
    seen = rflags & ~(flags.IF | flags.IOPL) | (0 if mask else flags.IF)
    if current.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        seen |= state.iopl << flags.IOPL_SHIFT
    cs, ss, old_rsp = cpu.segment(Seg.CS).selector, cpu.segment(Seg.SS).selector, regs[Reg.RSP]
    if state.kernel_mode:
        cs &= ~segment.SEL_RPL
        rsp = old_rsp
    else:
        toggle_guest_mode(current)
        rsp = state.kernel_sp
    frame = [regs[Reg.RCX], regs[Reg.R11]]
    if failsafe:
        frame += [cpu.segment(s).selector for s in (Seg.DS, Seg.ES, Seg.FS, Seg.GS)]
    if error_code is not None:
        frame.append(error_code)
    frame += [cpu.rip, cs | mask << 32, seen, old_rsp, ss]
    top = rsp & -STACK_ALIGN
    rsp = top - 8 * len(frame)
    if HYPERVISOR_VIRT_START < top <= HYPERVISOR_VIRT_END or rsp < 0:
        raise DomainCrash(f"{what}: the guest's kernel stack at {top:#x} is in Xen's own area")
    try:
        current.write(rsp, struct.pack(f"<{len(frame)}Q", *frame))
    except XenError as error:
        raise DomainCrash(f"{what}: no frame on the guest's kernel stack: {error.reason}") from None
    regs[Reg.RSP] = rsp
    cpu.rflags = rflags & ~NOT_INHERITED
    cpu.rip = trap.address
    cpu.set_segment(Seg.SS, SS64)
    cpu.set_segment(Seg.CS, CS64)
    if trap.mask_events:
        current.domain.memory.bytes[mask_byte] = 1


def inject(current: Current, vector: int, error_code: int = 0) -> None:
    """Deliver an exception to the guest's trap table."""
    trap = pv(current).traps.get(vector, NO_TRAP)
    code = error_code if vector in flags.HAS_ERROR_CODE else None
    bounce(current, trap, flags.vector_name(vector), code)


def inject_page_fault(current: Current, vaddr: int, error_code: int) -> None:
    """Deliver a page fault: the address goes to vcpu_info, the U bit follows the guest's mode."""
    error_code &= ~PFEC_U
    if not pv(current).kernel_mode:
        error_code |= PFEC_U
    memory, width = current.domain.memory, current.domain.width
    memory.write_uint(guest_cr2(current), width, vaddr)
    trap = pv(current).traps.get(flags.PAGE_FAULT, NO_TRAP)
    bounce(current, trap, f"#PF on {vaddr:#x}", error_code)


def deliver_event(current: Current) -> None:
    """Enter the event callback: events are pending and not masked."""
    bounce(current, pv(current).event_callback, "an event upcall")


def syscall_from_user(current: Current) -> None:
    """SYSCALL in user mode: enter the guest's callback; RIP is behind the instruction."""
    cpu, state = current.cpu, pv(current)
    cs64 = cpu.segment(Seg.CS).attributes & segment.L
    callback = state.syscall_callback if cs64 else state.syscall32_callback
    if not callback.address:
        cpu.rip -= 2
        inject(current, flags.UD)
        return
    set_syscall_registers(current)
    # SYSCALL itself loads Xen's flat user selectors, whatever the user had.
    cpu.set_segment(Seg.SS, SS64)
    flat = CS64 if cs64 else Segment(FLAT_RING3_CS32, 0, 0xFFFFFFFF, segment.CODE32_RING3)
    cpu.set_segment(Seg.CS, flat)
    bounce(current, callback, "SYSCALL")


def set_syscall_registers(current: Current) -> None:
    """Leave RCX and R11 as SYSCALL (and Xen's SYSRET after it) does."""
    current.cpu.regs[Reg.RCX] = current.cpu.rip
    current.cpu.regs[Reg.R11] = current.cpu.rflags


def iret(current: Current) -> None:
    """HYPERVISOR_iret of a 64-bit guest: leave the kernel by the frame on its stack."""
    cpu, state, domain = current.cpu, pv(current), current.domain
    try:
        frame = current.read_struct(iret_context, cpu.regs[Reg.RSP])
    except XenError as error:
        raise DomainCrash(f"iret: no frame on the guest's stack: {error.reason}") from None
    if frame.cs & segment.SEL_RPL == segment.SEL_RPL:
        if not state.user_root:
            raise DomainCrash("iret to user mode with no user page tables")
        toggle_guest_mode(current)
    if domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        state.iopl = (frame.rflags & flags.IOPL) >> flags.IOPL_SHIFT
    rflags = frame.rflags & flags.ALL & ~(flags.IOPL | flags.VM) | flags.IF | flags.FIXED
    regs = cpu.regs
    regs[Reg.RAX], regs[Reg.RSP], cpu.rip, cpu.rflags = frame.rax, frame.rsp, frame.rip, rflags
    cs, ss = frame.cs & 0xFFFF | segment.SEL_RPL, frame.ss & 0xFFFF | segment.SEL_RPL
    if frame.flags & VGCF_in_syscall:  # Xen leaves by SYSRET, which has its own selectors
        regs[Reg.RCX], regs[Reg.R11] = frame.rip, rflags
        cs, ss = FLAT_RING3_CS32 if cs == FLAT_RING3_CS32 else FLAT_RING3_CS64, FLAT_RING3_SS64
    else:
        regs[Reg.RCX], regs[Reg.R11] = frame.rcx, frame.r11
    domain.memory.bytes[current.vcpu.info + UPCALL_MASK] = not frame.rflags & flags.IF
    return_to_guest(current, cs, ss)


def return_to_guest(current: Current, cs: int, ss: int) -> None:
    """Load CS and SS as IRET at CPL 0 would; where that faults, enter the failsafe callback."""
    cpu = current.cpu
    code = CS64 if cs == FLAT_RING3_CS64 else _code_segment(current, cs)
    long_mode = code is not None and bool(code.attributes & segment.L)
    stack = SS64 if ss == FLAT_RING3_SS64 else _stack_segment(current, ss, long_mode)
    if code is None or stack is None or (long_mode and not _canonical(cpu.rip)):
        cpu.set_segment(Seg.SS, SS64)
        cpu.set_segment(Seg.CS, Segment(cs, 0, 0xFFFFFFFF, segment.CODE64_RING3))
        bounce(current, pv(current).failsafe_callback, f"iret to {cs:#x}:{cpu.rip:#x}", failsafe=True)
        return
    cpu.set_segment(Seg.SS, stack)
    cpu.set_segment(Seg.CS, code)


def _canonical(rip: int) -> bool:
    return rip >> 47 in (0, 0x1FFFF)


def _code_segment(current: Current, selector: int) -> Segment | None:
    descriptor = read_descriptor(current, selector)
    if descriptor is None:
        return None
    attributes = segment.attributes(descriptor)
    needed = segment.PRESENT | segment.S | segment.TYPE_CODE
    if attributes & needed != needed or segment.dpl(attributes) != selector & segment.SEL_RPL:
        return None
    if attributes & segment.L and attributes & segment.DB:
        return None
    return _segment(selector, descriptor)


def _stack_segment(current: Current, selector: int, long_mode: bool) -> Segment | None:
    if selector & ~segment.SEL_RPL == 0:
        # IRET loads a null SS only for 64-bit code below CPL 3; Xen gives its flat one instead.
        return Segment(FLAT_RING3_SS64, 0, 0xFFFFFFFF, segment.DATA_RING3) if long_mode else None
    descriptor = read_descriptor(current, selector)
    if descriptor is None:
        return None
    attributes = segment.attributes(descriptor)
    needed = segment.PRESENT | segment.S | segment.TYPE_WRITABLE
    if attributes & (needed | segment.TYPE_CODE) != needed:
        return None
    if segment.dpl(attributes) != selector & segment.SEL_RPL:
        return None
    return _segment(selector, descriptor)


def _segment(selector: int, descriptor: int) -> Segment:
    attributes = segment.attributes(descriptor) | segment.TYPE_ACCESSED
    return Segment(selector, segment.base(descriptor), segment.limit(descriptor), attributes)
