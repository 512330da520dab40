"""Bounce frames: how exceptions, system calls and events enter a 64-bit PV kernel, and iret.

The kernel's handlers run at CPL 3 on the kernel's stack, with a frame that looks like the
hardware's, preceded by RCX and R11. In the CS slot, bits 39:32 are the event mask as it was;
in the RFLAGS slot, IF is its inverse.

In Xen: arch/x86/pv/traps.c (pv_inject_event), arch/x86/x86_64/entry.S (create_bounce_frame,
switch_to_kernel, restore_all_guest), arch/x86/pv/iret.c.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from xenemu.abi.arch_x86.xen import (
    COMPAT_RING3_DS,
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
from xenemu.hv import waking
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pv.bounce32 import bounce32, iret32
from xenemu.pv.bounce32 import resume as resume32
from xenemu.pv.crash import no_frame, no_handler, no_iret_frame
from xenemu.pv.descriptors import read_descriptor
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.state import NO_TRAP, Trap, pv, pv_vcpu
from xenemu.x86 import flags, segment
from xenemu.x86.fault import Fault
from xenemu.x86.paging import PFEC_U, Maddr, is_canonical

CS64 = Segment(FLAT_RING3_CS64, 0, 0xFFFFFFFF, segment.CODE64_RING3)
SS64 = Segment(FLAT_RING3_SS64, 0, 0xFFFFFFFF, segment.DATA_RING3)
COMPAT_SS = Segment(COMPAT_RING3_DS, 0, 0xFFFFFFFF, segment.DATA_RING3)
NULL_RING3 = 3  # a selector
CODE_RING3 = {8: segment.CODE64_RING3, 4: segment.CODE32_RING3}
STACK_ALIGN = 16
STACK_REACH = 8 * 8  # Xen's longest frame: a stack this far above its area cannot reach into it
RCX, R11, SS, CS = Reg.RCX, Reg.R11, Seg.SS, Seg.CS  # looked up once: each hypercall needs them
SYSCALL_LENGTH = 2
WORD = (1 << 64) - 1
UPCALL_MASK = 1  # offset in vcpu_info
CR2 = {8: 16, 4: 8}  # offset of arch.cr2 in vcpu_info, by width
DR6_BS = 1 << 14  # single step
NOT_INHERITED = flags.TF | flags.VM | flags.RF | flags.NT | flags.AC
SELECTOR = 0xFFFF & ~segment.SEL_RPL  # of a selector, what an error code holds


def bounce(current: Current, trap: Trap, what: str, error_code: int | None = None) -> None:
    """Enter the guest's kernel at `trap`, with a frame for what it interrupts."""
    if current.watch is not None:
        for observer in current.watch:
            observer.entered(current, what, error_code)
    if current.domain.width == 8:
        bounce64(current, trap, what, error_code)
        return
    try:
        bounce32(current, trap, what, error_code)
    except Fault as fault:
        _bounce_fault(current, fault, f"{what}, whose handler is in {trap.cs:#x}")


def _bounce_fault(current: Current, fault: Fault, what: str) -> None:
    """Give a 32-bit guest the fault of a handler's segments; crash it if its handler has one."""
    if fault.vector == flags.PAGE_FAULT:
        set_guest_cr2(current, fault.vaddr)
    handler = pv(current).traps.get(fault.vector, NO_TRAP)
    what += f": {flags.vector_name(fault.vector)}"
    try:
        bounce32(current, handler, what, fault.error_code)
    except Fault:  # Xen would come here again and again, until the stack is used up
        raise DomainCrash(
            f"{what}, in {handler.cs:#x}, which faults, too",
            "the code segments that HYPERVISOR_set_trap_table named must still be in the GDT",
        ) from None


def bounce64(current: Current, trap: Trap, what: str, error_code: int | None = None) -> None:
    """`bounce` of a 64-bit guest.

    RCX, R11, CS and SS end up as Xen's SYSRET leaves them. Crashes the domain where Xen does: no
    handler, or a stack that cannot take the frame.
    """
    if not trap.address:
        raise no_handler(current, what)
    state, cpu = pv(current), current.cpu
    regs, rflags = cpu.regs, cpu.rflags
    mask_byte = Maddr(current.vcpu.info + UPCALL_MASK)
    mask = current.domain.memory.bytes[mask_byte]
    seen = rflags & ~(flags.IF | flags.IOPL) | (0 if mask else flags.IF)
    if current.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        seen |= state.iopl << flags.IOPL_SHIFT
    cs, ss, old_rsp = cpu.selector(Seg.CS), cpu.selector(Seg.SS), regs[Reg.RSP]
    if state.kernel_mode:
        cs &= ~segment.SEL_RPL
        rsp = old_rsp
    else:
        toggle_guest_mode(current)
        rsp = state.kernel_sp
    frame = [regs[Reg.RCX], regs[Reg.R11]]
    if error_code is not None:
        frame.append(error_code)
    frame += [cpu.rip, cs | mask << 32, seen, old_rsp, ss]
    top = rsp & -STACK_ALIGN
    if HYPERVISOR_VIRT_START < top < HYPERVISOR_VIRT_END + STACK_REACH:
        raise DomainCrash(
            f"{what}: the guest's kernel stack at {top:#x} is in Xen's own area",
            "if it came from user mode, see the last HYPERVISOR_stack_switch; else %rsp is wild",
        )
    rsp = (top - 8 * len(frame)) & WORD
    try:
        current.write(rsp, struct.pack(f"<{len(frame)}Q", *frame))
    except XenError as error:
        raise no_frame(what, error) from None
    cpu.rip, cpu.rflags, regs[Reg.RSP] = trap.address, rflags & ~NOT_INHERITED, rsp
    load_syscall_state(current)
    if trap.mask_events:
        current.domain.memory.bytes[mask_byte] |= 1


def load_syscall_state(current: Current) -> None:
    """Leave RCX, R11, CS and SS as SYSCALL (and Xen's SYSRET after it) does.

    CS and SS are Xen's flat ones, whatever the guest had; one that has such a selector is flat.
    """
    cpu = current.cpu
    regs = cpu.regs
    regs[RCX], regs[R11] = cpu.rip, cpu.rflags
    if cpu.selector(SS) != FLAT_RING3_SS64:
        cpu.set_segment(SS, SS64)
    if cpu.selector(CS) != FLAT_RING3_CS64:
        cpu.set_segment(CS, CS64)


def inject(current: Current, vector: int, error_code: int = 0) -> None:
    """Deliver an exception to the guest's trap table."""
    trap = pv(current).traps.get(vector, NO_TRAP)
    code = error_code if vector in flags.HAS_ERROR_CODE else None
    bounce(current, trap, flags.vector_name(vector), code)


def inject_page_fault(current: Current, vaddr: int, error_code: int) -> None:
    """Deliver a page fault: the address goes to vcpu_info, the U bit follows the guest's mode."""
    state = pv(current)
    error_code &= ~PFEC_U
    if not state.kernel_mode:
        error_code |= PFEC_U
    set_guest_cr2(current, vaddr)
    trap = state.traps.get(flags.PAGE_FAULT, NO_TRAP)
    bounce(current, trap, f"#PF on {vaddr:#x}", error_code)


def set_guest_cr2(current: Current, vaddr: int) -> None:
    """Set the guest's CR2, which it also finds in its vcpu_info."""
    width = current.domain.width
    pv(current).cr2 = vaddr
    current.domain.memory.write_uint(Maddr(current.vcpu.info + CR2[width]), width, vaddr)


def deliver(current: Current, fault: Fault) -> None:
    """Give the guest an exception that came up while Xen worked for it."""
    if fault.vector == flags.PAGE_FAULT:
        inject_page_fault(current, fault.vaddr, fault.error_code)
    else:
        inject(current, fault.vector, fault.error_code)


def deliver_event(current: Current) -> None:
    """Enter the event callback: events are pending and not masked."""
    if current.watch is not None:
        for observer in current.watch:
            observer.upcall(current, "callback")
    bounce(current, pv(current).event_callback, "an event upcall")


def send_nmi(current: Current, vcpu: Vcpu) -> None:
    """Let a vcpu take an NMI; it wakes the vcpu if that is blocked."""
    state = pv_vcpu(vcpu)
    if not state.nmi_pending:
        state.nmi_pending = True
        waking.wake(current.domain, vcpu)


def deliver_nmi(current: Current) -> None:
    """Enter the NMI handler, and let no other NMI in until an iret; it is lost without one."""
    state = pv(current)
    state.nmi_pending = False
    handler = state.traps.get(flags.NMI, NO_TRAP)
    if handler.address or (current.domain.width == 4 and handler.cs):
        state.nmi_masked = True
        bounce(current, handler, "an NMI")


def complete_instruction(current: Current, length: int, breakpoints: int = 0) -> None:
    """Step over an instruction that Xen emulated; #DB after it if it is traced.

    `breakpoints` are DR6's bits of the I/O breakpoints that it hit.
    """
    cpu = current.cpu
    cpu.rip = (cpu.rip + length) & WORD
    rflags = cpu.rflags
    if rflags & flags.RF:
        cpu.rflags = rflags & ~flags.RF
    causes = breakpoints | (DR6_BS if rflags & flags.TF else 0)
    if causes:
        pv(current).dr6 |= causes
        inject(current, flags.DB)


def syscall_from_user(current: Current) -> None:
    """SYSCALL in user mode: enter the guest's callback; RIP is after the instruction.

    #UD without a callback.
    """
    cpu, callback = current.cpu, pv(current).syscall_callback
    load_syscall_state(current)
    if callback.address:
        bounce(current, callback, "SYSCALL")
    else:
        cpu.rip = (cpu.rip - SYSCALL_LENGTH) & WORD
        inject(current, flags.UD)
    cpu.rflags &= ~flags.DF
    cpu.regs[Reg.R11] = cpu.rflags


def sysenter(current: Current) -> None:
    """SYSENTER: enter the guest's callback, or its #GP handler if it has none.

    SYSENTER keeps nothing of where it was, so that the frame has RIP 0, RSP 0, a null CS of ring 3
    and the flat SS of user mode: it is the guest's own convention where to return to.
    """
    cpu, state, width = current.cpu, pv(current), current.domain.width
    callback, gp = state.sysenter_callback, state.traps.get(flags.GP, NO_TRAP)
    cpu.rip = cpu.regs[Reg.RSP] = 0
    cpu.rflags &= ~flags.RF
    cpu.set_segment(Seg.SS, SS64 if width == 8 else COMPAT_SS)
    cpu.set_segment(Seg.CS, Segment(NULL_RING3, 0, 0xFFFFFFFF, CODE_RING3[width]))
    if not callback.address:
        inject(current, flags.GP)
        return
    if width == 4 and segment.is_null(callback.cs):  # Xen, too, takes that of #GP then
        callback = replace(callback, cs=gp.cs)
    bounce(current, callback, "SYSENTER")


def iret(current: Current) -> None:
    """HYPERVISOR_iret: leave the kernel by the frame on its stack.

    A frame that the CPU's IRET refuses faults at its target, as if the fault came from there.
    """
    rip = current.cpu.rip
    pv(current).nmi_masked = False
    if current.domain.width == 8:
        iret64(current)
    else:
        try:
            iret32(current)
        except Fault as fault:
            _deliver_iret_fault(current, fault)
    if current.watch is not None:
        for observer in current.watch:
            observer.left(current, rip)


def iret64(current: Current) -> None:
    """`iret` of a 64-bit guest."""
    cpu, state, domain = current.cpu, pv(current), current.domain
    regs = cpu.regs
    try:
        frame = current.read_struct(iret_context, regs[Reg.RSP])
    except XenError as error:
        raise no_iret_frame(error) from None
    if frame.cs & segment.SEL_RPL == segment.SEL_RPL:
        if not state.user_root:
            raise DomainCrash(
                "iret to user mode with no user page tables",
                "user mode has page tables of its own: set them with MMUEXT_NEW_USER_BASEPTR",
            )
        toggle_guest_mode(current)
    if domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        state.iopl = (frame.rflags & flags.IOPL) >> flags.IOPL_SHIFT
    rflags = frame.rflags & flags.ALL & ~(flags.IOPL | flags.VM) | flags.IF | flags.FIXED
    domain.memory.bytes[current.vcpu.info + UPCALL_MASK] = not frame.rflags & flags.IF
    regs[Reg.RAX], regs[Reg.RSP], cpu.rip = frame.rax, frame.rsp, frame.rip
    cs, ss = frame.cs & 0xFFFF | segment.SEL_RPL, frame.ss & 0xFFFF | segment.SEL_RPL
    if not frame.flags & VGCF_in_syscall:
        regs[Reg.RCX], regs[Reg.R11] = frame.rcx, frame.r11
        if rflags & flags.TF:
            cpu.leave_by_iret()
    else:  # Xen leaves by SYSRET if it can, which has its own selectors
        regs[Reg.RCX], regs[Reg.R11] = frame.rip, rflags
        if is_canonical(frame.rip):
            cs, ss = FLAT_RING3_CS32 if cs == FLAT_RING3_CS32 else FLAT_RING3_CS64, FLAT_RING3_SS64
            rflags &= ~flags.RF
    cpu.rflags = rflags
    _load_code_and_stack(current, cs, ss)


def _load_code_and_stack(current: Current, cs: int, ss: int) -> None:
    """Load CS and SS as IRET at CPL 0 would, or deliver the fault that it would raise."""
    cpu = current.cpu
    try:
        code = CS64 if cs == FLAT_RING3_CS64 else _code_segment(current, cs)
        stack = SS64 if ss == FLAT_RING3_SS64 else _stack_segment(current, ss)
        long_mode = code.attributes & segment.L
        if not (is_canonical(cpu.rip) if long_mode else cpu.rip <= code.limit):
            raise Fault(flags.GP)
    except Fault as fault:
        cpu.set_segment(Seg.SS, Segment(ss, 0, 0xFFFFFFFF, segment.DATA_RING3))
        cpu.set_segment(Seg.CS, Segment(cs, 0, 0xFFFFFFFF, segment.CODE64_RING3))
        _deliver_iret_fault(current, fault)
        return
    cpu.set_segment(Seg.SS, stack)
    cpu.set_segment(Seg.CS, code)


def resume(current: Current, cs: int, ss: int) -> None:
    """Go on in the guest at the registers, and at CS and SS as an IRET at CPL 0 loads them.

    The guest gets the fault if it cannot have them.
    """
    if current.domain.width == 8:
        _load_code_and_stack(current, cs, ss)
        return
    try:
        resume32(current, cs, ss)
    except Fault as fault:
        _deliver_iret_fault(current, fault)


def _deliver_iret_fault(current: Current, fault: Fault) -> None:
    """Give the guest the fault of an iret whose target is in the registers already, and say so."""
    cpu = current.cpu
    code, stack = (cpu.selector(which) for which in (Seg.CS, Seg.SS))
    current.log(
        f"an iret to {code:#x}:{cpu.rip:#x}, with the stack at {stack:#x}:{cpu.regs[Reg.RSP]:#x}, "
        f"is not possible: {flags.vector_name(fault.vector)}, error code {fault.error_code:#x}"
    )
    deliver(current, fault)


def _code_segment(current: Current, selector: int) -> Segment:
    """The code segment that an IRET to ring 3 loads; #GP or #NP if it may not."""
    refusal = Fault(flags.GP, selector & SELECTOR)
    if segment.is_null(selector):
        raise refusal
    descriptor = read_descriptor(current, selector)
    attributes = segment.attributes(descriptor)
    needed = segment.S | segment.TYPE_CODE
    conforming = attributes & segment.TYPE_CONFORMING
    if attributes & needed != needed or not (conforming or segment.dpl(attributes) == 3):
        raise refusal
    if attributes & segment.L and attributes & segment.DB:
        raise refusal
    if not attributes & segment.PRESENT:
        raise Fault(flags.NP, selector & SELECTOR)
    return _segment(selector, descriptor)


def _stack_segment(current: Current, selector: int) -> Segment:
    """The stack segment that an IRET to ring 3 loads; #GP or #SS if it may not."""
    refusal = Fault(flags.GP, selector & SELECTOR)
    if segment.is_null(selector):
        raise refusal
    descriptor = read_descriptor(current, selector)
    attributes = segment.attributes(descriptor)
    needed = segment.S | segment.TYPE_WRITABLE
    if attributes & (needed | segment.TYPE_CODE) != needed or segment.dpl(attributes) != 3:
        raise refusal
    if not attributes & segment.PRESENT:
        raise Fault(flags.SS, selector & SELECTOR)
    return _segment(selector, descriptor)


def _segment(selector: int, descriptor: int) -> Segment:
    attributes = segment.attributes(descriptor) | segment.TYPE_ACCESSED
    return Segment(selector, segment.base(descriptor), segment.limit(descriptor), attributes)
