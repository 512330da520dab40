"""Memory operands of instructions that Xen emulates: capstone decodes, registers locate them."""

from __future__ import annotations

from functools import lru_cache

import capstone
from capstone import x86 as cs

from xenemu.hv.cpu import Cpu, Seg
from xenemu.records import dataclass

WORD = (1 << 64) - 1
MODES = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}
SEGMENTS = {cs.X86_REG_FS: Seg.FS, cs.X86_REG_GS: Seg.GS}  # whose bases count


@dataclass(frozen=True)
class Operand:
    """Where an operand in memory is: registers by number, or None; `relative` to RIP."""

    base: int | None
    index: int | None
    scale: int
    displacement: int
    relative: bool
    segment: Seg | None
    address_size: int  # bytes


@lru_cache(maxsize=3)
def disassembler(bits: int) -> capstone.Cs:
    """A decoder of 64-, 32- or 16-bit code."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, MODES[bits])
    decoder.detail = True
    return decoder


def memory_operand(insn: capstone.CsInsn, operand: cs.X86Op) -> Operand:
    """An operand in memory, as the model's registers give its address."""
    mem = operand.mem
    base, index = (REGISTERS.get(insn.reg_name(reg) or "") for reg in (mem.base, mem.index))
    return Operand(
        base=base[0] if base else None,
        index=index[0] if index else None,
        scale=mem.scale,
        displacement=mem.disp,
        relative=mem.base in (cs.X86_REG_RIP, cs.X86_REG_EIP),
        segment=SEGMENTS.get(mem.segment),
        address_size=insn.addr_size,
    )


def _register_names() -> dict[str, tuple[int, int]]:
    names = {}
    legacy = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
    for number, name in enumerate(legacy):
        names[name] = names["e" + name] = names["r" + name] = (number, 0)
        if number < 4:
            names[name[0] + "l"], names[name[0] + "h"] = (number, 0), (number, 8)
        else:
            names[name + "l"] = (number, 0)
    for number in range(8, 16):
        for suffix in ("", "d", "w", "b"):
            names[f"r{number}{suffix}"] = (number, 0)
    return names


REGISTERS = _register_names()


def linear_address(cpu: Cpu, operand: Operand, length: int) -> int:
    """The address of an operand of an instruction of `length` bytes at RIP."""
    total = operand.displacement + (cpu.rip + length if operand.relative else 0)
    if operand.base is not None:
        total += cpu.regs[operand.base]
    if operand.index is not None:
        total += cpu.regs[operand.index] * operand.scale
    total &= (1 << 8 * operand.address_size) - 1
    base = 0 if operand.segment is None else cpu.segment(operand.segment).base
    return (base + total) & WORD
