"""pv/ptwr: stores to L1 tables, emulated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import CODE, KERNEL_ONLY, L1, L2, ROOT, FakeCpu, make_pv_current
from xenemu.abi.arch_x86.xen import FLAT_RING3_CS64
from xenemu.abi.xen import VMASST_TYPE_writable_pagetables
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pv.ptwr import OPERATIONS, Store, decode, emulate_store
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags
from xenemu.x86.flags import AF, CF, DF, OF, PF, SF, ZF
from xenemu.x86.paging import ADDR, RW, US, P

HANDLER, STACK, DATA = KERNEL_ONLY + 0x1234, 0x30000, 0x32000
SLOT = 200  # an unused entry of L1
ENTRY = (L1 << 12) + 8 * SLOT
PTE = DATA | P | RW | US
OLD = DATA | P | US  # the entry before


@pytest.fixture
def current() -> Current:
    current = make_pv_current()
    pv(current).traps.update({n: Trap(FLAT_RING3_CS64, HANDLER + n) for n in range(32)})
    current.cpu.regs[Reg.RSP] = STACK
    current.domain.vm_assist = 1 << VMASST_TYPE_writable_pagetables
    return current


def entry(current: Current, slot: int = SLOT) -> int:
    return current.domain.memory.table(L1)[slot]


def set_entry(current: Current, value: int) -> None:
    current.domain.frames.mod_entry(ENTRY, value, current.domain.domid)


def store(current: Current, code: bytes, vaddr: int = ENTRY, **regs: int) -> bool:
    current.domain.memory.write(CODE, code.ljust(16, b"\x90"))  # type: ignore[arg-type]
    current.cpu.rip = CODE
    for name, value in regs.items():
        current.cpu.regs[Reg[name]] = value
    return emulate_store(current, vaddr)


def stored(current: Current, code: bytes, vaddr: int = ENTRY, **regs: int) -> None:
    assert store(current, code, vaddr, **regs), current.domain.refusals
    assert current.cpu.rip == CODE + len(code)


def refused(current: Current, code: bytes, vaddr: int = ENTRY, **regs: int) -> None:
    frames = current.domain.frames
    current.read(CODE, 16)  # which sets accessed bits
    tables = bytes(current.domain.memory.bytes[ROOT << 12 : 21 << 12])
    counts = list(frames.count), list(frames.type_count)
    assert not store(current, code, vaddr, **regs)
    assert current.cpu.rip == CODE
    assert bytes(current.domain.memory.bytes[ROOT << 12 : 21 << 12]) == tables
    assert (list(frames.count), list(frames.type_count)) == counts


# Which stores.


MOV_RDI_RAX = b"\x48\x89\x07"


def test_a_store_takes_effect_with_its_references(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    before = current.domain.frames.count[DATA >> 12]
    stored(current, MOV_RDI_RAX, RDI=ENTRY, RAX=PTE)
    assert entry(current) & ~ADDR & 0xFFF & (P | RW | US) == P | RW | US
    assert current.domain.frames.count[DATA >> 12] == before + 1
    flushes = current.cpu.flushes
    stored(current, MOV_RDI_RAX, RDI=ENTRY, RAX=0)
    assert (entry(current), current.domain.frames.count[DATA >> 12]) == (0, before)
    assert current.cpu.flushes > flushes


@pytest.mark.parametrize("value", [L1 << 12 | P | RW, 9 << 12 | P, 0xFFFF << 12 | P])
def test_a_store_that_validation_refuses_is_not_made(current: Current, value: int) -> None:
    refused(current, MOV_RDI_RAX, RDI=ENTRY, RAX=value)
    assert "is refused" in current.domain.refusals[-1]


@pytest.mark.parametrize("table", [ROOT, L2])
def test_only_l1_tables_are_written(current: Current, table: int) -> None:
    vaddr = (table << 12) + 8 * SLOT
    refused(current, MOV_RDI_RAX, vaddr, RDI=vaddr, RAX=0)


@pytest.mark.parametrize("vaddr", [DATA, 1 << 21, 5 << 39])
def test_what_is_not_a_read_only_page_is_not_for_us(current: Current, vaddr: int) -> None:
    refused(current, MOV_RDI_RAX, vaddr, RDI=vaddr, RAX=0)


@pytest.mark.parametrize(
    "code",
    [
        b"\x48\x8b\x07",  # mov (%rdi), %rax: no store
        b"\x0f\x11\x07",  # movups: too wide
        b"\x48\x0f\xc7\x0f",  # cmpxchg16b
        b"\x48\xd1\x27",  # shl
        b"\x0f\x94\x07",  # sete
        b"\x8c\x1f",  # mov %ds, (%rdi)
        b"\x48\x39\x07",  # cmp: no store
        b"\x06\x06\x06",  # no instruction
    ],
)
def test_other_instructions_get_their_fault(current: Current, code: bytes) -> None:
    refused(current, code, RDI=ENTRY, RAX=0)


def test_a_store_that_straddles_entries_gets_its_fault(current: Current) -> None:
    refused(current, MOV_RDI_RAX, ENTRY + 4, RDI=ENTRY + 4, RAX=0)


def test_a_store_that_began_in_the_page_before_gets_its_fault(current: Current) -> None:
    refused(current, MOV_RDI_RAX, L1 << 12, RDI=(L1 << 12) - 4, RAX=0)


# Sizes.


@pytest.mark.parametrize(
    ("code", "offset", "value", "expected"),
    [
        (b"\x88\x07", 1, 0x2F, OLD & ~0xFF00 | 0x2F00),
        (b"\x66\x89\x07", 2, 0x3, OLD & ~0xFFFF0000 | 0x30000),
        (b"\x89\x07", 0, 0x23005, 0x23005),
        (b"\x89\x07", 4, 0x80000000, OLD | 1 << 63),
        (b"\x88\x27", 1, 0x2F00, OLD & ~0xFF00 | 0x2F00),  # %ah
    ],
)
def test_a_partial_store_keeps_the_rest(
    current: Current, code: bytes, offset: int, value: int, expected: int
) -> None:
    set_entry(current, OLD)
    vaddr = ENTRY + offset
    stored(current, code, vaddr, RDI=vaddr, RAX=0xFFFF_FFFF_0000_0000 | value)
    assert entry(current) & (ADDR | 1 << 63) == expected & (ADDR | 1 << 63)


def test_an_immediate_is_sign_extended(current: Current) -> None:
    stored(current, b"\x48\xc7\x07\xfe\xff\xff\xff", RDI=ENTRY)  # mov $-2
    assert entry(current) == (1 << 64) - 2


# Addresses.


@pytest.mark.parametrize(
    ("code", "regs"),
    [
        (b"\x48\x89\x44\xf7\x10", {"RDI": ENTRY - 0x10 - 80, "RSI": 10}),
        (b"\x49\x89\x44\x24\xf8", {"R12": ENTRY + 8}),
        (b"\x67\x48\x89\x07", {"RDI": 0xABCD_0000_0000 | ENTRY}),
        (b"\x48\x89\x04\x25" + ENTRY.to_bytes(4, "little"), {}),
        (b"\x48\xa3" + ENTRY.to_bytes(8, "little"), {}),
        (b"\x48\x89\x05" + (ENTRY - CODE - 7).to_bytes(4, "little", signed=True), {}),
    ],
    ids=["scaled", "r12", "addr32", "absolute", "moffs", "rip"],
)
def test_operands_are_where_the_cpu_has_them(
    current: Current, code: bytes, regs: dict[str, int]
) -> None:
    stored(current, code, **regs, RAX=PTE)
    assert entry(current) & ADDR == DATA


def test_fs_and_gs_have_bases(current: Current) -> None:
    current.cpu.set_segment(Seg.GS, Segment(0, ENTRY - 0x100))
    current.cpu.set_segment(Seg.DS, Segment(0, 0x999))
    stored(current, b"\x65\x48\x89\x07", RDI=0x100, RAX=PTE)
    stored(current, b"\x3e\x48\x89\x07", RDI=ENTRY, RAX=0)
    assert entry(current) == 0


# Instructions.


def test_exchange_returns_the_old_entry(current: Current) -> None:
    set_entry(current, OLD)
    old = entry(current)
    stored(current, b"\x48\x87\x07", RDI=ENTRY, RAX=0)
    assert (entry(current), current.cpu.regs[Reg.RAX]) == (0, old)


def test_a_32_bit_exchange_clears_the_upper_half(current: Current) -> None:
    set_entry(current, OLD)
    stored(current, b"\x87\x07", RDI=ENTRY, RAX=(1 << 64) - 1 & ~1)
    assert current.cpu.regs[Reg.RAX] >> 32 == 0


def test_exchange_and_add(current: Current) -> None:
    set_entry(current, 0x1000 << 1)
    stored(current, b"\xf0\x48\x0f\xc1\x07", RDI=ENTRY, RAX=0x10)
    assert (entry(current), current.cpu.regs[Reg.RAX]) == (0x2010, 0x2000)


def test_compare_and_exchange(current: Current) -> None:
    set_entry(current, 0x1000 << 1)
    stored(current, b"\xf0\x48\x0f\xb1\x0f", RDI=ENTRY, RAX=0x2000, RCX=PTE)
    assert entry(current) & ADDR == DATA
    assert current.cpu.rflags & ZF


def test_compare_and_exchange_that_does_not_match(current: Current) -> None:
    set_entry(current, 0x2000)
    stored(current, b"\xf0\x48\x0f\xb1\x0f", RDI=ENTRY, RAX=0x3000, RCX=PTE)
    assert (entry(current), current.cpu.regs[Reg.RAX]) == (0x2000, 0x2000)
    assert not current.cpu.rflags & ZF


@pytest.mark.parametrize("matches", [True, False])
def test_compare_and_exchange_8_bytes(current: Current, matches: bool) -> None:
    set_entry(current, 0x5_0000_2000)
    expected = {"RDX": 5, "RAX": 0x2000 if matches else 0x3000}
    current.cpu.rflags |= CF
    stored(current, b"\xf0\x0f\xc7\x0f", RDI=ENTRY, RCX=0, RBX=PTE, **expected)
    assert bool(current.cpu.rflags & ZF) is matches
    assert current.cpu.rflags & CF
    if matches:
        assert entry(current) & ADDR == DATA
    else:
        assert entry(current) == 0x5_0000_2000
        assert (current.cpu.regs[Reg.RDX], current.cpu.regs[Reg.RAX]) == (5, 0x2000)


def test_a_refused_exchange_leaves_the_registers(current: Current) -> None:
    set_entry(current, 0x2000)
    bad = L1 << 12 | P | RW
    refused(current, b"\x48\x87\x07", RDI=ENTRY, RAX=bad)
    refused(current, b"\x48\x0f\xb1\x0f", RDI=ENTRY, RAX=0x2000, RCX=bad)
    assert current.cpu.regs[Reg.RAX] == 0x2000


def test_a_bit_is_reset_as_write_protection_does(current: Current) -> None:
    set_entry(current, PTE)
    stored(current, b"\xf0\x48\x0f\xba\x37\x01", RDI=ENTRY)  # lock btr $1
    assert not entry(current) & RW
    assert current.cpu.rflags & CF


@pytest.mark.parametrize("offset", [64 * 3 + 5, -64 * 3 + 5])
def test_a_bit_offset_in_a_register_selects_the_word(current: Current, offset: int) -> None:
    base = ENTRY - 8 * (offset >> 6)
    stored(current, b"\x48\x0f\xab\x07", RDI=base, RAX=offset & (1 << 64) - 1)
    assert entry(current) == 1 << 5


@pytest.mark.parametrize(("direction", "step"), [(0, 8), (DF, -8)])
def test_a_repeated_store_goes_one_entry_at_a_time(
    current: Current, direction: int, step: int
) -> None:
    current.cpu.rflags |= direction
    assert store(current, b"\xf3\x48\xab", RDI=ENTRY, RAX=0x2000, RCX=2)
    regs = current.cpu.regs
    assert (current.cpu.rip, regs[Reg.RCX], regs[Reg.RDI]) == (CODE, 1, ENTRY + step)
    assert emulate_store(current, ENTRY + step)
    assert (current.cpu.rip, regs[Reg.RCX]) == (CODE + 3, 0)
    assert [entry(current, SLOT + n * step // 8) for n in range(2)] == [0x2000, 0x2000]


def test_a_string_move_reads_its_source(current: Current) -> None:
    current.write_uint(DATA, 8, 0x4000)
    stored(current, b"\x48\xa5", RDI=ENTRY, RSI=DATA)
    assert entry(current) == 0x4000
    assert current.cpu.regs[Reg.RSI : Reg.RDI + 1] == [DATA + 8, ENTRY + 8]


def test_a_source_that_is_not_mapped_faults(current: Current) -> None:
    assert store(current, b"\x48\xa5", RDI=ENTRY, RSI=1 << 21)
    assert (current.cpu.rip, pv(current).cr2) == (HANDLER + flags.PAGE_FAULT, 1 << 21)
    assert (entry(current), current.cpu.regs[Reg.RDI]) == (0, ENTRY)


def test_a_traced_store_is_followed_by_a_debug_trap(current: Current) -> None:
    current.cpu.rflags |= flags.TF
    assert store(current, MOV_RDI_RAX, RDI=ENTRY, RAX=0x2000)
    assert (current.cpu.rip, entry(current)) == (HANDLER + flags.DB, 0x2000)


@given(st.binary(max_size=15), st.booleans())
def test_any_bytes_decode_or_are_none(code: bytes, long_mode: bool) -> None:
    decoded = decode(code, long_mode)
    assert decoded is None or isinstance(decoded, Store)


@given(st.binary(min_size=2, max_size=15), st.integers(0, (1 << 64) - 1))
def test_any_store_is_made_or_refused(code: bytes, value: int) -> None:
    current = make_pv_current()
    pv(current).traps.update({n: Trap(FLAT_RING3_CS64, HANDLER + n) for n in range(32)})
    current.cpu.regs[:] = [value] * 16
    current.cpu.regs[Reg.RDI] = current.cpu.regs[Reg.RAX] = ENTRY
    current.cpu.regs[Reg.RSP] = STACK
    store(current, code)
    assert all(0 <= register < 1 << 64 for register in current.cpu.regs)


# Arithmetic, against a model that works on bits and signed numbers.

Expected = tuple[int, int]  # result, flags


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def model(mnemonic: str, a: int, b: int, bits: int, carry: int) -> Expected:
    """What the SDM says that an instruction does; `carry` is CF before."""
    mask = (1 << bits) - 1
    sign = {"add": 1, "xadd": 1, "adc": 1, "inc": 1, "sub": -1, "sbb": -1, "dec": -1, "neg": -1}
    seen = 0
    if mnemonic in sign:
        x, y = (0, a) if mnemonic == "neg" else (a, 1 if mnemonic in ("inc", "dec") else b)
        c = carry if mnemonic in ("adc", "sbb") else 0
        exact = x + sign[mnemonic] * (y + c)
        result = exact & mask
        whole = signed(x, bits) + sign[mnemonic] * (signed(y, bits) + c)
        nibble = (x & 15) + sign[mnemonic] * ((y & 15) + c)
        seen |= CF if not 0 <= exact <= mask else 0
        seen |= OF if whole != signed(result, bits) else 0
        seen |= AF if not 0 <= nibble <= 15 else 0
        if mnemonic in ("inc", "dec"):
            seen = seen & ~CF | carry
    else:
        result = {"and": a & b, "or": a | b, "xor": a ^ b}[mnemonic]
    seen |= ZF if result == 0 else 0
    seen |= SF if signed(result, bits) < 0 else 0
    seen |= PF if f"{result & 0xFF:b}".count("1") % 2 == 0 else 0
    return result, seen


ARITHMETIC = "add xadd adc inc sub sbb dec neg and or xor".split()


@given(st.data())
def test_arithmetic_agrees_with_the_model(data: st.DataObject) -> None:
    mnemonic = data.draw(st.sampled_from(ARITHMETIC))
    bits = data.draw(st.sampled_from([8, 16, 32, 64]))
    edges = st.sampled_from([0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, 15, 16])
    a = data.draw(edges | st.integers(0, (1 << bits) - 1))
    b = data.draw(edges | st.integers(0, (1 << bits) - 1))
    carry = data.draw(st.sampled_from([0, CF]))
    new, seen = OPERATIONS[mnemonic](a, b, bits, 0x202 | carry)
    assert (new & (1 << bits) - 1, seen) == model(mnemonic, a, b, bits, carry)


@given(
    st.sampled_from(["bts", "btr", "btc"]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 255),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([0, ZF | SF]),
)
def test_bit_instructions_change_one_bit(
    mnemonic: str, old: int, offset: int, bits: int, kept: int
) -> None:
    old &= (1 << bits) - 1
    new, seen = OPERATIONS[mnemonic](old, offset, bits, kept)
    changed = {"bts": "1", "btr": "0", "btc": "10"[int(f"{old:0{bits}b}"[::-1][offset % bits])]}
    digits = list(f"{old:0{bits}b}"[::-1])
    assert seen == kept | (CF if digits[offset % bits] == "1" else 0)
    digits[offset % bits] = changed[mnemonic]
    assert f"{new:0{bits}b}"[::-1] == "".join(digits)


@pytest.mark.parametrize("mnemonic", ["mov", "movnti", "xchg", "not", "stosq"])
def test_moves_leave_the_flags(mnemonic: str) -> None:
    everything = CF | PF | AF | ZF | SF | OF
    assert OPERATIONS[mnemonic](5, 7, 64, everything | 0x202)[1] == everything
