"""Modules are those of the kernel's list, by its own types, and no list makes them endless."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btfwriter import Types, module_types
from elfwriter import KERNEL, Shdr, elf
from xenemu.errors import XenError
from xenemu.image.btf import Btf
from xenemu.image.elf import parse
from xenemu.image.kernel_modules import MAX_MODULES, Modules
from xenemu.image.symbols import Symbols

HIGH = 0xFFFF_FFFF_8000_0000
HEAD, STRUCTS, TABLES, CODE = (HIGH + offset for offset in (0, 0x1000, 0x8000, 0x40000))
LIST, NAME, PARTS, KALLSYMS, ARCH = 8, 24, 96, 128, 136  # as btfwriter has them
LIVE, UNFORMED = 0, 3
TEXT, DATA = 0x2000, 0x1000  # sizes
EFAULT = 14


class Guest:
    """A kernel's memory, with a list of modules in it."""

    def __init__(self, layout="mem", types=None):
        self.layout, self.memory, self.reads = layout, bytearray(0x20000), 0
        self.nodes = []
        types = types or module_types(layout)
        sections = [Shdr(".BTF", types.build())]
        self.image = SimpleNamespace(
            elf_class=64,
            symbols=Symbols(lambda: [(HEAD, "modules", False)]),
            btf=Btf(parse(memoryview(elf([KERNEL], sections)))),
            orc=None,
        )
        self.modules = Modules(self.image, lambda: self.read)
        self.link()

    def read(self, vaddr, size):
        self.reads += 1
        at = vaddr - HIGH
        if not 0 <= at <= at + size <= len(self.memory):
            raise XenError(EFAULT, "not mapped")
        return bytes(self.memory[at : at + size])

    def write(self, vaddr, data):
        self.memory[vaddr - HIGH : vaddr - HIGH + len(data)] = data

    def words(self, vaddr, *values):
        self.write(vaddr, struct.pack(f"<{len(values)}Q", *values))

    def add(self, name, symbols=(), state=LIVE):
        """Load a module, with symbols of (name, offset in its code); its struct's address.

        nm's letter for them is t, unless a third says otherwise.
        """
        number = len(self.nodes)
        at, tables, code = (
            STRUCTS + number * 0x100,
            TABLES + number * 0x1000,
            CODE + number * 0x8000,
        )
        self.words(at, state)
        self.write(at + NAME, name.encode() if isinstance(name, str) else name)
        data = code + (TEXT if self.layout == "core_layout" else 0x4000)
        if self.layout == "mem":
            self.words(at + PARTS, code, TEXT, data, DATA)
        else:
            self.words(at + PARTS, code, TEXT << 32 | TEXT + DATA, 0, 0)
        strings, entries, letters = bytearray(1), bytearray(24), bytearray(b"?")
        for word, offset, *letter in symbols:
            letters += letter[0].encode() if letter else b"t"
            entries += struct.pack("<I2BHQQ", len(strings), 0, 0, 1, code + offset, 0)
            strings += word.encode() + b"\0"
        self.write(tables, entries)
        self.write(tables + 0x800, strings)
        self.write(tables + 0xE00, letters)
        self.words(tables + 0xF00, tables, len(letters), tables + 0x800, tables + 0xE00)
        self.words(at + KALLSYMS, tables + 0xF00)
        self.nodes.insert(0, at + LIST)
        self.link()
        return at

    def link(self):
        ring = [HEAD, *self.nodes]
        for node, following in zip(ring, [*ring[1:], HEAD], strict=True):
            self.words(node, following)

    def names(self):
        return [module.name for module in self.modules.loaded()]


@pytest.fixture(params=["mem", "core_layout"])
def guest(request):
    return Guest(request.param)


def test_the_newest_is_first(guest):
    assert guest.names() == []
    guest.add("one")
    guest.add("two")
    assert guest.names() == ["two", "one"]


def test_an_address_has_its_modules_name(guest):
    guest.add("one", [("start", 0), ("next", 0x10)])
    found = guest.modules.find(CODE + 0x12)
    assert found.format(CODE + 0x12) == f"next+0x2/{TEXT - 0x10:#x} [one]"
    assert found.format(CODE + 0x10, is_return=True) == "start+0x10/0x10 [one]"
    assert found.symbols.address("next") == CODE + 0x10


def test_what_is_code_is_known(guest):
    guest.add("one", [("start", 0, "T"), ("weak", 1, "w"), ("table", 2, "d"), ("object", 3, "V")])
    (module,) = guest.modules.loaded()
    assert [is_code for _, _, is_code in module.symbols.items()] == [True, True, False, False]


def test_code_and_data_are_parts_of_their_own(guest):
    guest.add("one", [("start", 0)])
    (module,) = guest.modules.loaded()
    assert [len(part) for part in module.parts] == [TEXT, DATA]
    data = module.parts[1].start
    assert module.format(data) == f"{data:#x} [one]"


@pytest.mark.parametrize("vaddr", [0x1000, CODE - 1, CODE + 0x7000, (1 << 64) - 1])
def test_other_addresses_are_in_no_module(guest, vaddr):
    guest.add("one", [("start", 0)])
    assert guest.modules.find(vaddr) is None


def test_a_programs_address_costs_nothing(guest):
    guest.add("one")
    before = guest.reads
    assert guest.modules.find(0x401000) is None
    assert guest.reads == before


def test_a_module_that_is_not_formed_is_none(guest):
    guest.add("one")
    guest.add("two", state=UNFORMED)
    assert guest.names() == ["one"]


def test_what_is_loaded_later_is_seen_and_nothing_is_read_twice(guest):
    guest.add("one", [("start", 0)])
    (first,) = guest.modules.loaded()
    reads = guest.reads
    assert guest.modules.loaded() == (first,)
    assert guest.reads == reads + 1
    guest.add("two")
    assert guest.names() == ["two", "one"]


def test_names_that_are_none_are_left_out(guest):
    wrong = [("", 1), (".Lpart", 2), ("L0\1", 3), ("bell\a", 4), ("outside", 0x10000), ("fine", 5)]
    guest.add("one", wrong)
    (module,) = guest.modules.loaded()
    assert list(module.symbols.items()) == [(CODE + 5, "fine", True)]


def test_a_modules_name_cannot_drive_a_terminal(guest):
    guest.add(b"a\x1b[2J")
    assert guest.names() == [r"a\x1b[2J"]


def test_a_list_in_a_circle_ends(guest):
    at = guest.add("one")
    guest.words(at + LIST, at + LIST)
    assert guest.names() == ["one"]


def test_a_list_without_end_ends(guest):
    guest.memory = bytearray(0x100000)
    at = HIGH + 0x1000
    for _ in range(MAX_MODULES + 10):
        guest.words(at + LIST, at + 64 + LIST)
        at += 64
    guest.words(HEAD, HIGH + 0x1000 + LIST)
    assert len(guest.modules.loaded()) == MAX_MODULES


def test_a_list_that_leads_nowhere_is_no_list(guest):
    at = guest.add("one")
    for pointer in (0, 1, (1 << 64) - 8, HIGH + (1 << 30)):
        guest.words(at + LIST, pointer)
        assert Modules(guest.image, lambda: guest.read).loaded() == ()


def test_while_the_kernel_is_not_mapped_the_last_list_holds(guest):
    guest.add("one", [("start", 0)])
    assert guest.names() == ["one"]
    guest.memory = bytearray()
    assert guest.names() == ["one"]
    assert guest.modules.find(CODE).format(CODE) == f"{CODE:#x} [one]"  # names were never read


def test_a_kernel_without_types_or_list_has_no_modules(guest):
    guest.add("one")
    for image in (
        Guest(types=Types()).image,
        SimpleNamespace(**{**vars(guest.image), "symbols": Symbols()}),
    ):
        assert Modules(image, lambda: guest.read).loaded() == ()


@given(st.lists(st.tuples(st.integers(0x1000, 0x9FFF), st.integers(0, 255)), max_size=12))
def test_damage_yields_modules_or_none(edits):
    guest = Guest()
    guest.add("one", [("start", 0)])
    guest.add("two", [("end", 4)])
    for at, value in edits:
        guest.memory[at] = value
    assert all(name.isprintable() for name in guest.names())
    for vaddr in (CODE, CODE + 4, CODE + 0x8000):
        module = guest.modules.find(vaddr)
        assert module is None or module.format(vaddr).isprintable()
