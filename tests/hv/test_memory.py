"""hv/memory: the machine's RAM."""

from __future__ import annotations

import pytest

from xenemu.hv.memory import Memory
from xenemu.x86.paging import Maddr, Mfn


@pytest.fixture
def memory() -> Memory:
    return Memory(4)


def test_bytes_and_words_are_views_of_the_same_memory(memory: Memory) -> None:
    memory.write(Maddr(8), b"\x01\x02")
    assert memory.words[1] == 0x0201
    memory.words[2] = 0xFF
    assert memory.bytes[16] == 0xFF


def test_integers_are_little_endian_and_wrap(memory: Memory) -> None:
    memory.write_uint(Maddr(0), 2, 0x12345)
    assert memory.read(Maddr(0), 3) == b"\x45\x23\x00"
    memory.write_uint(Maddr(0), 4, -1)
    assert memory.read_uint(Maddr(0), 8) == 0xFFFFFFFF


@pytest.mark.parametrize("maddr", [-1, 4 * 4096 - 3, 4 * 4096])
def test_what_is_outside_cannot_be_reached(memory: Memory, maddr: int) -> None:
    before = bytes(memory.bytes)
    with pytest.raises(IndexError):
        memory.read(Maddr(maddr), 4)
    with pytest.raises(IndexError):
        memory.write(Maddr(maddr), b"1234")
    assert bytes(memory.bytes) == before
    assert not memory.stale_code


def test_the_last_byte_is_inside(memory: Memory) -> None:
    memory.write(Maddr(4 * 4096 - 4), b"1234")
    assert memory.read(Maddr(4 * 4096 - 4), 4) == b"1234"


def test_only_frames_below_the_end_are_ram(memory: Memory) -> None:
    assert [memory.contains(mfn) for mfn in (-1, 0, 3, 4, 1 << 60)] == [0, 1, 1, 0, 0]


def test_a_write_to_code_is_noted_frame_by_frame(memory: Memory) -> None:
    memory.code[1] = memory.code[2] = 1
    memory.write(Maddr(0xFFF), b"x")
    assert memory.stale_code == set()
    memory.write(Maddr(0x1FFF), b"xy")
    assert memory.stale_code == {1, 2}


def test_a_table_is_a_live_view(memory: Memory) -> None:
    memory.table(Mfn(2))[3] = 7
    assert memory.words[2 * 512 + 3] == 7
    assert len(memory.table(Mfn(2))) == 512


def test_frames_are_cleared_and_copied(memory: Memory) -> None:
    memory.write(Maddr(0x1000), b"x" * 4096)
    memory.copy_frame(Mfn(2), Mfn(1))
    memory.clear_frame(Mfn(1))
    assert memory.read(Maddr(0x1000), 8192) == bytes(4096) + b"x" * 4096
