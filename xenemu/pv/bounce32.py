"""Bounce frames of 32-bit PV kernels, which run in ring 1, and the way back by iret.

An entry from ring 2 or 3 switches to the kernel's stack. An entry from ring 1 stays on its own
stack. In the CS slot, bits 23:16 are the event mask as it was. In the EFLAGS slot, IF is the
inverse of that mask.

Xen goes back to the guest by an IRET, which checks the code and the stack segment. If IRET refuses
one of them, the guest gets the fault, as if it came from the target.

In Xen: arch/x86/x86_64/compat/entry.S (compat_create_bounce_frame, compat_restore_all_guest),
arch/x86/pv/iret.c (compat_iret).
"""

from __future__ import annotations

import struct

from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.shared_info import UPCALL_MASK
from xenemu.pv.crash import no_frame, no_handler, no_iret_frame
from xenemu.pv.descriptors import read_descriptor
from xenemu.pv.state import NO_TRAP, Trap, pv
from xenemu.x86 import flags, segment
from xenemu.x86.fault import Fault
from xenemu.x86.paging import Maddr

WORD = 0xFFFFFFFF
KERNEL_RING = 1
USER_RINGS = 2  # a selector with this bit is of ring 2 or 3
NOT_INHERITED = flags.TF | flags.VM | flags.RF | flags.NT
NEVER_RESTORED = flags.IOPL | flags.VM
DATA_SEGMENTS = (Seg.DS, Seg.ES, Seg.FS, Seg.GS)
SELECTOR = 0xFFFF & ~segment.SEL_RPL  # what an error code names of one
VM86_FRAME = 9  # words: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS


def in_kernel_mode(current: Current) -> bool:
    """Whether the vcpu is in ring 1; VM86 code, which the engine also executes, is not."""
    cs = current.cpu.selector(Seg.CS)
    return cs & segment.SEL_RPL == KERNEL_RING and not current.cpu.rflags & flags.VM


def bounce32(current: Current, trap: Trap, what: str, error_code: int | None = None) -> None:
    """Enter the guest's kernel at `trap`, with a frame for what it interrupts.

    A Fault if the handler's code or stack segment is not fit; the fault belongs to the handler's
    first instruction. The domain is crashed where Xen does so: if there is no handler, or if a
    stack cannot take the frame.
    """
    if not trap.cs & SELECTOR:
        raise no_handler(current, what)
    state, cpu, domain = pv(current), current.cpu, current.domain
    regs, rflags = cpu.regs, cpu.rflags
    mask_byte = Maddr(current.vcpu.info + UPCALL_MASK)
    mask = domain.memory.bytes[mask_byte]
    seen = rflags & ~(flags.IF | flags.IOPL) | (0 if mask else flags.IF)
    if domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        seen |= state.iopl << flags.IOPL_SHIFT
    cs, ss = cpu.selector(Seg.CS), cpu.segment(Seg.SS)
    frame = [cpu.rip, cs | mask << 16, seen]
    if cs & USER_RINGS:
        frame += [regs[Reg.RSP], ss.selector]
        esp, selector = state.kernel_sp, state.kernel_ss
        base = _stack_base(current, selector)
    else:
        esp, selector, base = regs[Reg.RSP], ss.selector, ss.base
    if error_code is not None:
        frame.insert(0, error_code)
    esp = (esp - 4 * len(frame)) & WORD
    try:
        data = struct.pack(f"<{len(frame)}I", *(value & WORD for value in frame))
        current.write((base + esp) & WORD, data)
    except XenError as error:
        raise no_frame(what, error) from None
    cpu.rip, cpu.rflags, regs[Reg.RSP] = trap.address & WORD, rflags & ~NOT_INHERITED, esp
    if trap.mask_events:
        domain.memory.bytes[mask_byte] |= 1
    resume(current, trap.cs, selector)


def _stack_base(current: Current, selector: int) -> int:
    """Where the segment begins that the guest registered for its kernel stack."""
    try:
        return segment.base(_descriptor(current, selector)[0])
    except Fault:
        raise DomainCrash(
            f"the guest's kernel stack segment {selector:#x} is no stack",
            "the first argument of HYPERVISOR_stack_switch is the selector of a writable data"
            " segment of ring 1, which must still be in the GDT",
        ) from None


def iret32(current: Current) -> None:
    """HYPERVISOR_iret of a 32-bit guest: leave the kernel by the frame on its stack.

    A Fault of the target if the CPU's IRET refuses the frame. The domain is crashed if there is no
    frame, or if the frame leads to ring 0. Like Xen, this takes ESP for a linear address.
    """
    cpu, state = current.cpu, pv(current)
    regs = cpu.regs
    esp = regs[Reg.RSP] & WORD
    eax, eip, cs, eflags = _words(current, esp, 4)
    if current.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        state.iopl = (eflags & flags.IOPL) >> flags.IOPL_SHIFT
    regs[Reg.RAX], cpu.rip = eax, eip
    cpu.rflags = eflags & flags.ALL & ~NEVER_RESTORED | flags.IF | flags.FIXED
    masked = not eflags & flags.IF
    ss = cpu.selector(Seg.SS)
    if eflags & flags.VM:
        trap = _refuse_vm86(current, esp)
        cs, ss = trap.cs, state.kernel_ss
        masked |= trap.mask_events
    elif not cs & segment.SEL_RPL:
        raise DomainCrash(
            f"iret to {cs & 0xFFFF:#x}:{eip:#x}, in ring 0",
            "a 32-bit PV kernel runs in ring 1: its code segments' selectors end in 1",
        )
    elif cs & USER_RINGS:
        regs[Reg.RSP], ss = _words(current, esp + 16, 2)
    else:
        regs[Reg.RSP] = (esp + 16) & WORD
    current.domain.memory.bytes[current.vcpu.info + UPCALL_MASK] = masked
    # The event mask above the selector is not looked at: EFLAGS.IF is.
    resume(current, cs & 0xFFFF, ss & 0xFFFF)


def _words(current: Current, esp: int, count: int) -> tuple[int, ...]:
    try:
        return struct.unpack(f"<{count}I", current.read(esp & WORD, 4 * count))
    except XenError as error:
        raise no_iret_frame(error) from None


def _refuse_vm86(current: Current, esp: int) -> Trap:
    """Give the guest #GP instead of VM86 mode, which does not exist under 64-bit Xen.

    The frame moves to the kernel's stack, as if the first instruction there had faulted.
    """
    cpu, state = current.cpu, pv(current)
    frame = _words(current, esp + 4, VM86_FRAME)
    stack = (state.kernel_sp - 4 * (1 + VM86_FRAME)) & WORD
    try:
        current.write(stack, struct.pack(f"<{1 + VM86_FRAME}I", 0, *frame))
    except XenError as error:
        raise no_iret_frame(error, "kernel stack") from None
    trap = state.traps.get(flags.GP, NO_TRAP)
    cpu.rip, cpu.regs[Reg.RSP] = trap.address, stack
    cpu.rflags &= ~NOT_INHERITED
    return trap


def resume(current: Current, cs: int, ss: int) -> None:
    """Load CS and SS as IRET at CPL 0 would; a Fault, of the code they name, where that faults."""
    cpu, state = current.cpu, pv(current)
    try:
        _load_code_and_stack(current, cs, ss)
    except Fault:
        # What the fault's frame shows of the target; of the rest only the stack's base is used.
        cpu.set_segment(Seg.SS, Segment(ss, cpu.segment(Seg.SS).base, WORD, segment.DATA_RING1))
        cpu.set_segment(Seg.CS, Segment(cs, 0, WORD, segment.CODE32_RING1))
        raise
    finally:
        state.kernel_mode = cs & segment.SEL_RPL == KERNEL_RING


def _load_code_and_stack(current: Current, cs: int, ss: int) -> None:
    cpu = current.cpu
    ring = cs & segment.SEL_RPL
    code, stack = load_code(current, cs), load_stack(current, ss, ring)
    if cpu.rip > code.limit:
        raise Fault(flags.GP)
    cpu.set_segment(Seg.SS, stack)
    cpu.set_segment(Seg.CS, code)
    _drop_inner_data_segments(current, ring)


def _drop_inner_data_segments(current: Current, ring: int) -> None:
    """Null the data segments that the outer ring may not have, as IRET does."""
    for which in DATA_SEGMENTS:
        value = current.cpu.segment(which)
        conforming = value.attributes & segment.TYPE_CODE and (
            value.attributes & segment.TYPE_CONFORMING
        )
        if value.selector & SELECTOR and not conforming and segment.dpl(value.attributes) < ring:
            current.cpu.set_segment(which, Segment(0))


def load_code(current: Current, selector: int) -> Segment:
    """The code segment that IRET loads for the selector's ring; #GP or #NP if it may not."""
    ring = selector & segment.SEL_RPL
    descriptor, attributes = _descriptor(current, selector)
    conforming = attributes & segment.TYPE_CONFORMING
    dpl = segment.dpl(attributes)
    if not attributes & segment.TYPE_CODE or (dpl > ring if conforming else dpl != ring):
        raise Fault(flags.GP, selector & SELECTOR)
    if not attributes & segment.PRESENT:
        raise Fault(flags.NP, selector & SELECTOR)
    # The engine takes the current ring from CS's DPL, which a conforming segment's need not be.
    attributes = attributes & ~segment.DPL | ring << segment.DPL_SHIFT
    return _segment(selector, descriptor, attributes)


def load_stack(current: Current, selector: int, ring: int) -> Segment:
    """The stack segment that IRET to `ring` loads; #GP or #SS if it may not."""
    descriptor, attributes = _descriptor(current, selector)
    kind = attributes & (segment.TYPE_CODE | segment.TYPE_WRITABLE)
    rings = {selector & segment.SEL_RPL, segment.dpl(attributes)}
    if kind != segment.TYPE_WRITABLE or rings != {ring}:
        raise Fault(flags.GP, selector & SELECTOR)
    if not attributes & segment.PRESENT:
        raise Fault(flags.SS, selector & SELECTOR)
    return _segment(selector, descriptor, attributes)


def _descriptor(current: Current, selector: int) -> tuple[int, int]:
    """The code or data descriptor that a selector names, and its attributes."""
    if segment.is_null(selector):
        raise Fault(flags.GP)
    descriptor = read_descriptor(current, selector)
    attributes = segment.attributes(descriptor)
    if not attributes & segment.S:
        raise Fault(flags.GP, selector & SELECTOR)
    return descriptor, attributes


def _segment(selector: int, descriptor: int, attributes: int) -> Segment:
    base, limit = segment.base(descriptor), segment.limit(descriptor)
    return Segment(selector, base, limit, attributes | segment.TYPE_ACCESSED)
