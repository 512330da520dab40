"""Writable page tables: a kernel's store to one of its own L1 tables, emulated and validated.

Page tables are only ever mapped read-only, so the store faults. If it is a store to an L1 entry, by
an instruction that we know, the entry is changed as a hypercall would change it.

DIVERGES: Xen emulates every instruction that writes memory; here shifts, SETcc, PUSH, POP and those
of the FPU and SSE are not among them, and the guest gets its page fault.

In Xen: arch/x86/pv/ro-page-fault.c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from capstone import x86 as cs

from xenemu.abi.xen import VMASST_TYPE_writable_pagetables
from xenemu.errors import XenError
from xenemu.hv.cpu import Cpu, Reg
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.observe import mod_entry
from xenemu.pv.emulate import fetch
from xenemu.pv.operand import REGISTERS, Operand, disassembler, linear_address, memory_operand
from xenemu.pv.paging import first_fault
from xenemu.pv.state import pv
from xenemu.pv.traps import WORD, complete_instruction, inject_page_fault
from xenemu.records import dataclass
from xenemu.x86 import flags
from xenemu.x86.paging import ADDR, PAGE_MASK, PAGE_SHIFT, RW, Maddr, P, l1_entry

ENTRY_SIZE = 8
PAE_HALF = 4  # what a 32-bit guest can store at once
NO_SOURCE = frozenset({"inc", "dec", "not", "neg", "cmpxchg8b"})
COMPARE = frozenset({"cmpxchg", "cmpxchg8b"})
BIT_OFFSETS = frozenset({"bts", "btr", "btc"})
STRINGS = frozenset(name + size for name in ("stos", "movs") for size in "bwdq")


@dataclass(frozen=True)
class Store:
    """A decoded store: `source` is a register's (number, bit offset), memory or an immediate."""

    mnemonic: str
    length: int
    size: int
    operand: Operand
    register: tuple[int, int] | None
    memory: Operand | None
    immediate: int
    repeat: bool
    locked: bool


@lru_cache(maxsize=256)
def decode(code: bytes, long_mode: bool) -> Store | None:
    """Decode a store whose first operand is in memory; None for any other instruction."""
    insn = next(disassembler(64 if long_mode else 32).disasm(code, 0), None)
    if insn is None or not insn.operands or insn.operands[0].type != cs.X86_OP_MEM:
        return None
    *prefixes, mnemonic = insn.mnemonic.split()
    register, memory, immediate = None, None, 0
    if len(insn.operands) == 2:
        source = insn.operands[1]
        if source.type == cs.X86_OP_REG:
            register = REGISTERS.get(insn.reg_name(source.reg))
            if register is None:
                return None
        elif source.type == cs.X86_OP_IMM:
            immediate = source.imm
        else:
            memory = memory_operand(insn, source)
    elif len(insn.operands) > 2 or mnemonic not in NO_SOURCE:
        return None
    return Store(
        mnemonic=mnemonic,
        length=insn.size,
        size=insn.operands[0].size,
        operand=memory_operand(insn, insn.operands[0]),
        register=register,
        memory=memory,
        immediate=immediate,
        repeat=any(prefix.startswith("rep") for prefix in prefixes),
        locked=mnemonic == "xchg" or "lock" in prefixes,
    )


def emulate_store(current: Current, vaddr: int) -> bool:
    """Emulate the store at RIP that faulted on `vaddr`; False if it is no such store.

    False also if validation refuses the store. Then nothing is stored, and the guest gets its page
    fault, as from Xen. The reason is in the log.
    """
    domain, state = current.domain, pv(current)
    frames, words = domain.frames, domain.memory.words
    if not (state.kernel_mode and frames.vm_assist >> VMASST_TYPE_writable_pagetables & 1):
        return False
    maps_it = l1_entry(words, state.kernel_root, vaddr, frames.rules.root_type)
    if maps_it is None or words[maps_it >> 3] & (P | RW) != P:
        return False
    table = (words[maps_it >> 3] & ADDR) >> PAGE_SHIFT
    if table >= domain.memory.nr_frames or frames.owner[table] != domain.domid:
        return False
    if frames.type[table] != PGT_l1_page_table or not frames.type_count[table]:
        return False
    store = decode(fetch(current), domain.width == 8)
    if store is None or not (store.mnemonic in OPERATIONS or store.mnemonic in COMPARE):
        current.log(f"the store at {current.cpu.rip:#x} to an L1 table is not one that is emulated")
        return False
    return _apply(current, store, vaddr, Maddr(table << PAGE_SHIFT | vaddr & PAGE_MASK))


def _apply(current: Current, store: Store, vaddr: int, maddr: Maddr) -> bool:
    cpu, size = current.cpu, store.size
    address = linear_address(cpu, store.operand, store.length)
    if store.mnemonic in BIT_OFFSETS:
        address = _bit_address(cpu, store, address)
    if size > ENTRY_SIZE or maddr & (size - 1) or vaddr != address:
        return False
    mask = (1 << 8 * size) - 1
    old = current.domain.memory.words[maddr >> 3] >> 8 * (maddr % ENTRY_SIZE) & mask
    if store.mnemonic in COMPARE:
        return _compare_exchange(current, store, maddr, old)
    if store.register is not None:
        number, shift = store.register
        new = source = cpu.regs[number] >> shift & mask
    elif store.memory is None:
        new = source = store.immediate & mask
    else:
        try:
            new = source = _read_source(current, store.memory, store)
        except XenError:
            return True  # the source's own page fault has been delivered
    operation = OPERATIONS[store.mnemonic]
    if operation is not _move:
        new, arithmetic = operation(old, source, 8 * size, cpu.rflags)
    if not _update(current, maddr, size, new & mask, plain=not store.locked):
        return False
    if store.mnemonic in ("xchg", "xadd") and store.register is not None:
        _set_register(current, store.register, size, old)
    if operation is not _move:
        cpu.rflags = cpu.rflags & ~flags.ARITHMETIC | arithmetic
    again = store.mnemonic in STRINGS and _advance_string(cpu, store)
    complete_instruction(current, 0 if again else store.length)
    return True


def _bit_address(cpu: Cpu, store: Store, address: int) -> int:
    """Where a bit is: an offset in a register selects a word after `address`, or before it."""
    if store.register is None:
        return address
    bits = 8 * store.size
    offset = cpu.regs[store.register[0]] & (1 << bits) - 1
    if offset >> (bits - 1):
        offset -= 1 << bits
    return (address + offset // bits * store.size) & WORD


def _read_source(current: Current, source: Operand, store: Store) -> int:
    """A source in memory; EFAULT, after its page fault was delivered, if it cannot be read."""
    vaddr = linear_address(current.cpu, source, store.length)
    try:
        return current.read_uint(vaddr, store.size)
    except XenError:
        inject_page_fault(current, first_fault(current, vaddr, False), 0)
        raise


def _advance_string(cpu: Cpu, store: Store) -> bool:
    """Move the registers of STOS and MOVS on; whether a repeated one goes on."""
    mask = (1 << 8 * store.operand.address_size) - 1
    step = -store.size if cpu.rflags & flags.DF else store.size
    for number in (Reg.RDI,) if store.memory is None else (Reg.RDI, Reg.RSI):
        cpu.regs[number] = (cpu.regs[number] + step) & mask
    if not store.repeat:
        return False
    cpu.regs[Reg.RCX] = (cpu.regs[Reg.RCX] - 1) & mask
    return cpu.regs[Reg.RCX] != 0


def _compare_exchange(current: Current, store: Store, maddr: Maddr, old: int) -> bool:
    cpu = current.cpu
    regs, mask = cpu.regs, (1 << 8 * store.size) - 1
    if store.register is None:  # cmpxchg8b
        expected = (regs[Reg.RDX] & 0xFFFFFFFF) << 32 | regs[Reg.RAX] & 0xFFFFFFFF
        new = (regs[Reg.RCX] & 0xFFFFFFFF) << 32 | regs[Reg.RBX] & 0xFFFFFFFF
        arithmetic = cpu.rflags & flags.ARITHMETIC & ~flags.ZF | (old == expected and flags.ZF)
    else:
        expected = regs[Reg.RAX] & mask
        new = regs[store.register[0]] >> store.register[1] & mask
        arithmetic = _subtraction_flags(expected, old, 8 * store.size)
    if old == expected:
        if not _update(current, maddr, store.size, new):
            return False
    elif store.register is None:
        regs[Reg.RAX], regs[Reg.RDX] = old & 0xFFFFFFFF, old >> 32
    else:
        _set_register(current, (Reg.RAX, 0), store.size, old)
    cpu.rflags = cpu.rflags & ~flags.ARITHMETIC | arithmetic
    complete_instruction(current, store.length)
    return True


def _update(current: Current, maddr: Maddr, size: int, value: int, plain: bool = False) -> bool:
    """Change (part of) an L1 entry through validation; False if it is refused.

    A `plain` store of an upper half by a 32-bit guest is not refused. The lower half is expected to
    follow, and until then the entry is not present.
    """
    domain = current.domain
    entry_maddr = Maddr(maddr & -ENTRY_SIZE)
    if size < ENTRY_SIZE:
        shift = 8 * (maddr - entry_maddr)
        kept = domain.memory.words[entry_maddr >> 3] & ~(((1 << 8 * size) - 1) << shift)
        value = kept | value << shift
    try:
        if domain.watch is None:
            flush = domain.frames.mod_l1_entry(entry_maddr, value, domain.domid)
        else:
            flush = mod_entry(current, entry_maddr, value, domain.domid)
        if flush:
            current.cpu.flush_tlb()
    except XenError as error:
        upper_half = size == PAE_HALF and maddr != entry_maddr and domain.width == 4
        if plain and upper_half and value & P:
            return _update(current, entry_maddr, ENTRY_SIZE, value & ~P)
        current.log(f"a store to the L1 entry at {entry_maddr:#x} is refused: {error.reason}")
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


def _addition_flags(a: int, b: int, bits: int, carry: int = 0) -> int:
    total = a + b + carry
    result = _result_flags(total, bits)
    if total >> bits:
        result |= flags.CF
    if (a ^ b ^ total) & 0x10:
        result |= flags.AF
    if (a ^ total) & (b ^ total) & 1 << (bits - 1):
        result |= flags.OF
    return result


def _subtraction_flags(a: int, b: int, bits: int, borrow: int = 0) -> int:
    difference = (a - b - borrow) & ((1 << bits) - 1)
    result = _result_flags(difference, bits)
    if a < b + borrow:
        result |= flags.CF
    if (a ^ b ^ difference) & 0x10:
        result |= flags.AF
    if (a ^ b) & (a ^ difference) & 1 << (bits - 1):
        result |= flags.OF
    return result


def _move(_old: int, source: int, _bits: int, rflags: int) -> tuple[int, int]:
    return source, rflags & flags.ARITHMETIC


def _add(old: int, source: int, bits: int, _rflags: int) -> tuple[int, int]:
    return old + source, _addition_flags(old, source, bits)


def _add_with_carry(old: int, source: int, bits: int, rflags: int) -> tuple[int, int]:
    carry = rflags & flags.CF
    return old + source + carry, _addition_flags(old, source, bits, carry)


def _subtract(old: int, source: int, bits: int, _rflags: int) -> tuple[int, int]:
    return old - source, _subtraction_flags(old, source, bits)


def _subtract_with_borrow(old: int, source: int, bits: int, rflags: int) -> tuple[int, int]:
    borrow = rflags & flags.CF
    return old - source - borrow, _subtraction_flags(old, source, bits, borrow)


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
    **dict.fromkeys(("mov", "movabs", "movnti", "xchg", *sorted(STRINGS)), _move),
    "not": lambda old, source, bits, rflags: (~old, rflags & flags.ARITHMETIC),
    "neg": lambda old, source, bits, rflags: (-old, _subtraction_flags(0, old, bits)),
    "add": _add,
    "xadd": _add,
    "adc": _add_with_carry,
    "sub": _subtract,
    "sbb": _subtract_with_borrow,
    "and": _logical(lambda old, source: old & source),
    "or": _logical(lambda old, source: old | source),
    "xor": _logical(lambda old, source: old ^ source),
    "bts": _bit(lambda old, bit: old | bit),
    "btr": _bit(lambda old, bit: old & ~bit),
    "btc": _bit(lambda old, bit: old ^ bit),
    "inc": _step(1),
    "dec": _step(-1),
}
