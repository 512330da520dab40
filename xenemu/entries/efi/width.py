"""The two widths of EFI's interface: UINTNs and pointers, structures, and calls of functions.

All else is the same. UEFI specification 2.10, sections 2.3.2 (IA-32) and 2.3.4 (x64).
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Final

from xenemu.entries.efi.abi import Status
from xenemu.entries.flat import CODE64
from xenemu.hv.cpu import Reg
from xenemu.pvh.personality import CODE32
from xenemu.records import dataclass

SIZES: Final = {"Q": 8, "I": 4, "W": 2, "B": 1}
CODES: Final = {8: "Q", 4: "I", 2: "H", 1: "B"}


@dataclass(frozen=True)
class Width:
    """One of the two. `registers` pass the first arguments; others are in the caller's stack.

    `shadow` is how many bytes a caller leaves there for the registers. `load_rax` begins an
    instruction that loads the accumulator with the bytes that follow.
    """

    word: int  # bytes of a UINTN
    machine: str  # of the programs that an EFI of this width runs
    registers: tuple[Reg, ...]
    shadow: int
    load_rax: bytes
    code: int  # attributes of a code segment

    @property
    def bits(self) -> int:
        return 8 * self.word

    @property
    def mask(self) -> int:
        """The highest UINTN."""
        return (1 << self.bits) - 1

    @property
    def error(self) -> int:
        """The bit that an EFI_STATUS has if it is an error."""
        return 1 << self.bits - 1

    def size(self, letter: str) -> int:
        """Bytes of a field: N for a UINTN, a handle or a pointer, Q, I, W and B for 8 to 1."""
        return SIZES.get(letter, self.word)

    def pack(self, fields: str, *values: int) -> bytes:
        """A structure with these fields, each at a multiple of its size, as in C."""
        return _struct(self, fields).pack(*values)

    def unpack(self, fields: str, data: bytes) -> tuple[int, ...]:
        """The fields of a structure."""
        return _struct(self, fields).unpack(data)

    def length(self, fields: str) -> int:
        """The bytes of a structure."""
        return _struct(self, fields).size

    def pointers(self, *values: int) -> bytes:
        return self.pack("N" * len(values), *values)

    @cache  # noqa: B019 (there are two widths for ever)
    def slots(self, types: str) -> tuple[tuple[int, int, int], ...]:
        """Where arguments of these types are.

        For each: its first slot, which is a UINTN; how many slots there are; and its highest value.
        """
        found, slot = [], 0
        for letter in types:
            size = self.size(letter)
            count = max(1, size // self.word)
            found.append((slot, count, (1 << 8 * size) - 1))
            slot += count
        return tuple(found)

    @property
    def gone(self) -> bytes:
        """Code that answers UNSUPPORTED by itself."""
        status = (Status.UNSUPPORTED | self.error).to_bytes(self.word, "little")
        return self.load_rax + status + b"\xc3"


@cache
def _struct(width: Width, fields: str) -> struct.Struct:
    layout, at, widest = "<", 0, 1
    for letter in fields:
        size = width.size(letter)
        pad, widest = -at % size, max(widest, size)
        layout += f"{pad}x" * bool(pad) + CODES[size]
        at += pad + size
    return struct.Struct(layout + f"{-at % widest}x")


IA32: Final = Width(4, "i386", (), 0, b"\xb8", CODE32)
X64: Final = Width(8, "x86_64", (Reg.RCX, Reg.RDX, Reg.R8, Reg.R9), 32, b"\x48\xb8", CODE64)
WIDTHS: Final = {width.word: width for width in (IA32, X64)}
