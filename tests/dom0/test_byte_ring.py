"""xenemu/dom0/byte_ring.py"""

from __future__ import annotations

import pytest

from xenemu.dom0.byte_ring import ByteRing
from xenemu.hv.memory import Memory
from xenemu.x86.paging import Maddr, Mfn

RING = ByteRing(data=0x100, size=16, cons=0x200, prod=0x204)
MFN = Mfn(1)


def at(cons: int, prod: int) -> Memory:
    memory = Memory(2)
    memory.write_uint(Maddr(0x1200), 4, cons)
    memory.write_uint(Maddr(0x1204), 4, prod)
    return memory


def test_bytes_come_out_as_they_went_in() -> None:
    memory = at(0, 0)
    assert RING.put(memory, MFN, b"hello") == 5
    assert RING.take(memory, MFN, 3) == b"hel"
    assert RING.take(memory, MFN, 99) == b"lo"


def test_data_wraps_at_the_end_of_the_ring_and_indices_at_32_bits() -> None:
    memory = at(0xFFFFFFFE, 0xFFFFFFFE)
    assert RING.put(memory, MFN, b"abcdef") == 6
    assert memory.read(Maddr(0x1100), 4) == b"cdef"
    assert memory.read_uint(Maddr(0x1204), 4) == 4
    assert RING.take(memory, MFN, 16) == b"abcdef"


def test_put_stops_when_the_ring_is_full() -> None:
    memory = at(0, 10)
    assert RING.room(memory, MFN) == 6
    assert RING.put(memory, MFN, b"x" * 10) == 6
    assert RING.room(memory, MFN) == 0


@pytest.mark.parametrize(("cons", "prod"), [(0, 17), (1, 0), (0, 0xFFFFFFFF)])
def test_nonsense_indices_move_nothing(cons: int, prod: int) -> None:
    memory = at(cons, prod)
    before = memory.read(Maddr(0x1000), 0x1000)
    assert RING.take(memory, MFN, 16) == b""
    assert RING.put(memory, MFN, b"x") == 0
    assert memory.read(Maddr(0x1000), 0x1000) == before
