"""Values by a kernel's types: numbers, text, bit fields, pointers, and how a person sees them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btfwriter import ENUM, UNION, Types
from elfwriter import KERNEL, Shdr, elf
from xenemu.abi.errno import EFAULT
from xenemu.errors import NoSuchName, Unmapped, UsageError, XenError
from xenemu.image.btf import FUNC_PROTO, Btf
from xenemu.image.elf import parse
from xenemu.image.values import MAX_LINES, MAX_SHOWN, Value

INT, PTR, FLOAT, ENUM64 = 1, 2, 16, 19
SIGNED, CHAR, BOOL = 1, 2, 4


def number(types, name, size, how=0, bits=None, low=0):
    word = how << 24 | low << 16 | (8 * size if bits is None else bits)
    return types.add(INT, name, size, struct.pack("<I", word))


def value(types, name, memory, at=0):
    def read(vaddr, size):
        if not 0 <= vaddr <= len(memory) - size:
            raise XenError(EFAULT, f"{vaddr:#x} is not mapped")
        return memory[vaddr : vaddr + size]

    data = types if isinstance(types, bytes) else types.build()
    btf = Btf(parse(memoryview(elf([KERNEL], [Shdr(".BTF", data)], 64))))
    found = btf.find(name)
    assert found is not None
    return Value(btf, read, found, at)


def test_numbers_are_what_c_has():
    types = Types()
    members = [
        ("a", number(types, "int", 4, SIGNED), 0),
        ("b", number(types, "unsigned int", 4), 0),
        ("c", number(types, "bool", 1, BOOL), 4),
        ("d", types.add(FLOAT, "double", 8), 8),
        ("e", types.array(number(types, "char", 1, SIGNED), 8), 16),
    ]
    types.struct("s", 24, *members)
    memory = b"\xfe\xff\xff\xff\x01\0\0\0" + struct.pack("<d", 1.5) + b"ab\0cdefg"
    found = value(types, "s", memory)
    assert [found.member(n).plain() for n in "abcde"] == [-2, 0xFFFFFFFE, True, 1.5, "ab"]
    assert found.plain() is None
    assert found.lines() == [
        *("{", "  a = -2", "  b = 4294967294", "  c = true", "  d = 1.5", '  e = "ab"', "}")
    ]


def test_bit_fields_of_both_forms():
    new = Types()
    new.struct("s", 4, ("a", number(new, "unsigned int", 4), 0), bits=3)
    assert int(value(new, "s", b"\xff\xff\0\0").member("a")) == 7
    old = Types()
    old.struct("s", 4, ("a", number(old, "int", 4, SIGNED, bits=3, low=2), 0))
    assert int(value(old, "s", b"\x14\0\0\0").member("a")) == -3


@pytest.mark.parametrize("size", [0, 17, 1 << 31])
def test_a_number_of_absurd_size_is_not_read(size):
    types = Types()
    number(types, "int", size, bits=32)
    types.add(ENUM, "e", size)
    for name in ("int", "enum e"):
        with pytest.raises(UsageError, match="contradict themselves"):
            int(value(types, name, bytes(32)))


def test_enumerators_have_names():
    types = Types()
    words = struct.pack("<IiIi", types.string("NONE"), 0, types.string("BAD"), -1)
    types.types += struct.pack("<III", types.string("e"), 1 << 31 | ENUM << 24 | 2, 4) + words
    types.count += 1
    found = value(types, "enum e", b"\xff\xff\xff\xff\0\0\0\0\5\0\0\0")
    assert (int(found), found.enumerator, found.lines()) == (-1, "BAD", ["BAD"])
    assert value(types, "e", bytes([5, 0, 0, 0])).lines() == ["5"]
    wide = Types()
    wide.add(ENUM64, "w", 8, struct.pack("<III", wide.string("HIGH"), 0, 1), count=1)
    assert value(wide, "w", b"\0\0\0\0\1\0\0\0").enumerator == "HIGH"


def test_a_pointer_leads_on_by_member_and_by_index():
    types = Types()
    inner = types.struct("inner", 8, ("x", number(types, "int", 4, SIGNED), 4))
    types.struct("s", 16, ("p", types.add(PTR, "", inner), 0), ("q", types.pointer(), 8))
    memory = struct.pack("<QQ", 16, 0) + struct.pack("<iiii", 1, 2, 3, 4)
    found = value(types, "s", memory)
    pointer = found.member("p")
    assert (pointer.spelling, pointer.names()) == ("struct inner *", ["x"])
    assert (pointer.member("x").plain(), pointer.element(1).member("x").plain()) == (2, 4)
    assert pointer.lines(lambda address, is_code: "" if is_code else "name") == ["0x10 <name>"]
    assert found.member("q").lines() == ["NULL"]
    with pytest.raises(Unmapped, match=r"^the void \* at 0x8 is NULL$"):
        found.member("q").target()
    with pytest.raises(UsageError):
        int(found)


def test_a_pointer_to_a_pointer_has_no_members():
    types = Types()
    inner = types.struct("inner", 4, ("x", types.number(4), 0))
    types.alias(types.add(PTR, "", types.add(PTR, "", inner)), "far_t")
    types.alias(types.add(PTR, "", types.count + 1), "own_t")  # which leads to itself
    with pytest.raises(NoSuchName, match=r"^far_t leads to no struct, and has no member 'x'$"):
        value(types, "far_t", b"\1" + bytes(15)).member("x")
    with pytest.raises(UsageError):
        value(types, "own_t", b"\1" + bytes(15)).element(0).member("x")


def test_members_of_what_has_no_name_are_shown_as_such():
    types = Types()
    union = types.struct(
        "", 4, ("a", types.number(4), 0), ("b", number(types, "u8", 1), 0), kind=UNION
    )
    types.struct("s", 8, ("n", types.number(4), 0), ("", union, 4))
    found = value(types, "s", bytes([1, 0, 0, 0, 2, 3, 0, 0]))
    assert found.names() == ["n", "a", "b"]
    assert found.lines() == [
        *("{", "  n = 1", "  {", "    a = 770", "    b = 2", "  }", "}"),
    ]


def test_long_arrays_are_cut_and_flexible_ones_have_no_end():
    types = Types()
    half = types.number(4)
    types.struct("s", 80, ("a", types.array(half, 20), 0), ("b", types.array(half, 0), 80))
    found = value(types, "s", bytes(84))
    assert found.lines()[-4:] == ["    ... (4 more)", "  }", "  b = {}", "}"]
    assert found.member("b").element(0).plain() == 0
    with pytest.raises(NoSuchName):
        found.member("a").element(20)


def test_what_is_not_mapped_is_shown_in_its_place():
    types = Types()
    types.struct("s", 16, ("a", types.number(8), 0), ("b", types.number(8), 8))
    assert value(types, "s", bytes(8)).lines() == ["{", "  a = 0", "  b = <not mapped>", "}"]


def test_what_is_not_mapped_at_all_is_one_line():
    types = Types()
    inner = types.struct("inner", 8, ("x", types.number(8), 0))
    types.struct("s", 8192, ("a", inner, 0), ("b", types.array(inner, 500), 4096))
    assert value(types, "s", b"").lines() == ["<not mapped>"]
    assert value(types, "s", bytes(8)).lines() == [
        *("{", "  a = {", "    x = 0", "  }", "  b = <not mapped>", "}")
    ]
    types.struct("none", 0)
    assert value(types, "none", b"").lines() == ["{}"]
    types.struct("vast", 1 << 31, ("x", types.number(8), 0))
    assert value(types, "vast", b"").lines() == ["{", "  x = <not mapped>", "}"]


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"console=hvc0\0rest", ' "console=hvc0"'),
        (b"\0", ' ""'),
        (b'a "b"\n\0', r' "a \"b\"\x0a"'),
        (b"\1\2\3\0", ""),
        (b"caf\xe9\0", ""),
        (b"it has no end", ""),
        (b"a" * MAX_SHOWN + b"b\0", f' "{"a" * MAX_SHOWN}"...'),
    ],
)
def test_a_pointer_to_letters_shows_the_string(data, shown):
    types = Types()
    letter = number(types, "char", 1)
    types.struct("s", 8, ("p", types.add(PTR, "", types.alias(letter, "", 10)), 0))
    memory = struct.pack("<Q", 8) + data + bytes(MAX_SHOWN) * (b"\0" in data)
    assert value(types, "s", memory).member("p").lines() == [f"0x8{shown}"]
    assert value(types, "s", struct.pack("<Q", 99)).member("p").lines() == ["0x63"]


def test_a_pointer_to_code_is_named_as_such():
    types = Types()
    code = types.add(FUNC_PROTO, "", 0)
    types.struct("s", 8, ("p", types.add(PTR, "", code), 0))
    found = value(types, "s", struct.pack("<Q", 16)).member("p")
    assert found.lines(lambda address, is_code: f"{address} {is_code}") == ["0x10 <16 True>"]


def test_structs_in_each_other_are_cut():
    types = Types()
    below = types.struct("", 0, ("x", types.number(4), 0))
    for _ in range(10):
        below = types.struct("", 0, *[("y", below, 0)] * 10)
    types.struct("s", 8, ("y", below, 0))
    lines = value(types, "s", bytes(8)).lines()
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "... (ask for a member)"


def test_types_are_spelled_as_in_c():
    types = Types()
    letter = number(types, "char", 1)
    constant = types.alias(letter, "", 10)
    text = types.add(PTR, "", constant)
    types.add(PTR, "", text)
    types.alias(types.array(letter, 4), "name_t")
    one = value(types, "char", b"a")
    assert one.types.spelling(text) == "const char *"
    assert one.types.spelling(text + 1) == "const char **"
    assert one.types.find("name_t *") is None
    assert one.types.find("nope *") is None
    assert value(types, "name_t", b"ab\0c").plain() == "ab"


def _sound():
    types = Types()
    letters = types.array(number(types, "char", 1), 8)
    words = struct.pack("<II", types.string("ONE"), 1)
    enum = types.add(ENUM, "e", 4, words, count=1)
    inner = types.struct("inner", 16, ("e", enum, 0), ("p", types.add(PTR, "", 6), 8))
    types.struct("s", 48, ("a", letters, 0), ("in", types.array(inner, 2), 8))
    return types.build()


SOUND = _sound()


@given(st.lists(st.tuples(st.integers(4, len(SOUND) - 1), st.integers(0, 255)), max_size=6))
def test_damage_is_told_in_a_sentence(edits):
    data = bytearray(SOUND)
    for at, byte in edits:
        data[at] = byte

    def short(at, size):
        assert size <= 1 << 16
        return bytes(size)

    btf = Btf(parse(memoryview(elf([KERNEL], [Shdr(".BTF", bytes(data))], 64))))
    for number in range(8):
        found = Value(btf, short, number, 0)
        try:
            found.lines()
            found.names()
            assert isinstance(found.spelling, str)
            found.member("a").element(0).plain()
        except UsageError as error:
            assert "\n" not in str(error)
