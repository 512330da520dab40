"""Writable page tables: a kernel's store to one of its own L1 tables, emulated and validated.

The store faults, because page tables are only ever mapped read-only; if it is a store to an L1
entry by an instruction that we know, the entry is changed as a hypercall would change it.

In Xen: arch/x86/pv/ro-page-fault.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import capstone
from capstone import x86 as cs

from xenemu.errors import XenError
from xenemu.hv.cpu import Reg
from xenemu.hv.domain import Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.pv.emulate import fetch
from xenemu.x86 import flags
from xenemu.x86.paging import ADDR, PAGE_SHIFT, RW, Maddr, Mfn, P, walk

ENTRY_SIZE = 8


@dataclass(frozen=True)
class Store:
    """A decoded store: `source` is a register's (number, bit offset) or an immediate."""

    mnemonic: str
    length: int
    size: int
    register: tuple[int, int] | None
    immediate: int


@lru_cache(maxsize=256)
def decode(code: bytes, long_mode: bool) -> Store | None:
    """Decode a store with one memory operand, first; None for any other instruction."""
    insn = next(_disassembler(long_mode).disasm(code, 0), None)
    if insn is None or not insn.operands or insn.operands[0].type != cs.X86_OP_MEM:
        return None
    mnemonic = insn.mnemonic.removeprefix("lock ")
    register, immediate = None, 0
    if len(insn.operands) == 2:
        source = insn.operands[1]
        if source.type == cs.X86_OP_REG:
            register = REGISTERS.get(insn.reg_name(source.reg))
            if register is None:
                return None
        elif source.type == cs.X86_OP_IMM:
            immediate = source.imm
        else:
            return None
    elif mnemonic not in ("inc", "dec", "not", "neg", "cmpxchg8b"):
        return None
    return Store(mnemonic, insn.size, insn.operands[0].size, register, immediate)


@lru_cache(maxsize=2)
def _disassembler(long_mode: bool) -> capstone.Cs:
    mode = capstone.CS_MODE_64 if long_mode else capstone.CS_MODE_32
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, mode)
    disassembler.detail = True
    return disassembler


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


def emulate_store(current: Current, vaddr: int) -> bool:
    """Emulate the store at RIP that faulted on `vaddr`; False if it is no such store.

    A store that validation refuses is not made, and False too: the guest gets its page fault,
    as from Xen, and the reason is in the log.
    """
    domain = current.domain
    root = Mfn(current.cpu.cr3 >> PAGE_SHIFT)
    steps = walk(domain.memory.words, root, vaddr)
    leaf = steps[-1]
    if leaf.level != 1 or leaf.entry & (P | RW) != P:
        return False
    table = (leaf.entry & ADDR) >> PAGE_SHIFT
    frames = domain.frames
    if not domain.memory.contains(table) or frames.owner[table] != domain.domid:
        return False
    if frames.type[table] != PGT_l1_page_table or not frames.type_count[table]:
        return False
    long_mode = bool(current.cpu.segment(1).attributes & 1 << 21)
    store = decode(fetch(current), long_mode)
    if store is None:
        return False
    return _apply(current, store, Maddr(table << PAGE_SHIFT | vaddr & 0xFFF))


def _apply(current: Current, store: Store, maddr: Maddr) -> bool:
    cpu, memory = current.cpu, current.domain.memory
    size = store.size
    if size > ENTRY_SIZE or maddr & (size - 1):
        return False
    mask = (1 << 8 * size) - 1
    old = memory.read_uint(maddr, size)
    if store.mnemonic in ("cmpxchg", "cmpxchg8b"):
        return _compare_exchange(current, store, maddr, old)
    operation = OPERATIONS.get(store.mnemonic)
    if operation is None:
        return False
    if store.register is None:
        source = store.immediate & mask
    else:
        number, shift = store.register
        source = cpu.regs[number] >> shift & mask
    new, arithmetic = operation(old, source, 8 * size, cpu.rflags)
    if not _update(current, maddr, size, new & mask):
        return False
    if store.mnemonic in ("xchg", "xadd") and store.register is not None:
        _set_register(current, store.register, size, old)
    cpu.rflags = cpu.rflags & ~flags.ARITHMETIC | arithmetic
    cpu.rip += store.length
    return True


def _compare_exchange(current: Current, store: Store, maddr: Maddr, old: int) -> bool:
    cpu = current.cpu
    regs, mask = cpu.regs, (1 << 8 * store.size) - 1
    if store.mnemonic == "cmpxchg8b":
        expected = (regs[Reg.RDX] & 0xFFFFFFFF) << 32 | regs[Reg.RAX] & 0xFFFFFFFF
        new = (regs[Reg.RCX] & 0xFFFFFFFF) << 32 | regs[Reg.RBX] & 0xFFFFFFFF
        arithmetic = cpu.rflags & flags.ARITHMETIC & ~flags.ZF | (old == expected and flags.ZF)
    else:
        assert store.register is not None
        expected = regs[Reg.RAX] & mask
        new = regs[store.register[0]] >> store.register[1] & mask
        arithmetic = _subtraction_flags(expected, old, 8 * store.size)
    if old == expected:
        if not _update(current, maddr, store.size, new):
            return False
    elif store.mnemonic == "cmpxchg8b":
        regs[Reg.RAX], regs[Reg.RDX] = old & 0xFFFFFFFF, old >> 32
    else:
        _set_register(current, (Reg.RAX, 0), store.size, old)
    cpu.rflags = cpu.rflags & ~flags.ARITHMETIC | arithmetic
    cpu.rip += store.length
    return True


def _update(current: Current, maddr: Maddr, size: int, value: int) -> bool:
    """Change (part of) an L1 entry through validation; False if it is refused."""
    domain = current.domain
    entry_maddr = Maddr(maddr & -ENTRY_SIZE)
    if size < ENTRY_SIZE:
        shift = 8 * (maddr - entry_maddr)
        kept = domain.memory.words[entry_maddr >> 3] & ~(((1 << 8 * size) - 1) << shift)
        value = kept | value << shift
    try:
        if domain.frames.mod_entry(entry_maddr, value, domain.domid):
            current.cpu.flush_tlb()
    except XenError as error:
        domain.log(f"a store to the page-table entry at {entry_maddr:#x} is refused: {error.reason}")
        return False
    return True


def _set_register(current: Current, register: tuple[int, int], size: int, value: int) -> None:
    number, shift = register
    if size >= 4:
        current.cpu.regs[number] = value
    else:
        mask = ((1 << 8 * size) - 1) << shift
        current.cpu.regs[number] = current.cpu.regs[number] & ~mask | value << shift


# ---- the arithmetic of each instruction: (old, source, bits, rflags) -> (new, flags) ----

Operation = Callable[[int, int, int, int], tuple[int, int]]


def _result_flags(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    result = 0 if value else flags.ZF
    if value >> (bits - 1):
        result |= flags.SF
    if not (value & 0xFF).bit_count() & 1:
        result |= flags.PF
    return result


def _addition_flags(a: int, b: int, bits: int) -> int:
    total = a + b
    result = _result_flags(total, bits)
    if total >> bits:
        result |= flags.CF
    if (a ^ b ^ total) & 0x10:
        result |= flags.AF
    if (a ^ total) & (b ^ total) & 1 << (bits - 1):
        result |= flags.OF
    return result


def _subtraction_flags(a: int, b: int, bits: int) -> int:
    difference = (a - b) & ((1 << bits) - 1)
    result = _result_flags(difference, bits)
    if a < b:
        result |= flags.CF
    if (a ^ b ^ difference) & 0x10:
        result |= flags.AF
    if (a ^ b) & (a ^ difference) & 1 << (bits - 1):
        result |= flags.OF
    return result


def _logical(combine: Callable[[int, int], int]) -> Operation:
    def operation(old: int, source: int, bits: int, _rflags: int) -> tuple[int, int]:
        new = combine(old, source)
        return new, _result_flags(new, bits)

    return operation


def _bit(combine: Callable[[int, int], int]) -> Operation:
    def operation(old: int, source: int, bits: int, rflags: int) -> tuple[int, int]:
        bit = 1 << (source & (bits - 1))
        kept = rflags & flags.ARITHMETIC & ~flags.CF
        return combine(old, bit), kept | (flags.CF if old & bit else 0)

    return operation


def _step(delta: int) -> Operation:
    def operation(old: int, _source: int, bits: int, rflags: int) -> tuple[int, int]:
        compute = _addition_flags if delta > 0 else _subtraction_flags
        return old + delta, compute(old, 1, bits) & ~flags.CF | rflags & flags.CF

    return operation


OPERATIONS: dict[str, Operation] = {
    "mov": lambda old, source, bits, rflags: (source, rflags & flags.ARITHMETIC),
    "movnti": lambda old, source, bits, rflags: (source, rflags & flags.ARITHMETIC),
    "xchg": lambda old, source, bits, rflags: (source, rflags & flags.ARITHMETIC),
    "not": lambda old, source, bits, rflags: (~old, rflags & flags.ARITHMETIC),
    "add": lambda old, source, bits, rflags: (old + source, _addition_flags(old, source, bits)),
    "xadd": lambda old, source, bits, rflags: (old + source, _addition_flags(old, source, bits)),
    "sub": lambda old, source, bits, rflags: (old - source, _subtraction_flags(old, source, bits)),
    "neg": lambda old, source, bits, rflags: (-old, _subtraction_flags(0, old, bits)),
    "and": _logical(lambda old, source: old & source),
    "or": _logical(lambda old, source: old | source),
    "xor": _logical(lambda old, source: old ^ source),
    "bts": _bit(lambda old, bit: old | bit),
    "btr": _bit(lambda old, bit: old & ~bit),
    "btc": _bit(lambda old, bit: old ^ bit),
    "inc": _step(1),
    "dec": _step(-1),
}
