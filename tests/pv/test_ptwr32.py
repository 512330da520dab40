"""pv/ptwr: a 32-bit guest writes its PAE entries in halves."""

from __future__ import annotations

import pytest

from fakes32 import CODE, L1, L3, make_pv32_current
from xenemu.abi.xen import VMASST_TYPE_writable_pagetables
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.pv.ptwr import emulate_store
from xenemu.x86.paging import RW, US, P

SLOT, DATA = 200, 0x32000
LOW = (L1 << 12) + 8 * SLOT
HIGH = LOW + 4
PTE = DATA | P | RW | US
MOV, XCHG, LOCK_OR, OR = b"\x89\x07", b"\x87\x07", b"\xf0\x09\x07", b"\x09\x07"  # eax, (edi)


@pytest.fixture
def current() -> Current:
    current = make_pv32_current()
    current.domain.frames.mod_entry(LOW, PTE, current.domain.domid)
    current.domain.vm_assist = 1 << VMASST_TYPE_writable_pagetables
    return current


def store(current: Current, code: bytes, vaddr: int, value: int) -> bool:
    current.domain.memory.write(CODE, code.ljust(16, b"\x90"))  # type: ignore[arg-type]
    current.cpu.rip = CODE
    current.cpu.regs[Reg.RDI], current.cpu.regs[Reg.RAX] = vaddr, value
    return emulate_store(current, vaddr)


def entry(current: Current) -> int:
    return current.domain.memory.table(L1)[SLOT]


def test_an_upper_half_that_fits_nothing_makes_the_entry_absent(current: Current) -> None:
    references = current.domain.frames.count[DATA >> 12]
    assert store(current, MOV, HIGH, 1)
    assert entry(current) == 1 << 32 | PTE & ~P
    assert current.domain.frames.count[DATA >> 12] == references - 1


@pytest.mark.parametrize("order", [(HIGH, LOW), (LOW, HIGH)])
def test_two_halves_make_an_entry_in_either_order(current: Current, order: tuple[int, int]) -> None:
    new = PTE + 0x1000
    for vaddr in order:
        assert store(current, MOV, vaddr, new >> 8 * (vaddr - LOW) & 0xFFFFFFFF)
    assert entry(current) == new


@pytest.mark.parametrize(
    ("code", "vaddr", "value"),
    [
        (XCHG, HIGH, 1),  # locked, in effect
        (LOCK_OR, HIGH, 1),
        (MOV, LOW, 0x7FFFF000 | P),  # a lower half
        (b"\xc6\x07\x01", HIGH, 0),  # a byte
        (MOV, LOW, L3 << 12 | P | RW),
    ],
)
def test_any_other_store_is_refused(current: Current, code: bytes, vaddr: int, value: int) -> None:
    counts = list(current.domain.frames.count)
    assert not store(current, code, vaddr, value)
    assert (entry(current), current.cpu.rip) == (PTE, CODE)
    assert list(current.domain.frames.count) == counts


def test_a_plain_read_and_write_counts_as_a_store(current: Current) -> None:
    assert store(current, OR, HIGH, 1)
    assert not entry(current) & P
