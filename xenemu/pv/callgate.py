"""Call gates of a 32-bit PV guest: a far call or jump through one.

Xen keeps the gates in a guest's tables at DPL 0, and the guest's DPL in the selector's RPL. So the
CPU faults on each use, and Xen does what the CPU would have done. The gates of a 64-bit guest lead
nowhere.

In Xen: arch/x86/pv/emul-gate-op.c.
"""

from __future__ import annotations

from dataclasses import replace

from xenemu.abi.arch_x86.xen import HYPERVISOR_COMPAT_VIRT_START
from xenemu.errors import XenError
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.pv.bounce32 import KERNEL_RING, resume
from xenemu.pv.descriptors import read_descriptor
from xenemu.pv.emulate import code_bits, decode_here
from xenemu.pv.operand import disassembler, linear_address, memory_operand
from xenemu.pv.paging import first_fault
from xenemu.pv.state import pv
from xenemu.pv.traps import complete_instruction, deliver
from xenemu.records import dataclass
from xenemu.x86 import flags, segment
from xenemu.x86.fault import Fault
from xenemu.x86.paging import PFEC_W

WORD = 0xFFFFFFFF
SELECTOR = 0xFFFC
PARAMETERS = 0x1F  # of a gate's high word: words to copy from the caller's stack
CALL_FAR, JUMP_FAR, GROUP_5 = 0x9A, 0xEA, 0xFF
CALL_FAR_M, JUMP_FAR_M = 3, 5  # GROUP_5's reg field


@dataclass(frozen=True)
class Gate:
    """A call gate: where it leads, which rings may use it, and how many parameters it passes."""

    selector: int
    offset: int
    dpl: int
    parameters: int


@dataclass(frozen=True)
class Descriptor:
    """A code or data descriptor: base and limit in bytes, and the attributes."""

    base: int
    limit: int
    attributes: int

    def has(self, *bits: int) -> bool:
        return all(self.attributes & bit for bit in bits)

    @property
    def dpl(self) -> int:
        return segment.dpl(self.attributes)

    @property
    def is_writable_data(self) -> bool:
        return self.has(segment.S, segment.TYPE_WRITABLE) and not self.has(segment.TYPE_CODE)

    def holds(self, esp: int, size: int) -> bool:
        """Whether `size` bytes can be pushed below `esp`."""
        low = (esp - size) & WORD
        if low >= (esp - 1) & WORD:
            return False
        expands_down = self.has(segment.TYPE_CONFORMING)
        return low > self.limit if expands_down else (esp - 1) & WORD <= self.limit


def emulate_gate_op(current: Current, error_code: int) -> None:
    """Go through the call gate that the #GP with `error_code` names, or deliver that #GP."""
    try:
        _go_through(current, error_code)
    except Fault as fault:
        deliver(current, fault)


def _go_through(current: Current, error_code: int) -> None:
    refusal = Fault(flags.GP, error_code)
    cpl = current.cpu.selector(Seg.CS) & segment.SEL_RPL
    gate = _read_gate(current, error_code, cpl)
    jump, selector, length = _decode(current, refusal)
    if selector & SELECTOR != error_code or gate.dpl < selector & segment.SEL_RPL:
        raise refusal
    code = _read(current, gate.selector, Fault(flags.GP, gate.selector))
    same_ring = jump and not code.has(segment.TYPE_CONFORMING)
    wrong_ring = code.dpl != cpl if same_ring else code.dpl > cpl
    if not code.has(segment.S, segment.TYPE_CODE) or wrong_ring:
        raise Fault(flags.GP, gate.selector)
    if not code.has(segment.PRESENT):
        raise Fault(flags.NP, gate.selector)
    if gate.offset > code.limit:
        raise Fault(flags.GP)
    cs, ss = gate.selector | cpl, current.cpu.selector(Seg.SS)
    if not jump:
        back = (current.cpu.rip + length) & WORD
        if code.dpl < cpl:
            cs = gate.selector | code.dpl
            ss = _call_inwards(current, gate, code.dpl, back, refusal)
        else:
            _call(current, back, refusal)
    current.cpu.rip = gate.offset
    resume(current, cs, ss)
    complete_instruction(current, 0)


def _read_gate(current: Current, selector: int, cpl: int) -> Gate:
    """The present call gate that a selector names and ring `cpl` may use; #GP, #NP."""
    refusal = Fault(flags.GP, selector)
    state = pv(current)
    entries = state.ldt_entries if selector & segment.SEL_TI else state.gdt_entries
    if segment.is_null(selector) or selector >> 3 >= entries:
        raise refusal
    descriptor = read_descriptor(current, selector)
    low, high = descriptor & WORD, descriptor >> 32
    dpl = low >> 16 & segment.SEL_RPL
    kind = high & (segment.TYPE | segment.S)
    if high & segment.DPL or kind != segment.TYPE_CALL_GATE or dpl < cpl:
        raise refusal
    if not high & segment.PRESENT:
        raise Fault(flags.NP, selector)
    offset = high & 0xFFFF0000 | low & 0xFFFF
    return Gate(low >> 16 & SELECTOR, offset, dpl, high & PARAMETERS)


def _decode(current: Current, refusal: Fault) -> tuple[bool, int, int]:
    """The far call or jump at RIP: whether it jumps, its selector, its length."""
    insn = decode_here(current)
    if insn is None:
        raise refusal
    code, size, length = insn.code, insn.operand_size, insn.length
    if insn.opcode in (CALL_FAR, JUMP_FAR):
        end = length + size + 2
        return insn.opcode == JUMP_FAR, int.from_bytes(code[end - 2 : end], "little"), end
    if insn.opcode != GROUP_5 or len(code) == length:
        raise refusal
    form, in_memory = insn.reg, insn.next_byte >> 6 != 3
    if form not in (CALL_FAR_M, JUMP_FAR_M) or not in_memory:
        raise refusal
    found = next(disassembler(code_bits(current)).disasm(code, 0), None)
    if found is None:
        raise refusal
    operand = memory_operand(found, found.operands[0])
    on_stack = operand.base in (Reg.RSP, Reg.RBP)
    which = insn.segment or (Seg.SS if on_stack else Seg.DS)
    offset = linear_address(current.cpu, replace(operand, segment=None), 0) + size
    return form == JUMP_FAR_M, _read_selector(current, which, offset & WORD, refusal), found.size


def _read_selector(current: Current, which: Seg, offset: int, refusal: Fault) -> int:
    """The selector of a far pointer at `offset` in a segment."""
    named = _read(current, current.cpu.selector(which), refusal)
    readable = not named.has(segment.TYPE_CODE) or named.has(segment.TYPE_WRITABLE)
    if not named.has(segment.S, segment.PRESENT) or not readable or offset + 1 > named.limit:
        raise refusal
    vaddr = (named.base + offset) & WORD
    try:
        return current.read_uint(vaddr, 2)
    except XenError:
        raise Fault(flags.PAGE_FAULT, 0, first_fault(current, vaddr, False)) from None


def _call_inwards(current: Current, gate: Gate, ring: int, back: int, refusal: Fault) -> int:
    """Push the frame of a call to the kernel's ring onto its stack; return the stack's selector."""
    state, cpu = pv(current), current.cpu
    if ring != KERNEL_RING:  # there are no other stacks
        raise refusal
    ss, old_ss, old_esp = state.kernel_ss, cpu.selector(Seg.SS), cpu.regs[Reg.RSP]
    bad_stack = Fault(flags.TS, ss & SELECTOR)
    stack = _read(current, ss, bad_stack)
    if ss & segment.SEL_RPL != ring or stack.dpl != ring or not stack.is_writable_data:
        raise bad_stack
    size = 4 * (4 + gate.parameters)
    if not stack.has(segment.PRESENT) or not stack.holds(state.kernel_sp, size):
        raise Fault(flags.SS, ss & SELECTOR)
    top = (stack.base + state.kernel_sp) & WORD
    if top >= HYPERVISOR_COMPAT_VIRT_START:
        raise refusal
    _push(current, top, [old_ss, old_esp])
    parameters = _parameters(current, gate.parameters, state.kernel_sp - 8, refusal)
    _push(current, top - 8, [*parameters, cpu.selector(Seg.CS), back])
    cpu.regs[Reg.RSP] = state.kernel_sp - size
    return ss


def _parameters(current: Current, count: int, esp: int, refusal: Fault) -> list[int]:
    """The words on the caller's stack, the topmost first; `esp` is the new stack's.

    Like Xen, it compares `esp` with the limit of the caller's stack.
    """
    if not count:
        return []
    cpu = current.cpu
    stack = _read(current, cpu.selector(Seg.SS), refusal)
    cpl = cpu.selector(Seg.CS) & segment.SEL_RPL
    size = 4 * count
    if stack.dpl != cpl or not stack.is_writable_data or not stack.holds(esp + size, size):
        raise refusal
    top = (stack.base + cpu.regs[Reg.RSP] + size) & WORD
    if top >= HYPERVISOR_COMPAT_VIRT_START:
        raise refusal
    words = []
    for below in range(4, size + 4, 4):
        vaddr = (top - below) & WORD
        try:
            words.append(current.read_uint(vaddr, 4))
        except XenError:
            raise Fault(flags.PAGE_FAULT, 0, first_fault(current, vaddr, False)) from None
    return words


def _call(current: Current, back: int, refusal: Fault) -> None:
    """Push the frame of a call within the ring."""
    cpu = current.cpu
    cs = cpu.selector(Seg.CS)
    stack = _read(current, cpu.selector(Seg.SS), refusal)
    esp = cpu.regs[Reg.RSP] & WORD
    if stack.dpl != cs & segment.SEL_RPL:
        raise refusal
    if not stack.holds(esp, 8):
        raise Fault(flags.SS)
    top = (stack.base + esp) & WORD
    if top >= HYPERVISOR_COMPAT_VIRT_START:
        raise refusal
    _push(current, top, [cs, back])
    cpu.regs[Reg.RSP] = (esp - 8) & WORD


def _push(current: Current, top: int, words: list[int]) -> None:
    """Write words below a linear address, one by one; a page fault where that is not possible."""
    for word in words:
        top = (top - 4) & WORD
        try:
            current.write_uint(top, 4, word)
        except XenError:
            raise Fault(flags.PAGE_FAULT, PFEC_W, first_fault(current, top, True)) from None


def _read(current: Current, selector: int, refusal: Fault) -> Descriptor:
    """The descriptor that a selector names, an empty one for none; `refusal` if it has no page."""
    try:
        descriptor = 0 if segment.is_null(selector) else read_descriptor(current, selector)
    except Fault as fault:
        if fault.vector == flags.PAGE_FAULT:
            raise refusal from None
        descriptor = 0
    return Descriptor(
        segment.base(descriptor), segment.limit(descriptor), segment.attributes(descriptor)
    )
