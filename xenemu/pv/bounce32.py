"""Bounce frames of 32-bit PV kernels, which run in ring 1, and the way back by iret.

An entry from ring 3 switches to the kernel's stack; one from ring 1 stays on its own. In the CS
slot, bits 23:16 are the event mask as it was; in the EFLAGS slot, IF is its inverse.

In Xen: arch/x86/x86_64/compat/entry.S (compat_create_bounce_frame), arch/x86/pv/iret.c
(compat_iret).
"""

from __future__ import annotations

import struct

from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.domain import Current
from xenemu.hv.shared_info import UPCALL_MASK
from xenemu.pv.descriptors import read_descriptor
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags, segment
from xenemu.x86.fault import Fault
from xenemu.x86.paging import Maddr

WORD = 0xFFFFFFFF
NOT_INHERITED = flags.TF | flags.VM | flags.RF | flags.NT
DATA_SEGMENTS = (Seg.DS, Seg.ES, Seg.FS, Seg.GS)
SELECTOR = 0xFFFF & ~segment.SEL_RPL


def bounce32(
    current: Current,
    trap: Trap,
    what: str,
    error_code: int | None = None,
    failsafe: bool = False,
) -> None:
    """Enter the guest's kernel at `trap`, with a frame for what it interrupts.

    Crashes the domain where Xen does: no handler, or a stack that cannot take the frame.
    """
    if not trap.cs & SELECTOR:
        raise DomainCrash(f"{what} at {current.cpu.rip:#x}, but the guest has no handler for it")
    state, cpu, domain = pv(current), current.cpu, current.domain
    regs, rflags = cpu.regs, cpu.rflags
    mask_byte = Maddr(current.vcpu.info + UPCALL_MASK)
    mask = domain.memory.bytes[mask_byte]
    seen = rflags & ~(flags.IF | flags.IOPL) | (0 if mask else flags.IF)
    if domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        seen |= state.iopl << flags.IOPL_SHIFT
    frame = [cpu.rip, cpu.segment(Seg.CS).selector | mask << 16, seen]
    stack = cpu.segment(Seg.SS)
    if state.kernel_mode:
        esp = regs[Reg.RSP]
    else:
        esp = state.kernel_sp
        frame += [regs[Reg.RSP] & WORD, stack.selector]
        stack = _kernel_stack(current)
    if error_code is not None:
        frame.insert(0, error_code)
    if failsafe:
        frame[:0] = [cpu.segment(which).selector for which in DATA_SEGMENTS]
    esp = (esp - 4 * len(frame)) & WORD
    try:
        data = struct.pack(f"<{len(frame)}I", *(value & WORD for value in frame))
        current.write((stack.base + esp) & WORD, data)
    except XenError as error:
        raise DomainCrash(f"{what}: no frame on the guest's kernel stack: {error.reason}") from None
    if failsafe:
        for which in DATA_SEGMENTS:
            cpu.set_segment(which, Segment(0))
    cpu.rip, cpu.rflags, regs[Reg.RSP] = trap.address & WORD, rflags & ~NOT_INHERITED, esp
    cpu.set_segment(Seg.SS, stack)
    cpu.set_segment(Seg.CS, _handler_code(current, trap.cs))
    state.kernel_mode = True
    if trap.mask_events:
        domain.memory.bytes[mask_byte] |= 1


def _kernel_stack(current: Current) -> Segment:
    """The stack segment that the guest registered for entries from ring 3."""
    selector = pv(current).kernel_ss
    try:
        return load_stack(current, selector, 1)
    except Fault:
        raise DomainCrash(f"the guest's kernel stack segment {selector:#x} is no stack") from None


def _handler_code(current: Current, selector: int) -> Segment:
    try:
        return load_code(current, selector, 1)
    except Fault:
        raise DomainCrash(f"the guest's handler is in {selector:#x}, which is no code") from None


def iret32(current: Current) -> None:
    """HYPERVISOR_iret of a 32-bit guest: leave the kernel by the frame on its stack.

    VM86 does not exist under 64-bit Xen: the guest gets #GP. A frame that the CPU's IRET refuses
    enters the failsafe callback.
    """
    cpu, state, domain = current.cpu, pv(current), current.domain
    regs = cpu.regs
    esp = (cpu.segment(Seg.SS).base + regs[Reg.RSP]) & WORD
    try:
        eax, eip, cs, eflags = struct.unpack("<4I", current.read(esp, 16))
        cs &= 0xFFFF  # the event mask above it is not looked at: EFLAGS.IF is
        outer = cs & segment.SEL_RPL > 1 and not eflags & flags.VM
        new_esp, ss = struct.unpack("<2I", current.read(esp + 16, 8)) if outer else (0, 0)
    except XenError as error:
        raise DomainCrash(f"iret: no frame on the guest's stack: {error.reason}") from None
    if domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1:
        state.iopl = (eflags & flags.IOPL) >> flags.IOPL_SHIFT
    regs[Reg.RAX], cpu.rip = eax, eip
    if eflags & flags.VM:
        raise Fault(flags.GP)
    cpu.rflags = eflags & flags.ALL & ~flags.IOPL | flags.IF | flags.FIXED
    domain.memory.bytes[current.vcpu.info + UPCALL_MASK] = not eflags & flags.IF
    if not outer:
        regs[Reg.RSP] = (regs[Reg.RSP] + 16) & WORD
        ss = cpu.segment(Seg.SS).selector
    else:
        regs[Reg.RSP] = new_esp
    _load_code_and_stack(current, cs, ss & 0xFFFF, outer)


def _load_code_and_stack(current: Current, cs: int, ss: int, outer: bool) -> None:
    """Load CS and SS as IRET at CPL 0 would; where that faults, enter the failsafe callback."""
    cpu, state = current.cpu, pv(current)
    ring = cs & segment.SEL_RPL
    try:
        if not ring:
            raise Fault(flags.GP, cs & SELECTOR)
        code = load_code(current, cs, ring)
        stack = load_stack(current, ss, ring)
    except Fault as fault:
        state.kernel_mode = not outer
        cpu.set_segment(Seg.CS, Segment(cs | 1, 0, WORD, segment.CODE32_RING1))
        bounce32(
            current, state.failsafe_callback, f"iret to {cs:#x}:{cpu.rip:#x}: {fault}", None, True
        )
        return
    cpu.set_segment(Seg.SS, stack)
    cpu.set_segment(Seg.CS, code)
    if outer:
        _drop_inner_data_segments(current, ring)
    state.kernel_mode = ring < segment.SEL_RPL


def _drop_inner_data_segments(current: Current, ring: int) -> None:
    """Null the data segments that the outer ring may not have, as IRET does."""
    for which in DATA_SEGMENTS:
        value = current.cpu.segment(which)
        conforming = value.attributes & segment.TYPE_CODE and (
            value.attributes & segment.TYPE_CONFORMING
        )
        if value.selector & SELECTOR and not conforming and segment.dpl(value.attributes) < ring:
            current.cpu.set_segment(which, Segment(0))


def load_code(current: Current, selector: int, ring: int) -> Segment:
    """The code segment that a far transfer to `ring` loads; #GP or #NP if it may not."""
    descriptor, attributes = _descriptor(current, selector)
    conforming = attributes & segment.TYPE_CONFORMING
    dpl = segment.dpl(attributes)
    if not attributes & segment.TYPE_CODE or (dpl > ring if conforming else dpl != ring):
        raise Fault(flags.GP, selector & SELECTOR)
    if not attributes & segment.PRESENT:
        raise Fault(flags.NP, selector & SELECTOR)
    return _segment(selector & SELECTOR | selector & segment.SEL_TI | ring, descriptor)


def load_stack(current: Current, selector: int, ring: int) -> Segment:
    """The stack segment that a far transfer to `ring` loads; #GP or #SS if it may not."""
    descriptor, attributes = _descriptor(current, selector)
    kind = attributes & (segment.TYPE_CODE | segment.TYPE_WRITABLE)
    if kind != segment.TYPE_WRITABLE or segment.dpl(attributes) != ring:
        raise Fault(flags.GP, selector & SELECTOR)
    if not attributes & segment.PRESENT:
        raise Fault(flags.SS, selector & SELECTOR)
    return _segment(selector, descriptor)


def _descriptor(current: Current, selector: int) -> tuple[int, int]:
    if segment.is_null(selector):
        raise Fault(flags.GP)
    descriptor = read_descriptor(current, selector)
    attributes = segment.attributes(descriptor)
    if not attributes & segment.S:
        raise Fault(flags.GP, selector & SELECTOR)
    return descriptor, attributes


def _segment(selector: int, descriptor: int) -> Segment:
    attributes = segment.attributes(descriptor) | segment.TYPE_ACCESSED
    return Segment(selector, segment.base(descriptor), segment.limit(descriptor), attributes)
