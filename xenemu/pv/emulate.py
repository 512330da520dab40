"""Privileged instructions of a PV guest: those that Xen emulates, and #GP for the rest.

In Xen: arch/x86/pv/emul-priv-op.c, arch/x86/pv/emul-inv-op.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.errors import XenError
from xenemu.hv.cpu import Reg
from xenemu.hv.domain import Current
from xenemu.pv import cpuid, debug, msr, ports
from xenemu.pv.paging import new_guest_cr3
from xenemu.pv.state import pv
from xenemu.pv.traps import guest_cr2
from xenemu.x86.paging import PAGE_SHIFT, mfn_of

FORCED_EMULATION_PREFIX = b"\x0f\x0bxen"
LEGACY_PREFIXES = frozenset(b"\x66\x67\xf2\xf3\x2e\x36\x3e\x26\x64\x65\xf0")
MAX_INSTRUCTION = 15

CR0_TS = 1 << 3
CR0 = 0x80050033  # as Xen runs: PG AM WP NE ET MP PE


@dataclass(frozen=True)
class Instruction:
    """What the decoder found: the opcode (0x0Fxx for two-byte ones) and its length so far."""

    opcode: int
    length: int
    operand16: bool
    repeat: bool
    rex: int
    bytes: bytes

    @property
    def modrm(self) -> int:
        """The byte behind the opcode (0 if the instruction ends there)."""
        return self.bytes[self.length] if self.length < len(self.bytes) else 0

    @property
    def reg(self) -> int:
        return (self.modrm >> 3) & 7 | (self.rex & 4) << 1

    @property
    def rm(self) -> int:
        return self.modrm & 7 | (self.rex & 1) << 3


class Refused(Exception):
    """Xen does not emulate this for this guest: it gets its fault."""


def fetch(current: Current) -> bytes:
    """The bytes at RIP, up to an instruction's longest or the end of what is mapped."""
    rip = current.cpu.rip
    for size in (MAX_INSTRUCTION, 0x1000 - (rip & 0xFFF)):
        try:
            return current.read(rip, min(size, MAX_INSTRUCTION))
        except XenError:
            continue
    return b""


def decode(code: bytes, long_mode: bool) -> Instruction:
    """Find the opcode behind prefixes; raises Refused if there is none."""
    at, operand16, repeat, rex = 0, False, False, 0
    while at < len(code) and code[at] in LEGACY_PREFIXES:
        operand16 |= code[at] == 0x66
        repeat |= code[at] in (0xF2, 0xF3)
        at += 1
    if long_mode and at < len(code) and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    if at >= len(code):
        raise Refused
    opcode = code[at]
    at += 1
    if opcode == 0x0F:
        if at >= len(code):
            raise Refused
        opcode = 0x0F00 | code[at]
        at += 1
    return Instruction(opcode, at, operand16, repeat, rex, code)


def emulate_privileged_op(current: Current) -> bool:
    """Emulate the instruction at RIP if Xen would; False if the guest is to get its #GP."""
    long_mode = bool(current.cpu.segment(1).attributes & 1 << 21)
    try:
        insn = decode(fetch(current), long_mode)
        handler = HANDLERS.get(insn.opcode)
        if handler is None:
            return False
        length = handler(current, insn)
    except Refused:
        return False
    current.cpu.rip += length
    return True


def emulate_invalid_op(current: Current) -> bool:
    """Emulate an instruction behind the forced-emulation prefix; False: it is a plain #UD."""
    code = fetch(current)
    if not code.startswith(FORCED_EMULATION_PREFIX):
        return False
    if code[len(FORCED_EMULATION_PREFIX) :][:2] != b"\x0f\xa2":
        return False
    cpuid.execute(current)
    current.cpu.rip += len(FORCED_EMULATION_PREFIX) + 2
    return True


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


def _port_access(current: Current, port: int, size: int) -> None:
    """Check the guest's own permission: IOPL, then its I/O bitmap."""
    state = pv(current)
    if iopl_ok(current):
        return
    if port + size > state.io_bitmap_ports:
        raise Refused
    try:
        bits = int.from_bytes(current.read(state.io_bitmap + (port >> 3), 2), "little")
    except XenError:
        raise Refused from None
    if bits >> (port & 7) & ((1 << size) - 1):
        raise Refused


def _in_out(current: Current, insn: Instruction) -> int:
    opcode, regs = insn.opcode, current.cpu.regs
    size = 1 if not opcode & 1 else 2 if insn.operand16 else 4
    length = insn.length
    if opcode & 8:
        port = regs[Reg.RDX] & 0xFFFF
    else:
        port = insn.modrm  # the immediate byte
        length += 1
    _port_access(current, port, size)
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
    if insn.repeat and not regs[Reg.RCX]:
        return insn.length
    size = 1 if not insn.opcode & 1 else 2 if insn.operand16 else 4
    port = regs[Reg.RDX] & 0xFFFF
    _port_access(current, port, size)
    index = Reg.RSI if insn.opcode & 2 else Reg.RDI
    try:
        if insn.opcode & 2:
            ports.write(current, port, size, current.read_uint(regs[index], size))
        else:
            current.write_uint(regs[index], size, ports.read(current, port, size))
    except XenError:
        raise Refused from None
    step = -size if current.cpu.rflags & 1 << 10 else size
    regs[index] += step
    if insn.repeat:
        regs[Reg.RCX] -= 1
        return 0 if regs[Reg.RCX] else insn.length
    return insn.length


def _clts(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    set_guest_ts(current, False)
    return insn.length


def _invd_wbinvd(current: Current, insn: Instruction) -> int:
    # Ignored: only a domain with hardware may flush the caches.
    _kernel_only(current)
    return insn.length


def set_guest_ts(current: Current, value: bool) -> None:
    """Set or clear the guest's CR0.TS (fpu_taskswitch, clts, mov to CR0)."""
    pv(current).task_switched = value
    current.cpu.set_task_switched(value)


def _read_cr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    state, memory = pv(current), current.domain.memory
    match insn.reg:
        case 0:
            value = CR0 | (CR0_TS if state.task_switched else 0)
        case 2:
            value = memory.read_uint(guest_cr2(current), current.domain.width)
        case 3:
            value = state.kernel_root << PAGE_SHIFT
        case 4:
            value = state.cr4
        case _:
            raise Refused
    current.cpu.regs[insn.rm] = value
    return insn.length + 1


def _write_cr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    value, domain = current.cpu.regs[insn.rm], current.domain
    match insn.reg:
        case 0:
            if (value ^ CR0) & ~CR0_TS:
                raise Refused
            set_guest_ts(current, bool(value & CR0_TS))
        case 2:
            domain.memory.write_uint(guest_cr2(current), domain.width, value)
        case 3:
            try:
                new_guest_cr3(current, mfn_of(value))
            except XenError:
                raise Refused from None
        case 4:
            pv(current).cr4 = msr.fixup_guest_cr4(value)
        case _:
            raise Refused
    return insn.length + 1


def _read_dr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    try:
        current.cpu.regs[insn.rm] = debug.get_debugreg(current, insn.reg)
    except XenError:
        raise Refused from None
    return insn.length + 1


def _write_dr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    try:
        debug.set_debugreg(current, insn.reg, current.cpu.regs[insn.rm])
    except XenError:
        raise Refused from None
    return insn.length + 1


def _rdmsr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    regs = current.cpu.regs
    value = msr.read(current, regs[Reg.RCX] & 0xFFFFFFFF)
    if value is None:
        raise Refused
    regs[Reg.RAX], regs[Reg.RDX] = value & 0xFFFFFFFF, value >> 32
    return insn.length


def _wrmsr(current: Current, insn: Instruction) -> int:
    _kernel_only(current)
    regs = current.cpu.regs
    value = (regs[Reg.RDX] & 0xFFFFFFFF) << 32 | regs[Reg.RAX] & 0xFFFFFFFF
    if not msr.write(current, regs[Reg.RCX] & 0xFFFFFFFF, value):
        raise Refused
    return insn.length


def _rdtsc(current: Current, insn: Instruction) -> int:
    regs, now = current.cpu.regs, current.cpu.now_ns
    regs[Reg.RAX], regs[Reg.RDX] = now & 0xFFFFFFFF, now >> 32
    return insn.length


def _group_0f01(current: Current, insn: Instruction) -> int:
    if insn.modrm != 0xF9:  # RDTSCP; XSETBV needs XSAVE, which CPUID does not offer
        raise Refused
    _rdtsc(current, insn)
    current.cpu.regs[Reg.RCX] = 0
    return insn.length + 1


HANDLERS: dict[int, Callable[[Current, Instruction], int]] = {
    **dict.fromkeys((0x6C, 0x6D, 0x6E, 0x6F), _ins_outs),
    **dict.fromkeys((0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF), _in_out),
    0xFA: _cli_sti,
    0xFB: _cli_sti,
    0x0F01: _group_0f01,
    0x0F06: _clts,
    0x0F08: _invd_wbinvd,
    0x0F09: _invd_wbinvd,
    0x0F20: _read_cr,
    0x0F21: _read_dr,
    0x0F22: _write_cr,
    0x0F23: _write_dr,
    0x0F30: _wrmsr,
    0x0F31: _rdtsc,
    0x0F32: _rdmsr,
}
