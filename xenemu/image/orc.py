"""ORC: how x86-64 Linux finds the caller of any instruction, from two tables of the kernel.

``.orc_unwind_ip`` has the start of each stretch of code. The starts ascend, and each is an s32
relative to its own place. ``.orc_unwind`` has one entry of 6 bytes for each stretch: s16 SP offset,
s16 BP offset, and u16 with the SP register (4 bits), the BP register (4 bits) and the type. The
numbers changed twice:

* 6.4 added ``.orc_header`` and a third bit of type. Bits 10 and 11 had marked the stack's end.
* By 7.2 the registers are counted in the CPU's order. The table itself tells which order it has,
  because most of it is relative to SP.

In Linux: arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c (since 4.14).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from copy import copy
from enum import Enum
from itertools import count
from typing import Protocol

from xenemu.errors import ImageError, XenError
from xenemu.image.elf import PT_LOAD, Elf, SectionHeader, parse
from xenemu.records import dataclass

Read = Callable[[int, int], bytes]  # (vaddr, size) -> bytes; XenError where nothing is mapped

MASK = (1 << 64) - 1
WORD = 8
REGS_BP, REGS_IP, REGS_SIZE = 32, 128, 168  # struct pt_regs; ip, cs, flags, sp, ss end it
IRET_SIZE = 40
RPL_MASK = 3
_ENTRY = struct.Struct("<hhH")
ENTRY_SIZE = _ENTRY.size
_IRET = struct.Struct("<5Q")


class Reg(Enum):
    """What an offset is relative to. Those under `OTHER` have values that nobody has saved."""

    UNDEFINED = "undefined"  # of BP: unchanged
    PREV_SP = "previous SP"
    SP = "SP"
    BP = "BP"
    SP_INDIRECT = "(SP) + offset"
    BP_INDIRECT = "(BP + offset)"
    OTHER = "other"


class Type(Enum):
    """Where the return address is: under the caller's SP, or in saved registers."""

    UNDEFINED = "undefined"
    END_OF_STACK = "end of stack"
    CALL = "call"
    REGS = "regs"
    REGS_PARTIAL = "regs partial"  # just what IRET pops


# By number; the registers' numbering by the number that SP has in it.
_TYPES = (Type.UNDEFINED, Type.END_OF_STACK, Type.CALL, Type.REGS, Type.REGS_PARTIAL)
_OLD_TYPES = (Type.CALL, Type.REGS, Type.REGS_PARTIAL)
_REGS = {
    5: {0: Reg.UNDEFINED, 1: Reg.PREV_SP, 4: Reg.BP, 5: Reg.SP}
    | {8: Reg.BP_INDIRECT, 9: Reg.SP_INDIRECT},
    3: {0: Reg.UNDEFINED, 8: Reg.PREV_SP, 4: Reg.BP, 3: Reg.SP}
    | {10: Reg.BP_INDIRECT, 9: Reg.SP_INDIRECT},
}
SAMPLE = 4096  # entries


class Stop(Enum):
    """Why there is no caller."""

    BOTTOM = "bottom"  # a kernel's or a user's first frame
    LOST = "lost"  # no entry, an unsupported one, or the stack cannot be read


@dataclass(frozen=True)
class Frame:
    """Registers in one function; `is_return`: `pc` follows a call, nothing trapped there."""

    pc: int
    sp: int
    bp: int
    is_return: bool = False


@dataclass(frozen=True)
class OrcEntry:
    """One decoded entry of .orc_unwind."""

    sp_offset: int
    bp_offset: int
    sp_reg: Reg
    bp_reg: Reg
    type: Type


# A jump to NULL has no entry: it was a call, and nothing ran since.
_NULL_CALL = OrcEntry(WORD, 0, Reg.SP, Reg.UNDEFINED, Type.CALL)


class Unwinder(Protocol):
    """Who knows a frame's caller."""

    def unwind(self, frame: Frame, read: Read) -> Frame | Stop: ...


class Orc:
    """The two tables of one kernel; without them, or if they disagree, `len()` is 0."""

    def __init__(self, elf: memoryview) -> None:
        self._count = 0
        try:
            headers = parse(elf)
        except ImageError:
            return
        self._modern = headers.section(".orc_header") is not None
        ips, entries = headers.section(".orc_unwind_ip"), headers.section(".orc_unwind")
        if not ips or not entries or ips.size // 4 != entries.size // ENTRY_SIZE:
            return
        self._vaddr = _vaddr(headers, ips)
        self._ips = elf[ips.offset :][: ips.size]
        self._entries = elf[entries.offset :][: entries.size]
        sample = self._entries[: ENTRY_SIZE * SAMPLE]
        if len(self._ips) == ips.size and len(self._entries) == entries.size and sample:
            numbers = Counter(flags & 15 for _, _, flags in _ENTRY.iter_unpack(sample))
            del numbers[0]
            regs = _REGS.get(numbers.most_common(1)[0][0]) if numbers else None
            if regs:
                self._regs, self._count = regs, ips.size // 4

    def moved(self, offset: int) -> Orc:
        """The tables of the same kernel, so many bytes after where it is."""
        moved = copy(self)
        moved._vaddr += offset
        return moved

    def of_module(self, vaddr: int, ips: bytes, entries: bytes) -> Orc:
        """The tables of a module of this kernel's; the first table is at `vaddr`."""
        module = copy(self)
        module._vaddr, module._ips, module._entries = vaddr, memoryview(ips), memoryview(entries)
        module._count = min(len(ips) // 4, len(entries) // ENTRY_SIZE)
        return module

    def __len__(self) -> int:
        return self._count

    def _ip(self, index: int) -> int:
        (relative,) = struct.unpack_from("<i", self._ips, 4 * index)
        return self._vaddr + 4 * index + int(relative)

    def find(self, pc: int) -> OrcEntry | None:
        """Return the entry for the code at `pc`; None outside the kernel's own code."""
        if pc == 0:
            return _NULL_CALL
        index = bisect_right(range(self._count), pc, key=self._ip) - 1
        if not 0 <= index < self._count - 1:  # the last one only ends the code
            return None
        return self._decode(*_ENTRY.unpack_from(self._entries, ENTRY_SIZE * index))

    def rows(self) -> Iterator[tuple[int, OrcEntry]]:
        """Each stretch of code, by ascending address: where it starts, and its entry.

        Equal entries are one object, which lives as long as the iterator.
        """
        known: dict[tuple[int, int, int], OrcEntry] = {}
        offsets = struct.iter_unpack("<i", self._ips[: 4 * self._count])
        for (offset,), fields, place in zip(
            offsets, _ENTRY.iter_unpack(self._entries), count(self._vaddr, 4), strict=False
        ):
            entry = known.get(fields)
            if entry is None:
                entry = known[fields] = self._decode(*fields)
            yield place + offset, entry

    def _decode(self, sp_offset: int, bp_offset: int, flags: int) -> OrcEntry:
        sp_reg = self._regs.get(flags & 15, Reg.OTHER)
        bp_reg = self._regs.get(flags >> 4 & 15, Reg.OTHER)
        return OrcEntry(sp_offset, bp_offset, sp_reg, bp_reg, self._type(flags))

    def _type(self, flags: int) -> Type:
        types: tuple[Type, ...] = _TYPES
        number = flags >> 8 & 7
        if not self._modern:
            types, number = _OLD_TYPES, flags >> 8 & 3
            if flags & 15 == 0:
                return Type.END_OF_STACK if flags >> 10 & 3 else Type.UNDEFINED
        return types[number] if number < len(types) else Type.UNDEFINED

    def unwind(self, frame: Frame, read: Read) -> Frame | Stop:
        """Return the caller's frame, reading the guest's stack with `read`."""
        return caller_by(self.find(frame.pc - frame.is_return), frame, read)


def _vaddr(headers: Elf, section: SectionHeader) -> int:
    for segment in headers.program_headers:
        if segment.type == PT_LOAD and 0 <= section.offset - segment.offset < segment.filesz:
            return segment.vaddr + section.offset - segment.offset
    return 0


def _word(read: Read, vaddr: int) -> int:
    return int.from_bytes(read(vaddr & MASK, WORD), "little")


def caller_by(entry: OrcEntry | None, frame: Frame, read: Read) -> Frame | Stop:
    """Return the caller's frame, by the entry for the code of this one, if there is an entry."""
    if entry is None or entry.type is Type.UNDEFINED:
        return Stop.LOST
    if entry.type is Type.END_OF_STACK:
        return Stop.BOTTOM
    try:
        return _step(entry, frame, read)
    except XenError:
        return Stop.LOST


def _step(entry: OrcEntry, frame: Frame, read: Read) -> Frame | Stop:
    """The caller's frame; XenError from `read`."""
    match entry.sp_reg:
        case Reg.SP:
            sp = frame.sp + entry.sp_offset
        case Reg.BP:
            sp = frame.bp + entry.sp_offset
        case Reg.SP_INDIRECT:  # since 5.12; unused before
            sp = _word(read, frame.sp) + entry.sp_offset
        case Reg.BP_INDIRECT:
            sp = _word(read, frame.bp + entry.sp_offset)
        case _:
            return Stop.LOST
    bp = _caller_bp(entry, sp, frame.bp, read)
    if bp is None:
        return Stop.LOST
    if entry.type is Type.CALL:
        return Frame(_word(read, sp - WORD), sp & MASK, bp, is_return=True)
    regs = sp if entry.type is Type.REGS else sp - REGS_IP
    ip, cs, _flags, old_sp, _ss = _IRET.unpack(read((regs + REGS_IP) & MASK, IRET_SIZE))
    if cs & RPL_MASK:
        return Stop.BOTTOM
    if entry.type is Type.REGS and entry.bp_reg is Reg.UNDEFINED:
        bp = _word(read, regs + REGS_BP)
    return Frame(ip, old_sp, bp)


def _caller_bp(entry: OrcEntry, sp: int, bp: int, read: Read) -> int | None:
    match entry.bp_reg:
        case Reg.UNDEFINED:
            return bp
        case Reg.PREV_SP:
            return _word(read, sp + entry.bp_offset)
        case Reg.BP:
            return _word(read, bp + entry.bp_offset)
        case _:
            return None
