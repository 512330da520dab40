"""How a kernel came to where it is: a backtrace with names, like the one Linux prints.

With ORC tables, every line is certain. Where there are none, or where they end, saved frame
pointers are followed as long as they are plausible. After that, each word on the stack that looks
like a return address is listed, and marked ``?`` as in Linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from xenemu.errors import XenError
from xenemu.image.orc import Frame, Read, Stop, Unwinder
from xenemu.image.symbols import Names
from xenemu.records import dataclass

MAX_LINES = 32
MAX_STACK = 16 << 10
CHUNK = 256
MAX_CALL = 7  # bytes of the longest near call without prefixes


@dataclass(frozen=True)
class BacktraceLine:
    """One address; `reliable` is False for what merely lay on the stack."""

    vaddr: int
    text: str
    reliable: bool = True

    def __str__(self) -> str:
        return f" {' ' if self.reliable else '?'} {self.text}"


def backtrace(
    symbols: Names,
    orc: Unwinder | None,
    pc: int,
    sp: int,
    bp: int,
    read: Read,
    limit: int = MAX_LINES,
    width: int = 8,
) -> list[BacktraceLine]:
    """Return at most `limit` lines, the innermost first; it starts with `pc` itself.

    `read(vaddr, size)` raises XenError where nothing is mapped. `width` is the size of a pointer in
    bytes. At most 16 KiB of the stack are looked at, and nothing past the end of the address space.
    """
    mask = (1 << 8 * width) - 1
    start = Frame(pc & mask, sp & mask, bp & mask)
    return list(islice(_lines(symbols, orc, start, read, width), min(limit, MAX_LINES)))


def _lines(
    symbols: Names, orc: Unwinder | None, frame: Frame, read: Read, width: int
) -> Iterator[BacktraceLine]:
    yield _line(symbols, frame)
    if orc:
        while isinstance(caller := orc.unwind(frame, read), Frame):
            frame = caller
            yield _line(symbols, frame)
        if caller is Stop.BOTTOM:
            return
    end = min(frame.sp + MAX_STACK, 1 << 8 * width)
    while above := frame_pointer_caller(frame, end, read, width):
        yield from _scan(symbols, frame.sp, frame.bp, read, width)
        frame = above
        yield _line(symbols, frame)
    yield from _scan(symbols, frame.sp, end, read, width)


def _line(symbols: Names, frame: Frame) -> BacktraceLine:
    return BacktraceLine(frame.pc, symbols.format(frame.pc, frame.is_return))


def frame_pointer_caller(frame: Frame, end: int, read: Read, width: int) -> Frame | None:
    """Return the caller, if BP plausibly points at the caller's BP and a return address."""
    if not frame.sp <= frame.bp <= end - 2 * width or frame.bp % width:
        return None
    try:
        saved = read(frame.bp, 2 * width)
    except XenError:
        return None
    bp, pc = (int.from_bytes(saved[i : i + width], "little") for i in (0, width))
    if not follows_call(pc, read):
        return None
    return Frame(pc, frame.bp + 2 * width, bp, is_return=True)


def _scan(symbols: Names, sp: int, end: int, read: Read, width: int) -> Iterator[BacktraceLine]:
    """Yield the words in [sp, end) that can be return addresses, up to what is not mapped.

    Either end may be anywhere; the words are aligned.
    """
    at, end = -(-sp // width) * width, end // width * width
    while at < end:
        size = min(CHUNK - at % CHUNK, end - at)
        try:
            chunk = read(at, size)
        except XenError:
            return
        for i in range(0, size, width):
            vaddr = int.from_bytes(chunk[i : i + width], "little")
            if follows_call(vaddr, read):
                text = symbols.format(vaddr, is_return=True)
                yield BacktraceLine(vaddr, text, reliable=False)
        at += size


def follows_call(vaddr: int, read: Read) -> bool:
    """Tell whether the instruction before `vaddr` can be a near call."""
    if vaddr < MAX_CALL:
        return False
    try:
        code = read(vaddr - MAX_CALL, MAX_CALL)
    except XenError:
        return False
    return code[-5] == 0xE8 or any(_is_indirect_call(code[-n:]) for n in (2, 3, 4, 6, 7))


def _is_indirect_call(code: bytes) -> bool:
    """Tell whether `code` is exactly CALL r/m (FF /2; Intel SDM volume 2, 2.1.5)."""
    mod, operation, rm = code[1] >> 6, code[1] >> 3 & 7, code[1] & 7
    size = 2 + (0, 1, 4, 0)[mod]
    base = rm
    if rm == 4 and mod != 3 and len(code) > 2:
        size += 1
        base = code[2] & 7
    if mod == 0 and base == 5:
        size += 4
    return code[0] == 0xFF and operation == 2 and size == len(code)
