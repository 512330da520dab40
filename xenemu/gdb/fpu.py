"""x87's and SSE's registers, as gdb names them, in the 512 bytes that FXSAVE64 writes.

Intel SDM volume 1, sections 8.1.7 (tag word) and 10.5.1 (the area).
"""

from __future__ import annotations

from typing import Final

SIZES: Final = {"st": 10, "xmm": 16}
CONTROL: Final = {"fctrl": (0, 2), "fstat": (2, 2), "mxcsr": (24, 4)}  # place, bytes
TAGS: Final = 4  # a bit for each register that is not empty
STACK, XMM, STRIDE = 32, 160, 16
VALID, ZERO, SPECIAL, EMPTY = range(4)
INTEGER_BIT: Final = 1 << 63
EXPONENT: Final = 0x7FFF
NAMES: Final = frozenset(
    (*CONTROL, "ftag", *(f"st{n}" for n in range(8)), *(f"xmm{n}" for n in range(16)))
)


def read(area: bytes, name: str) -> bytes:
    """A register's bytes; a control register has 4."""
    if name == "ftag":
        return _full_tags(area).to_bytes(4, "little")
    start, size = _place(name)
    return area[start : start + size].ljust(4, b"\0")


def write(area: bytes, name: str, value: bytes) -> bytes:
    """The area with another value in a register."""
    if name == "ftag":
        full = int.from_bytes(value, "little")
        tags = sum(1 << n for n in range(8) if full >> 2 * n & 3 != EMPTY)
        return area[:TAGS] + bytes([tags]) + area[TAGS + 1 :]
    start, size = _place(name)
    return area[:start] + value[:size] + area[start + size :]


def _place(name: str) -> tuple[int, int]:
    if name in CONTROL:
        return CONTROL[name]
    if name.startswith("st"):
        return STACK + STRIDE * int(name[2:]), SIZES["st"]
    return XMM + STRIDE * int(name[3:]), SIZES["xmm"]


def _full_tags(area: bytes) -> int:
    """Two bits for each register, by its number; the area has the registers from the top on."""
    top = int.from_bytes(area[2:4], "little") >> 11 & 7
    full = 0
    for number in range(8):
        value = int.from_bytes(read(area, f"st{(number - top) % 8}"), "little")
        full |= (_kind(value) if area[TAGS] >> number & 1 else EMPTY) << 2 * number
    return full


def _kind(value: int) -> int:
    exponent, mantissa = value >> 64 & EXPONENT, value & (1 << 64) - 1
    if exponent == 0 and mantissa == 0:
        return ZERO
    ordinary = 0 < exponent < EXPONENT and mantissa & INTEGER_BIT
    return VALID if ordinary else SPECIAL
