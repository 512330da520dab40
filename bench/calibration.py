"""A fixed piece of work, in units of which the gate measures: ``python -m bench.calibration``.

Half of it is Python's and half is Unicorn's, as in a boot; none of it is xenemu's. It must never
change: what is stored in ``gate.json`` is a multiple of its CPU time.
"""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any, Final

TURNS: Final = 1_000_000  # of the loop in Python
BLOCKS: Final = 6000  # of code, each of which Unicorn translates once
LOOPS: Final = 200  # through them
CODE, DATA = 0x100000, 0x800000
DATA_BYTES: Final = 1 << 20


class Record:
    """Something with attributes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0


def python() -> int:
    """Calls, attributes, dictionaries, and structs that are packed and unpacked."""
    records = {number: Record(number) for number in range(256)}
    layout = struct.Struct("<QII")
    total = 0
    for turn in range(TURNS):
        record = records[turn * 7 & 255]
        record.count += 1
        number, low, high = layout.unpack(layout.pack(turn, record.count, record.number))
        total += _sum(number, low, high) & 0xFF
    return total


def _sum(*numbers: int) -> int:
    return sum(numbers)


def engine() -> int:
    """Small blocks of loads, additions, stores and jumps, in another order than in memory."""
    # Here, because xenemu must be the first to import it in a process that has both.
    import unicorn  # noqa: PLC0415
    from unicorn import x86_const  # noqa: PLC0415

    draw = random.Random(1)
    order = list(range(1, BLOCKS))
    draw.shuffle(order)
    code = bytearray(b"\xcc" * (BLOCKS * 32))
    places = [0, *order]
    for place, following in zip(places, [*order, -1], strict=True):
        offset = draw.randrange(0, DATA_BYTES, 8)
        block = b"\x48\x8b\x83" + struct.pack("<i", offset)  # mov rax, [rbx + offset]
        block += b"\x48\x01\xc8"  # add rax, rcx
        block += b"\x48\x89\x83" + struct.pack("<i", offset ^ 8)  # mov [rbx + ...], rax
        if following < 0:
            block += b"\x48\xff\xc9"  # dec rcx, at the end of each turn
            back = -(place * 32 + len(block) + 6)
            block += b"\x0f\x85" + struct.pack("<i", back)  # jnz to the first
        else:
            block += b"\xe9" + struct.pack("<i", (following - place) * 32 - len(block) - 5)
        code[place * 32 : place * 32 + len(block)] = block
    end = CODE + places[-1] * 32 + len(block)
    uc: Any = unicorn  # which declares no types
    machine = uc.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    machine.mem_map(CODE, 1 << 20)
    machine.mem_map(DATA, DATA_BYTES)
    machine.mem_write(CODE, bytes(code))
    machine.reg_write(x86_const.UC_X86_REG_RBX, DATA)
    machine.reg_write(x86_const.UC_X86_REG_RCX, LOOPS)
    machine.emu_start(CODE, end)
    return zlib.crc32(machine.mem_read(DATA, DATA_BYTES))


if __name__ == "__main__":
    print(python(), engine())
