"""pvh/paging: a guest's pointers go through its own tables, in whichever mode it is."""

from __future__ import annotations

import pytest

from fakes import FIRST_GUEST_FRAME, FakeNativeCpu, enter_long_mode, make_pvh_current
from xenemu.abi.errno import EFAULT
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.x86.paging import PSE, RW, A, D, Mfn, P

L4, L3, L2, L1, DATA = (frame << 12 for frame in range(FIRST_GUEST_FRAME, FIRST_GUEST_FRAME + 5))
WP = 1 << 16
VADDR = 0x8040302000  # indices 1, 1, 1, 0x102
VADDR32 = 0x00402000  # indices 1, 2


@pytest.fixture
def current() -> Current:
    return make_pvh_current()


def native(current: Current) -> FakeNativeCpu:
    assert isinstance(current.cpu, FakeNativeCpu)
    return current.cpu


def write_entries(current: Current, *entries: tuple[int, int], size: int = 8) -> None:
    for maddr, entry in entries:
        current.domain.memory.write_uint(maddr, size, entry)


def map_long(current: Current, leaf: int = DATA | RW | P, l2: int = L1 | RW | P) -> None:
    enter_long_mode(current, L4)
    links = ((L4 + 8, L3 | RW | P), (L3 + 8, L2 | RW | P), (L2 + 8, l2))
    write_entries(current, *links, (L1 + 8 * 0x102, leaf))


def map_two_levels(current: Current, leaf: int = DATA | RW | P, large: bool = False) -> None:
    cpu = native(current)
    cpu.cr0, cpu.cr3, cpu.cr4 = 0x80010011, L2, 0x10
    link = 0x400000 | PSE | RW | P if large else L1 | RW | P
    write_entries(current, (L2 + 4, link), (L1 + 4 * 2, leaf), size=4)


def refused(current: Current, vaddr: int) -> None:
    before = bytes(current.domain.memory.bytes)
    with pytest.raises(XenError) as error:
        current.write(vaddr, b"x")
    assert error.value.errno == EFAULT
    assert bytes(current.domain.memory.bytes) == before


def test_without_paging_an_address_is_physical(current):
    current.write(DATA, b"flat")
    assert current.domain.memory.read(DATA, 4) == b"flat"
    assert current.read(1 << 32 | DATA, 4) == b"flat"
    refused(current, 0xC0000000)


def test_long_mode(current):
    map_long(current)
    current.write(VADDR + 5, b"long")
    assert current.domain.memory.read(DATA + 5, 4) == b"long"


def test_a_walk_marks_what_it_used(current):
    map_long(current)
    current.read(VADDR, 1)
    entry = current.domain.memory.read_uint(L1 + 8 * 0x102, 8)
    assert (entry & A, entry & D) == (A, 0)
    current.write(VADDR, b"x")
    assert current.domain.memory.read_uint(L1 + 8 * 0x102, 8) & D
    link = current.domain.memory.read_uint(L4 + 8, 8)
    assert (link & A, link & D) == (A, 0)


@pytest.mark.parametrize("leaf", [DATA | RW, DATA | P, 0xFFFF000 | RW | P])
def test_not_mapped_read_only_or_no_memory(current, leaf):
    map_long(current, leaf)
    if leaf & RW and leaf & P:  # the walk itself is sound, and marks
        with pytest.raises(XenError):
            current.write(VADDR, b"x")
    else:
        refused(current, VADDR)


def test_a_table_above_can_make_a_page_read_only(current):
    map_long(current, l2=L1 | P)
    refused(current, VADDR)
    assert current.read(VADDR, 1) == b"\0"


def test_without_write_protection_a_kernel_writes_anywhere(current):
    map_long(current, DATA | P)
    native(current).cr0 &= ~WP
    current.write(VADDR, b"x")
    assert current.domain.memory.read(DATA, 1) == b"x"


def test_a_table_where_no_memory_is(current):
    map_long(current, l2=0xFFFF000 | RW | P)
    refused(current, VADDR)


def test_addresses_are_canonical(current):
    map_long(current)
    refused(current, VADDR | 1 << 47)


def test_tables_can_be_elsewhere(current):
    map_long(current, l2=0x1234000 | RW | P)
    assert current.domain.p2m is not None
    current.domain.p2m.set(0x1234, Mfn(L1 >> 12))
    current.write(VADDR, b"x")
    assert current.domain.memory.read(DATA, 1) == b"x"


def test_a_large_page_in_long_mode(current):
    map_long(current, l2=PSE | RW | P)
    current.write(0x8040200000 + DATA, b"x")
    assert current.domain.memory.read(DATA, 1) == b"x"


def test_pae_has_a_root_without_rights(current):
    cpu = native(current)
    cpu.cr0, cpu.cr3, cpu.cr4 = 0x80010011, L3 + 0x20, 0x20
    write_entries(current, (L3 + 0x28, L2 | P), (L2 + 8, L1 | RW | P), (L1 + 16, DATA | RW | P))
    current.write(0x40202000, b"x")
    assert current.domain.memory.read(DATA, 1) == b"x"
    assert current.domain.memory.read_uint(L3 + 0x28, 8) == L2 | P, "it has no accessed bit"


def test_two_levels(current):
    map_two_levels(current)
    current.write(VADDR32 + 1, b"x")
    assert current.domain.memory.read(DATA + 1, 1) == b"x"
    assert current.domain.memory.read_uint(L1 + 8, 4) == DATA | RW | P | A | D


def test_two_levels_refuse(current):
    map_two_levels(current, DATA | P)
    refused(current, VADDR32)


def test_a_large_page_needs_pse(current):
    map_two_levels(current, large=True)
    assert current.domain.p2m is not None
    current.domain.p2m.set(0x402, Mfn(DATA >> 12))
    current.write(VADDR32, b"x")
    assert current.domain.memory.read(DATA, 1) == b"x"
    native(current).cr4 = 0
    refused(current, VADDR32)
