"""LZO1X and lzop's container, for which the standard library has nothing.

The stream is a series of instructions. Each instruction copies bytes from what was already written
(a match), and then up to three literal bytes from the input. The number of literal bytes is called
the state. It changes the meaning of the next instruction.

Described in Linux's Documentation/staging/lzo.rst; the container in lzop's own source.
"""

from __future__ import annotations

import struct

from xenemu.errors import ImageError

MAGIC = b"\x89LZO\x00\r\n\x1a\n"
MAX_BLOCK = 64 << 20  # lzop's own limit

# Flags of the file header.
ADLER32_D, ADLER32_C, EXTRA_FIELD = 0x1, 0x2, 0x40
CRC32_D, CRC32_C, FILTER = 0x100, 0x200, 0x800


def decompress_lzop(view: memoryview, limit: int) -> bytearray:
    """Unpack a file of lzop's to at most `limit` bytes."""
    out = bytearray()
    try:
        offset, flags = _header(view)
        while size := _u32(view, offset):
            packed = _u32(view, offset + 4)
            offset += 8 + 4 * (flags & (ADLER32_D | CRC32_D)).bit_count()
            if packed < size:
                offset += 4 * (flags & (ADLER32_C | CRC32_C)).bit_count()
            if size > min(MAX_BLOCK, limit - len(out)):
                raise ImageError(f"the lzo payload unpacks to more than {limit} bytes")
            if packed > min(size, len(view) - offset):
                raise ImageError("the lzo payload has a block that is longer than the file")
            block = view[offset : offset + packed]
            out += decompress_block(block, size) if packed < size else block
            offset += packed
    except struct.error:
        raise ImageError("the lzo payload is truncated") from None
    return out


def _u32(view: memoryview, offset: int) -> int:
    value: int = struct.unpack_from(">I", view, offset)[0]
    return value


def _header(view: memoryview) -> tuple[int, int]:
    """Return where the first block starts, and the flags."""
    version, _library, _needed, method = struct.unpack_from(">HHHB", view, 9)
    if method not in (1, 2, 3):
        raise ImageError(f"the lzo payload uses method {method}, not LZO1X")
    offset = 16 + (version >= 0x940)  # the level
    flags = _u32(view, offset)
    if flags & EXTRA_FIELD:
        raise ImageError("the lzo payload has an extra field, which kernels' never have")
    offset += 4 + (4 if flags & FILTER else 0)
    offset += 8 + (4 if version >= 0x940 else 0)  # mode and time
    (name_length,) = struct.unpack_from("B", view, offset)
    return offset + 1 + name_length + 4, flags  # and the header's checksum


def decompress_block(packed: bytes | memoryview, size: int) -> bytearray:
    """Unpack one LZO1X stream of exactly `size` bytes."""
    data = bytes(packed)
    out = bytearray()
    try:
        _run(data, out, size)
    except IndexError:
        raise ImageError("the lzo payload is truncated") from None
    if len(out) != size:
        raise ImageError(f"the lzo payload has a block of {len(out)} bytes instead of {size}")
    return out


def _run(data: bytes, out: bytearray, size: int) -> None:
    at = 0
    state = 0  # literals copied by the previous instruction; 4 stands for a long run
    if data[0] > 17:
        literals = data[0] - 17
        at = _literals(data, 1, literals, out, size)
        state = min(literals, 4)
    while True:
        op = data[at]
        at += 1
        if op < 16 and state == 0:
            length, at = _length(data, at, op, 15)
            at = _literals(data, at, length + 3, out, size)
            state = 4
            continue
        if op >= 64:
            length = (op >> 5) + 1 if op >= 128 else 3 + (op >> 5 & 1)
            distance = (data[at] << 3) + (op >> 2 & 7) + 1
            state = op & 3
            at += 1
        elif op >= 16:
            mask = 31 if op >= 32 else 7
            length, at = _length(data, at, op & mask, mask)
            length += 2
            word = data[at] | data[at + 1] << 8
            at += 2
            state = word & 3
            distance = (word >> 2) + 1
            if op < 32:
                distance += 0x3FFF + ((op & 8) << 11)
                if distance == 0x4000:
                    return
        else:
            length, base = (3, 2049) if state == 4 else (2, 1)
            distance = (data[at] << 2) + (op >> 2 & 3) + base
            state = op & 3
            at += 1
        _match(distance, length, out, size)
        if state:
            at = _literals(data, at, state, out, size)


def _length(data: bytes, at: int, low: int, mask: int) -> tuple[int, int]:
    """Read a length whose low bits are zero when it goes on: 255 for each zero byte."""
    if low:
        return low, at
    start = at
    while not data[at]:
        at += 1
    return mask + 255 * (at - start) + data[at], at + 1


def _literals(data: bytes, at: int, count: int, out: bytearray, size: int) -> int:
    end = at + count
    if end > len(data):
        raise IndexError
    if len(out) + count > size:
        raise ImageError("the lzo payload has a block that overruns its size")
    out += data[at:end]
    return end


def _match(distance: int, length: int, out: bytearray, size: int) -> None:
    start = len(out) - distance
    if start < 0:
        raise ImageError("the lzo payload refers to bytes before its start")
    if len(out) + length > size:
        raise ImageError("the lzo payload has a block that overruns its size")
    if distance >= length:
        out += out[start : start + length]
    else:  # the match overlaps what it writes: its pattern repeats
        pattern = out[start:]
        out += (pattern * (length // distance + 1))[:length]
