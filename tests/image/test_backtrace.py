"""A backtrace names what ORC or frame pointers prove, and marks what merely lies on the stack."""

from __future__ import annotations

import struct

import pytest

from elfwriter import Phdr, Shdr, elf
from xenemu.errors import XenError
from xenemu.image.backtrace import MAX_LINES, MAX_STACK, BacktraceLine, backtrace
from xenemu.image.orc import Orc
from xenemu.image.symbols import Symbols

TEXT = 0xFFFF_FFFF_8100_0000
STACK = 0xFFFF_C900_0000_0000
# Functions of 16 bytes. `spin` calls nothing; the others have a call that ends at +9.
SYMBOLS = Symbols(
    lambda: [
        (TEXT + 16 * i, name, True) for i, name in enumerate(("spin", "inner", "outer", "init"))
    ],
    [range(TEXT, TEXT + 64)],
)
CODE = bytes(16) + (b"\x90" * 4 + b"\xe8" + bytes(4) + b"\x90" * 7) * 3
INNER, OUTER, INIT = (TEXT + 16 * i + 9 for i in (1, 2, 3))


class Memory:
    """Guest memory: code, and a stack of words."""

    def __init__(self, *words, code=CODE, width=8, size=None):
        stack = struct.pack(f"<{len(words)}{'Q' if width == 8 else 'I'}", *words)
        self.parts = {STACK & (1 << 8 * width) - 1: stack, TEXT & (1 << 8 * width) - 1: code}

    def __call__(self, vaddr, size):
        for start, part in self.parts.items():
            if start <= vaddr and vaddr + size <= start + len(part):
                return part[vaddr - start :][:size]
        raise XenError(14, "not mapped")


def page(*words):
    """A stack as it is mapped: whole pages."""
    return Memory(*words, *[0] * (512 - len(words)))


def lines(read, orc=None, bp=0, symbols=SYMBOLS, **more):
    return [str(line) for line in backtrace(symbols, orc, TEXT + 4, STACK, bp, read, **more)]


def orc(*entries):
    """Build modern tables: for each function (sp_offset, flags), then the end of the code."""
    table = TEXT + 0x1000
    rows = [*entries, (0, 0)]
    ips = b"".join(struct.pack("<i", TEXT + 16 * i - table - 4 * i) for i in range(len(rows)))
    data = ips + b"".join(struct.pack("<hhH", offset, 0, flags) for offset, flags in rows)
    sections = [
        Shdr(".orc_unwind_ip", offset=120, size=len(ips)),
        Shdr(".orc_unwind", offset=120 + len(ips), size=len(data) - len(ips)),
        Shdr(".orc_header"),
    ]
    found = Orc(memoryview(elf([Phdr(data, vaddr=table)], sections)))
    assert len(found) == len(rows)
    return found


CALL_BY_SP, BOTTOM, UNKNOWN = 0x205, 0x100, 0


def test_orc_leads_to_the_bottom():
    table = orc((8, CALL_BY_SP), (16, CALL_BY_SP), (8, CALL_BY_SP), (0, BOTTOM))
    read = page(INNER, INIT, OUTER, INIT, OUTER)
    assert lines(read, table) == [
        "   spin+0x4/0x10",
        "   inner+0x9/0x10",
        "   outer+0x9/0x10",
        "   init+0x9/0x10",
    ]


def test_where_orc_ends_the_stack_is_searched():
    table = orc((8, CALL_BY_SP), (8, UNKNOWN), (8, CALL_BY_SP))
    assert lines(page(INNER, 5, OUTER), table) == [
        "   spin+0x4/0x10",
        "   inner+0x9/0x10",
        " ? outer+0x9/0x10",
    ]


def test_frame_pointers_are_followed_and_what_they_skip_is_marked():
    read = page(INNER, 0, STACK + 0x28, OUTER, 0, 0, INIT)
    assert lines(read, bp=STACK + 0x10) == [
        "   spin+0x4/0x10",
        " ? inner+0x9/0x10",
        "   outer+0x9/0x10",
        "   init+0x9/0x10",
    ]


@pytest.mark.parametrize("bp", [0, STACK - 16, STACK + 1, STACK + MAX_STACK, 0x4000, (1 << 64) - 8])
def test_an_implausible_frame_pointer_is_not_followed(bp):
    assert lines(page(0, INNER), bp=bp) == ["   spin+0x4/0x10", " ? inner+0x9/0x10"]


def test_only_what_follows_a_call_is_a_return_address():
    read = page(INNER - 1, INNER + 1, TEXT, 0, 1, (1 << 64) - 1, STACK, INNER)
    assert lines(read) == ["   spin+0x4/0x10", " ? inner+0x9/0x10"]


@pytest.mark.parametrize(
    "call",
    [
        *("ffd0", "ff10", "ff5008", "ff1424", "ff542408", "ff1578563412", "ff9078563412"),
        *("41ffd3", "ff94c078563412", "ff14c578563412", "ff142578563412", "e878563412"),
    ],
)
def test_every_near_call_counts(call):
    code = bytes.fromhex(call).rjust(16, b"\x90")
    assert lines(Memory(TEXT + 16, *[0] * 511, code=code)) == [
        "   spin+0x4/0x10",
        " ? spin+0x10/0x10",
    ]


@pytest.mark.parametrize("other", ["ffe0", "ff2424", "ff30", "ff142490", "ff509090", "e978563412"])
def test_other_instructions_do_not_count(other):
    code = bytes.fromhex(other).rjust(16, b"\x90")
    assert lines(Memory(TEXT + 16, *[0] * 511, code=code)) == ["   spin+0x4/0x10"]


def test_without_names_there_are_addresses():
    assert lines(page(INNER), symbols=Symbols()) == [f"   {TEXT + 4:#x}", f" ? {INNER:#x}"]


def test_a_stack_that_is_not_mapped_leaves_the_first_line():
    read = Memory()
    assert lines(read, bp=STACK) == ["   spin+0x4/0x10"]
    assert lines(read, orc((8, CALL_BY_SP)), bp=STACK) == ["   spin+0x4/0x10"]


def test_lines_are_bounded():
    read = page(*[INNER] * 512)
    assert len(lines(read)) == MAX_LINES
    assert len(lines(read, limit=1000)) == MAX_LINES
    assert len(lines(read, limit=3)) == 3


def test_the_stack_is_bounded():
    words = MAX_STACK // 8
    inside, outside = [0] * (words - 1) + [INNER], [0] * words + [INNER]
    assert len(lines(Memory(*inside, *[0] * 512))) == 2
    assert len(lines(Memory(*outside, *[0] * 511))) == 1


@pytest.mark.parametrize("width", [8, 4])
def test_wherever_the_stack_pointer_is_the_stack_is_bounded(width):
    """All memory is mapped, and no word in it is a return address."""
    top = 1 << 8 * width
    for base in (0, STACK % top, top // 2, top - MAX_STACK, top):
        for offset in range(-10, 10):
            sp, reads = (base + offset) % top, 0

            def read(vaddr, size, sp=sp):
                nonlocal reads
                reads += 1
                assert reads <= MAX_STACK // 128
                assert sp <= vaddr < vaddr + size <= min(sp + MAX_STACK, top)
                return bytes(size)

            for bp in (sp, sp + 1, 0, top - 1, top - width):
                reads = 0
                assert len(backtrace(SYMBOLS, None, TEXT, sp, bp, read, width=width)) == 1


def test_a_loop_of_frames_ends():
    forever = orc((0, CALL_BY_SP))
    read = Memory(TEXT + 8, *[0] * 511)
    read.parts[STACK - 8] = struct.pack("<Q", TEXT + 8)
    assert len(lines(read, forever)) == MAX_LINES


def test_32_bit_stacks_have_32_bit_words():
    text, stack = TEXT & 0xFFFF_FFFF, STACK & 0xFFFF_FFFF | 0xC000_0000
    read = Memory(0, 0, text + 25, 0, text + 41, *[0] * 1019, width=4)
    read.parts[stack] = read.parts.pop(STACK & 0xFFFF_FFFF)
    symbols = Symbols(lambda: [(text, "start", True)], [range(text, text + 64)])
    found = backtrace(symbols, None, text, stack, stack + 4, read, width=4)
    assert found == [
        BacktraceLine(text, "start+0x0/0x40"),
        BacktraceLine(text + 25, "start+0x19/0x40"),
        BacktraceLine(text + 41, "start+0x29/0x40", reliable=False),
    ]
