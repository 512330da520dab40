"""ORC entries of each kernel generation give the caller's registers, or say why there is none."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest

from elfwriter import Phdr, Shdr, elf
from xenemu import image
from xenemu.errors import XenError
from xenemu.image.orc import Frame, Orc, Reg, Stop, Type
from xenemu.image.symbols import load_symbols

TEXT = 0xFFFF_FFFF_8100_0000
TABLE = TEXT + 0x10_0000
STACK = 0xFFFF_C900_0000_0000
BODY = 64 + 56  # where the first segment's bytes lie in the file
UNDEFINED, PREV_SP, SP, BP, R10, BP_INDIRECT, SP_INDIRECT = range(7)


@dataclass(frozen=True)
class Generation:
    """A numbering of registers and types, and whether there is an .orc_header."""

    regs: tuple[int, ...]
    call: int
    regs_type: int
    iret: int
    bottom: int  # the type of an entry that ends the stack
    header: bool


GENERATIONS = {
    "5.10": Generation((0, 1, 5, 4, 6, 8, 9), 0, 1, 2, 0b0100, False),
    "6.3": Generation((0, 1, 5, 4, 6, 8, 9), 0, 1, 2, 0b1000, False),
    "6.4": Generation((0, 1, 5, 4, 6, 8, 9), 2, 3, 4, 1, True),
    "7.2": Generation((0, 8, 3, 4, 6, 10, 9), 2, 3, 4, 1, True),
}
every_generation = pytest.mark.parametrize("gen", GENERATIONS.values(), ids=GENERATIONS)


def build(gen, *entries):
    """Build an ELF with one stretch of 16 bytes for each (sp_offset, bp_offset, sp, bp, type).

    A common entry comes first, as in each real table, and the end of the code last.
    """
    rows = [(8, 0, SP, UNDEFINED, gen.call)] * 3 + list(entries) + [(0, 0, UNDEFINED, UNDEFINED, 0)]
    ips = b"".join(
        struct.pack("<i", TEXT + 16 * (i - 3) - (TABLE + 4 * i)) for i in range(len(rows))
    )
    table = b"".join(
        struct.pack("<hhH", so, bo, gen.regs[sp] | gen.regs[bp] << 4 | kind << 8)
        for so, bo, sp, bp, kind in rows
    )
    sections = [
        Shdr(".orc_unwind_ip", offset=BODY, size=len(ips)),
        Shdr(".orc_unwind", offset=BODY + len(ips), size=len(table)),
    ]
    if gen.header:
        sections.append(Shdr(".orc_header", bytes(20)))
    return elf([Phdr(ips + table, vaddr=TABLE)], sections)


def orc(gen, *entries):
    found = Orc(memoryview(build(gen, *entries)))
    assert len(found) == len(entries) + 4
    return found


def stack(**words):
    """Return a reader of a stack with the given words by offset, such as ``_10=1``."""
    memory = {STACK + int(name[1:], 16): value for name, value in words.items()}

    def read(vaddr, size):
        try:
            return struct.pack(f"<{size // 8}Q", *(memory[vaddr + i] for i in range(0, size, 8)))
        except KeyError as missing:
            raise XenError(14, "not mapped") from missing

    return read


@every_generation
def test_a_call_is_undone_by_sp(gen):
    read = stack(_18=TEXT + 5)
    caller = orc(gen, (0x20, 0, SP, UNDEFINED, gen.call)).unwind(Frame(TEXT, STACK, 7), read)
    assert caller == Frame(TEXT + 5, STACK + 0x20, 7, is_return=True)


@every_generation
def test_a_call_is_undone_by_bp(gen):
    read = stack(_10=0xB, _18=TEXT + 5)
    table = orc(gen, (16, -16, BP, PREV_SP, gen.call))
    caller = table.unwind(Frame(TEXT, STACK, STACK + 0x10), read)
    assert caller == Frame(TEXT + 5, STACK + 0x20, 0xB, is_return=True)


@every_generation
def test_sp_is_read_from_where_bp_points(gen):
    table = orc(gen, (-8, 0, BP_INDIRECT, BP, gen.call))
    read = stack(_0=STACK + 0x20, _8=0xB, _18=TEXT + 5)
    caller = table.unwind(Frame(TEXT, 0, STACK + 8), read)
    assert caller == Frame(TEXT + 5, STACK + 0x20, 0xB, is_return=True)


@every_generation
def test_a_stack_that_cannot_be_read_is_lost(gen):
    table = orc(gen, (0x20, -16, SP, PREV_SP, gen.call))
    assert table.unwind(Frame(TEXT, STACK, 7), stack(_18=TEXT + 5)) is Stop.LOST
    assert table.unwind(Frame(TEXT, STACK, 7), stack(_10=1)) is Stop.LOST


@every_generation
def test_an_indirect_sp_adds_its_offset_afterwards(gen):
    table = orc(gen, (8, 0, SP_INDIRECT, UNDEFINED, gen.call))
    read = stack(_0=STACK + 0x18, _18=TEXT + 5)
    assert table.unwind(Frame(TEXT, STACK, 7), read) == Frame(TEXT + 5, STACK + 0x20, 7, True)


def saved(cs):
    return stack(_20=0xB, _80=TEXT + 9, _88=cs, _90=0x202, _98=STACK + 0x400, _a0=0)


@every_generation
def test_saved_registers_are_where_a_trap_happened(gen):
    caller = orc(gen, (0, 0, SP, UNDEFINED, gen.regs_type)).unwind(Frame(TEXT, STACK, 7), saved(16))
    assert caller == Frame(TEXT + 9, STACK + 0x400, 0xB)


@every_generation
def test_an_iret_frame_leaves_bp(gen):
    table = orc(gen, (0x80, 0, SP, UNDEFINED, gen.iret))
    assert table.unwind(Frame(TEXT, STACK, 7), saved(16)) == Frame(TEXT + 9, STACK + 0x400, 7)


@every_generation
def test_user_mode_is_the_bottom(gen):
    table = orc(gen, (0, 0, SP, UNDEFINED, gen.regs_type))
    assert table.unwind(Frame(TEXT, STACK, 7), saved(0x33)) is Stop.BOTTOM


@every_generation
def test_the_first_frame_is_the_bottom(gen):
    table = orc(gen, (0, 0, UNDEFINED, UNDEFINED, gen.bottom))
    assert table.unwind(Frame(TEXT, STACK, 7), stack()) is Stop.BOTTOM


@every_generation
def test_other_registers_and_code_are_lost(gen):
    table = orc(gen, (0, 0, R10, UNDEFINED, gen.call), (8, 0, UNDEFINED, UNDEFINED, 0))
    read = stack(_0=TEXT + 5)
    for pc in (TEXT, TEXT + 16, TEXT + 32, TEXT - 0x1000, 1, 1 << 64):
        assert table.unwind(Frame(pc, STACK, 7), read) is Stop.LOST


@every_generation
def test_a_return_address_belongs_to_its_call(gen):
    read = stack(_0=TEXT + 5)
    table = orc(gen, (8, 0, SP, UNDEFINED, gen.call))
    assert isinstance(table.unwind(Frame(TEXT + 16, STACK, 7, is_return=True), read), Frame)
    assert table.unwind(Frame(TEXT + 16, STACK, 7), read) is Stop.LOST


def test_a_call_of_null_returns_to_its_caller():
    table = orc(GENERATIONS["6.4"])
    caller = table.unwind(Frame(0, STACK, 7), stack(_0=TEXT + 5))
    assert caller == Frame(TEXT + 5, STACK + 8, 7, is_return=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:BODY],
        lambda data: data.replace(b".orc_unwind_ip", b".orc_unwind_xx"),
        lambda data: data.replace(struct.pack("<QQ", BODY, 16), struct.pack("<QQ", BODY, 12)),
        lambda data: data.replace(struct.pack("<QQ", BODY, 16), struct.pack("<QQ", 1 << 60, 16)),
        lambda data: data.replace(struct.pack("<hhH", 8, 0, 0x205), bytes([8, 0, 0, 0, 0xE, 2])),
    ],
    ids=["empty", "truncated", "one table", "sizes differ", "beyond the file", "numbering"],
)
def test_unusable_tables_are_none(spoil):
    data = build(GENERATIONS["6.4"])
    assert spoil(data) != data
    assert len(Orc(memoryview(spoil(data)))) == 0


def test_debian_functions_start_with_a_return_address(guest_image):
    kernel = image.load(guest_image("debian-amd64"))
    table, symbols = Orc(kernel.elf), load_symbols(kernel.elf, kernel.segments)
    assert len(table) > 100_000
    for name in ("start_kernel", "panic", "schedule"):
        entry = table.find(symbols.address(name) or 0)
        assert entry is not None and entry.type is Type.CALL
        assert (entry.sp_reg, entry.sp_offset, entry.bp_reg) == (Reg.SP, 8, Reg.UNDEFINED)


@every_generation
def test_a_module_has_tables_of_its_own_in_its_kernels_numbering(gen):
    code, table = TEXT + 0x100000, TEXT + 0x200000
    ips = b"".join(struct.pack("<i", code + 16 * i - (table + 4 * i)) for i in range(3))
    call = struct.pack("<hhH", 0x20, 0, gen.regs[SP] | gen.regs[UNDEFINED] << 4 | gen.call << 8)
    kernel = orc(gen)
    module = kernel.of_module(table, ips, call * 3)
    found = module.unwind(Frame(code + 5, STACK, 7), stack(_18=TEXT + 5))
    assert found == Frame(TEXT + 5, STACK + 0x20, 7, is_return=True)
    assert [vaddr for vaddr, _ in module.rows()] == [code, code + 16, code + 32]
    assert module.find(TEXT) is None and kernel.find(code) is None
    assert len(kernel) == 4
