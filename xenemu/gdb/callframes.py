"""A kernel's ORC tables as DWARF call frame information, so that gdb finds callers by them.

For each stretch of code, ORC says the same things as DWARF: where the caller's stack pointer is
(DWARF's CFA), and where the return address and RBP are. Where an interrupt or exception came in,
they are in saved registers.

DWARF 4, section 6.4; System V ABI for x86-64, "DWARF Register Number Mapping".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Final

from xenemu.image.orc import REGS_BP, REGS_IP, Orc, OrcEntry, Reg, Type

RBP, RSP, RETURN_ADDRESS = 6, 7, 16
WORD: Final = 8
REGS_SP: Final = 152  # in struct pt_regs
ROWS: Final = 256  # of a description; gdb runs through one from its beginning
NO_CIE: Final = 0xFFFFFFFF  # marks a CIE in .debug_frame
CFA_ADVANCE_LOC, CFA_RESTORE = 0x40, 0xC0
CFA_ADVANCE_LOC4, CFA_UNDEFINED, CFA_SAME_VALUE = 0x04, 0x07, 0x08
CFA_DEF_CFA_EXPRESSION, CFA_EXPRESSION = 0x0F, 0x10
CFA_OFFSET_EXTENDED_SF, CFA_DEF_CFA_SF = 0x11, 0x12
OP_DEREF, OP_CONSTS, OP_PLUS, OP_BREG0 = 0x06, 0x11, 0x22, 0x70
MAX_SHORT_ADVANCE: Final = 0x3F
NO_CALLER: Final = bytes([CFA_UNDEFINED, RETURN_ADDRESS])
BASES: Final = {Reg.SP: RSP, Reg.BP: RBP}


def debug_frame(orc: Orc, parts: Sequence[range] = ()) -> bytes:
    """The section .debug_frame that says what the tables say.

    A module's tables are of several `parts`, between which other modules may be.
    """
    cie = struct.pack("<IB2s", NO_CIE, 1, b"\0\x01")  # version 1, no augmentation, factor 1
    cie += _sleb(-WORD) + bytes([RETURN_ADDRESS])
    cie += bytes([CFA_DEF_CFA_SF, RSP]) + _sleb(-1)  # there must be a CFA, where none is known, too
    pieces = [_entry(cie)]
    if not parts:
        pieces += _descriptions(orc.rows())
    for part in parts:
        rows = (row for row in orc.rows() if row[0] in part)
        pieces += _descriptions(chain(rows, [(part.stop, None)]))
    return b"".join(pieces)


def _descriptions(stretches: Iterable[tuple[int, OrcEntry | None]]) -> Iterator[bytes]:
    """The description of consecutive stretches of code; the last row only ends the one before."""
    known: dict[int, bytes] = {}  # by identity: a hash of an entry costs more than its rule
    rows: list[tuple[int, bytes]] = []
    for vaddr, entry in stretches:
        rule = known.get(id(entry))
        if rule is None:
            rule = known[id(entry)] = _rule(entry) if entry else b""
        if not rows or rows[-1][1] != rule:
            rows.append((vaddr, rule))
        if len(rows) > ROWS:
            yield _describe(rows[:-1], rows[-1][0])
            del rows[:-1]
    if len(rows) > 1:
        yield _describe(rows[:-1], rows[-1][0])


def _describe(rows: list[tuple[int, bytes]], end: int) -> bytes:
    """The description of the code from the first row's address to `end`."""
    start = rows[0][0]
    program = [rows[0][1]]
    for (before, _), (vaddr, rule) in pairwise(rows):
        program += [_advance(vaddr - before), rule]
    return _entry(struct.pack("<IQQ", 0, start, end - start) + b"".join(program))


def _entry(body: bytes) -> bytes:
    body += bytes(-(len(body) + 4) % WORD)  # DW_CFA_nop
    return struct.pack("<I", len(body)) + body


def _advance(distance: int) -> bytes:
    if distance <= MAX_SHORT_ADVANCE:
        return bytes([CFA_ADVANCE_LOC | distance])
    return struct.pack("<BI", CFA_ADVANCE_LOC4, distance)


def _rule(entry: OrcEntry) -> bytes:
    """All that a row says, whatever the row before it said."""
    if entry.type in (Type.UNDEFINED, Type.END_OF_STACK):
        return NO_CALLER
    cfa = _cfa(entry)
    if cfa is None:
        return NO_CALLER
    if entry.type is Type.CALL:
        bp = _bp(entry)
        return NO_CALLER if bp is None else cfa + _saved(RETURN_ADDRESS, -WORD) + RESTORE_RSP + bp
    registers = 0 if entry.type is Type.REGS else -REGS_IP
    rule = cfa + _saved(RETURN_ADDRESS, registers + REGS_IP) + _saved(RSP, registers + REGS_SP)
    if entry.type is Type.REGS:
        return rule + _saved(RBP, REGS_BP)
    return rule + bytes([CFA_SAME_VALUE, RBP])


def _cfa(entry: OrcEntry) -> bytes | None:
    base, offset = BASES.get(entry.sp_reg), entry.sp_offset
    if base is not None:
        return None if offset % WORD else bytes([CFA_DEF_CFA_SF, base]) + _sleb(-offset // WORD)
    if entry.sp_reg is Reg.SP_INDIRECT:
        code = bytes([OP_BREG0 + RSP, 0, OP_DEREF, OP_CONSTS]) + _sleb(offset) + bytes([OP_PLUS])
    elif entry.sp_reg is Reg.BP_INDIRECT:
        code = bytes([OP_BREG0 + RBP]) + _sleb(offset) + bytes([OP_DEREF])
    else:
        return None
    return bytes([CFA_DEF_CFA_EXPRESSION, len(code)]) + code


def _bp(entry: OrcEntry) -> bytes | None:
    if entry.bp_reg is Reg.UNDEFINED:
        return bytes([CFA_SAME_VALUE, RBP])
    if entry.bp_reg is Reg.PREV_SP and entry.bp_offset % WORD == 0:
        return _saved(RBP, entry.bp_offset)
    if entry.bp_reg is Reg.BP:
        code = bytes([OP_BREG0 + RBP]) + _sleb(entry.bp_offset)
        return bytes([CFA_EXPRESSION, RBP, len(code)]) + code
    return None


def _saved(register: int, offset: int) -> bytes:
    """A register that was saved at CFA + `offset`."""
    return bytes([CFA_OFFSET_EXTENDED_SF, register]) + _sleb(-offset // WORD)


def _sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        if value == (-1 if byte & 0x40 else 0):
            return bytes([*out, byte])
        out.append(byte | 0x80)


RESTORE_RSP: Final = bytes([CFA_RESTORE | RSP])  # to what it is without a rule: the CFA
