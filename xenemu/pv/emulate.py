"""Privileged instructions of a PV guest: those that Xen emulates, and #GP for the rest.

In Xen: arch/x86/pv/emul-priv-op.c, arch/x86/pv/emul-inv-op.c.
"""

from __future__ import annotations

from collections.abc import Callable

from xenemu.abi.errno import ENODEV
from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.errors import XenError
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.frame_table import WORK_PER_CALL
from xenemu.hv.msr import cpuid_faults
from xenemu.hv.pagetype import Restart
from xenemu.hv.prices import Exit
from xenemu.pv import cpuid, debug_registers, msr, ports
from xenemu.pv.paging import (
    cr3_to_mfn,
    first_fault,
    in_guest_range,
    mfn_to_cr3,
    new_guest_cr3,
    translate,
    translate32,
)
from xenemu.pv.state import pv
from xenemu.pv.traps import WORD, complete_instruction, deliver, set_guest_cr2
from xenemu.records import dataclass
from xenemu.x86 import flags
from xenemu.x86.fault import Fault
from xenemu.x86.paging import PAGE_MASK, PAGE_SIZE, PFEC_W
from xenemu.x86.segment import DB, L

FORCED_EMULATION_PREFIX = b"\x0f\x0bxen"
CPUID = b"\x0f\xa2"
OPERAND_SIZE, ADDRESS_SIZE = 0x66, 0x67
REPEATS = frozenset(b"\xf2\xf3")
SEGMENTS = {0x26: Seg.ES, 0x2E: Seg.CS, 0x36: Seg.SS, 0x3E: Seg.DS, 0x64: Seg.FS, 0x65: Seg.GS}
REX_W = 8
MAX_INSTRUCTION = 15

CR0_TS = 1 << 3
CR0 = 0x80050033  # as Xen runs: PG AM WP NE ET MP PE


class Refused(Exception):
    """Xen does not emulate this instruction for this guest, which gets its fault."""


@dataclass
class Instruction:
    """What the decoder found: the opcode (0x0Fxx for two-byte ones) and where it ends.

    Sizes are in bytes. `breakpoints` collects the I/O breakpoints that the instruction hits.
    """

    code: bytes
    opcode: int
    length: int
    operand_size: int
    address_size: int
    segment: Seg | None
    repeat: bool
    rex: int
    breakpoints: int = 0

    @property
    def next_byte(self) -> int:
        """The byte after the opcode: ModRM or an immediate; Refused if the code ends there."""
        if self.length == len(self.code):
            raise Refused
        return self.code[self.length]

    @property
    def reg(self) -> int:
        return (self.next_byte >> 3) & 7 | (self.rex & 4) << 1

    @property
    def rm(self) -> int:
        return self.next_byte & 7 | (self.rex & 1) << 3


def code_bits(current: Current) -> int:
    """64, 32 or 16: the mode of the code segment."""
    attributes = current.cpu.segment(Seg.CS).attributes
    return 64 if attributes & L else 32 if attributes & DB else 16


def fetch(current: Current) -> bytes:
    """The bytes at RIP, up to an instruction's longest or the end of what is mapped."""
    start = current.cpu.rip
    if not current.cpu.code64:
        start = (start + current.cpu.segment(Seg.CS).base) & 0xFFFFFFFF
    here = min(MAX_INSTRUCTION, PAGE_SIZE - (start & PAGE_MASK))
    code = b""
    try:
        code = current.domain.memory.read(current.translate(current, start, False), here)
        if here < MAX_INSTRUCTION:
            code += current.read(start + here, MAX_INSTRUCTION - here)
    except XenError:
        pass  # what is mapped will do
    return code


def decode(code: bytes, bits: int) -> Instruction:
    """Find the opcode after prefixes; raises Refused if there is none."""
    at, rex, repeat, segment = 0, 0, False, None
    operand_override = address_override = False
    for byte in code:
        if bits == 64 and byte & 0xF0 == 0x40:
            rex = byte
        elif byte in (OPERAND_SIZE, ADDRESS_SIZE) or byte in REPEATS or byte in SEGMENTS:
            operand_override |= byte == OPERAND_SIZE
            address_override |= byte == ADDRESS_SIZE
            repeat |= byte in REPEATS
            segment = SEGMENTS.get(byte, segment)
            rex = 0
        else:
            break
        at += 1
    two_bytes = code[at : at + 1] == b"\x0f"
    opcode = code[at : at + 1 + two_bytes]
    if len(opcode) != 1 + two_bytes:
        raise Refused
    narrow = (bits == 16) != operand_override
    address = 8 if bits == 64 else 4 if bits == 32 else 2
    if address_override:
        address = {8: 4, 4: 2, 2: 4}[address]
    return Instruction(
        code=code,
        opcode=int.from_bytes(opcode, "big"),
        length=at + len(opcode),
        operand_size=8 if rex & REX_W else 2 if narrow else 4,
        address_size=address,
        segment=segment,
        repeat=repeat,
        rex=rex,
    )


def decode_here(current: Current) -> Instruction | None:
    """The instruction at RIP; None if there is none."""
    try:
        return decode(fetch(current), code_bits(current))
    except Refused:
        return None


def emulate_privileged_op(current: Current) -> bool:
    """Emulate the instruction at RIP if Xen would; False if the guest is to get its #GP."""
    insn = decode_here(current)
    handler = None if insn is None else HANDLERS.get(insn.opcode)
    if insn is None or handler is None:
        return False
    try:
        length = handler(current, insn)
    except Refused:
        return False
    except Fault as fault:
        deliver(current, fault)
        return True
    complete_instruction(current, length, insn.breakpoints)
    return True


def emulate_invalid_op(current: Current) -> bool:
    """Emulate an instruction after the forced-emulation prefix; False: it is a plain #UD."""
    state, rip = pv(current), current.cpu.rip
    behind = (rip + len(FORCED_EMULATION_PREFIX)) & WORD
    try:
        if _fetch_exactly(current, rip, len(FORCED_EMULATION_PREFIX)) != FORCED_EMULATION_PREFIX:
            return False
        if _fetch_exactly(current, behind, len(CPUID)) != CPUID:
            return False
        if cpuid_faults(current.vcpu) and not state.kernel_mode:
            current.cpu.rip = behind
            raise Fault(flags.GP)
    except Fault as fault:
        deliver(current, fault)
        return True
    cpuid.execute(current)
    complete_instruction(current, len(FORCED_EMULATION_PREFIX + CPUID))
    return True


def _fetch_exactly(current: Current, vaddr: int, size: int) -> bytes:
    try:
        return current.read(vaddr, size)
    except XenError:
        raise Fault(flags.PAGE_FAULT, 0, first_fault(current, vaddr, False)) from None


def iopl_ok(current: Current) -> bool:
    """Whether the guest's I/O privilege level covers the mode it is in."""
    state = pv(current)
    level = 3
    if state.kernel_mode:
        level = 0 if current.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1 else 1
    return level <= state.iopl


def _kernel_only(current: Current) -> None:
    if not pv(current).kernel_mode:
        raise Refused


def _cli_sti(current: Current, insn: Instruction) -> int:
    # No effect: a PV guest's events are masked by its vcpu_info.
    if not iopl_ok(current):
        raise Refused
    return insn.length


# ---- ports ----


def _port_access(current: Current, insn: Instruction, port: int, size: int) -> None:
    """Check the guest's own permission, its IOPL and then its I/O bitmap; note breakpoints."""
    if not (iopl_ok(current) or _bitmap_allows(current, port, size)):
        raise Refused
    insn.breakpoints = debug_registers.io_breakpoints(current, port, size)


def _bitmap_allows(current: Current, port: int, size: int) -> bool:
    state = pv(current)
    if port + size > state.io_bitmap_ports:
        return False
    first = state.io_bitmap + (port >> 3)
    bits = _bitmap_byte(current, first) | _bitmap_byte(current, first + 1) << 8
    return not bits >> (port & 7) & ((1 << size) - 1)


def _bitmap_byte(current: Current, vaddr: int) -> int:
    """A byte of the bitmap in the kernel's address space; if it is not mapped, it forbids."""
    try:
        gate = translate if current.domain.width == 8 else translate32
        maddr = gate(current, vaddr, False, pv(current).kernel_root)
    except XenError:
        return 0xFF
    return current.domain.memory.bytes[maddr]


def _port_size(insn: Instruction) -> int:
    return min(insn.operand_size, 4) if insn.opcode & 1 else 1


def _in_out(current: Current, insn: Instruction) -> int:
    opcode, regs = insn.opcode, current.cpu.regs
    size = _port_size(insn)
    length = insn.length
    if opcode & 8:
        port = regs[Reg.RDX] & 0xFFFF
    else:
        port = insn.next_byte
        length += 1
    _port_access(current, insn, port, size)
    mask = (1 << 8 * size) - 1
    if opcode & 2:
        ports.write(current, port, size, regs[Reg.RAX] & mask)
    else:
        value = ports.read(current, port, size)
        regs[Reg.RAX] = value if size == 4 else regs[Reg.RAX] & ~mask | value
    return length


def _ins_outs(current: Current, insn: Instruction) -> int:
    """INS and OUTS, one element at a time when repeated, so that events are looked at."""
    regs = current.cpu.regs
    mask = (1 << 8 * insn.address_size) - 1
    if insn.repeat and not regs[Reg.RCX] & mask:
        return insn.length
    size, port = _port_size(insn), regs[Reg.RDX] & 0xFFFF
    _port_access(current, insn, port, size)
    if insn.opcode & 2:
        index, which, fault_code = Reg.RSI, insn.segment or Seg.DS, 0
    else:
        index, which, fault_code = Reg.RDI, Seg.ES, PFEC_W
    vaddr = _linear(current, which, regs[index] & mask, size)
    try:
        if insn.opcode & 2:
            ports.write(current, port, size, current.read_uint(vaddr, size))
        else:
            current.write_uint(vaddr, size, ports.read(current, port, size))
    except XenError:
        fault = first_fault(current, vaddr, bool(fault_code))
        raise Fault(flags.PAGE_FAULT, fault_code, fault) from None
    step = -size if current.cpu.rflags & flags.DF else size
    _count(current, insn, index, step)
    if not insn.repeat:
        return insn.length
    _count(current, insn, Reg.RCX, -1)
    return 0 if regs[Reg.RCX] & mask else insn.length


def _linear(current: Current, which: Seg, offset: int, size: int) -> int:
    """The address of an operand; #GP, or #SS, where the segment does not reach."""
    segment = current.cpu.segment(which)
    if code_bits(current) == 64:
        base = segment.base if which in (Seg.FS, Seg.GS) else 0
        vaddr = (base + offset) & WORD
        reachable = in_guest_range(vaddr, current.domain.width)
    else:
        vaddr = (segment.base + offset) & 0xFFFFFFFF
        reachable = offset + size - 1 <= segment.limit
    if not reachable:
        raise Fault(flags.SS if which is Seg.SS else flags.GP)
    return vaddr


def _count(current: Current, insn: Instruction, register: Reg, step: int) -> None:
    """Add to a register in the instruction's address size; 32 bits clear the upper half."""
    regs, mask = current.cpu.regs, (1 << 8 * insn.address_size) - 1
    kept = regs[register] & ~0xFFFF if insn.address_size == 2 else 0
    regs[register] = kept | (regs[register] + step) & mask


# ---- control and debug registers, MSRs ----


def _clts(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    set_guest_ts(current, False)
    return insn.length


def _wbinvd(current: Current, insn: Instruction) -> int:
    # Ignored: only a domain with hardware may flush the caches.
    _kernel_only(current)
    return insn.length


def set_guest_ts(current: Current, value: bool) -> None:
    """Set or clear the guest's CR0.TS (fpu_taskswitch, clts, mov to CR0)."""
    pv(current).task_switched = value
    current.cpu.set_task_switched(value)


def _width(current: Current) -> int:
    """The mask of a general register in a move to or from a control or debug register."""
    return WORD if code_bits(current) == 64 else 0xFFFFFFFF


def _read_cr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    state = pv(current)
    match insn.reg:
        case 0:
            value = CR0 | (CR0_TS if state.task_switched else 0)
        case 2:
            value = state.cr2
        case 3:
            value = mfn_to_cr3(state.kernel_root, current.domain.width)
        case 4:
            value = state.cr4
        case _:
            raise Refused
    current.cpu.regs[insn.rm] = value & _width(current)
    return insn.length + 1


def _write_cr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    value = current.cpu.regs[insn.rm] & _width(current)
    match insn.reg:
        case 0:
            if (value ^ CR0) & ~CR0_TS:
                raise Refused
            set_guest_ts(current, bool(value & CR0_TS))
        case 2:
            set_guest_cr2(current, value)
        case 3:
            try:
                current.domain.frames.work_left = WORK_PER_CALL
                new_guest_cr3(current, cr3_to_mfn(value, current.domain.width))
            except Restart:
                return 0  # the instruction is executed again
            except XenError as error:
                current.log(f"CR3 = {value:#x} is refused: {error.reason}")
                raise Refused from None
        case 4:
            pv(current).cr4 = msr.fixup_guest_cr4(value)
            current.cpu.set_tsc_disabled(bool(value & msr.CR4_TSD))
            current.cpu.set_fsgsbase(bool(value & msr.CR4_FSGSBASE))
        case _:
            raise Refused
    return insn.length + 1


def _read_dr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    try:
        value = debug_registers.get_debugreg(current, insn.reg)
    except XenError:
        raise Fault(flags.UD) from None
    current.cpu.regs[insn.rm] = value & _width(current)
    return insn.length + 1


def _write_dr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    try:
        debug_registers.set_debugreg(current, insn.reg, current.cpu.regs[insn.rm] & _width(current))
    except XenError as error:
        raise Fault(flags.UD if error.errno == ENODEV else flags.GP) from None
    return insn.length + 1


def _rdmsr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    number = current.cpu.regs[Reg.RCX] & 0xFFFFFFFF
    current.asked(Exit.RDMSR, number)
    value = msr.read(current, number)
    if value is None:
        raise Refused
    _set_edx_eax(current, value)
    return insn.length


def _wrmsr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    regs = current.cpu.regs
    value = (regs[Reg.RDX] & 0xFFFFFFFF) << 32 | regs[Reg.RAX] & 0xFFFFFFFF
    number = regs[Reg.RCX] & 0xFFFFFFFF
    current.asked(Exit.WRMSR, number)
    if not msr.write(current, number, value):
        raise Refused
    return insn.length


def _rdtsc(current: Current, insn: Instruction) -> int:
    if pv(current).cr4 & msr.CR4_TSD:
        _kernel_only(current)
    _set_edx_eax(current, current.cpu.now_ns)
    return insn.length


def _set_edx_eax(current: Current, value: int) -> None:
    regs = current.cpu.regs
    regs[Reg.RAX], regs[Reg.RDX] = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF


HANDLERS: dict[int, Callable[[Current, Instruction], int]] = {
    **dict.fromkeys((0x6C, 0x6D, 0x6E, 0x6F), _ins_outs),
    **dict.fromkeys((0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF), _in_out),
    0xFA: _cli_sti,
    0xFB: _cli_sti,
    0x0F06: _clts,
    0x0F09: _wbinvd,
    0x0F20: _read_cr,
    0x0F21: _read_dr,
    0x0F22: _write_cr,
    0x0F23: _write_dr,
    0x0F30: _wrmsr,
    0x0F31: _rdtsc,
    0x0F32: _rdmsr,
}
