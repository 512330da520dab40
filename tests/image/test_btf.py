"""Members of structs are found by the kernel's own types; what contradicts itself finds nothing."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btfwriter import CONST, DATASEC, ENUM, FWD, UNION, VAR, Types, module_types
from elfwriter import KERNEL, Shdr, elf
from xenemu.image.btf import Btf, Place
from xenemu.image.elf import parse


def btf(data, bits=64):
    sections = [Shdr(".BTF", data if isinstance(data, bytes) else data.build())]
    return Btf(parse(memoryview(elf([KERNEL], sections, bits))))


def test_a_member_has_offset_and_size():
    types = Types()
    types.struct("one", 24, ("first", types.number(8), 0), ("second", types.number(2), 16))
    found = btf(types)
    assert found.place("one") == Place(0, 24)
    assert found.place("one", "second") == Place(16, 2)


@pytest.mark.parametrize(("bits", "size"), [(64, 8), (32, 4)])
def test_a_pointer_is_as_wide_as_the_kernel(bits, size):
    types = Types()
    types.struct("one", 16, ("at", types.pointer(), 8))
    assert btf(types, bits).place("one", "at") == Place(8, size)


def test_a_path_leads_through_structs_arrays_and_other_names():
    types = Types()
    inner = types.struct("inner", 16, ("x", types.number(4), 12))
    inner = types.alias(types.alias(inner, kind=CONST), "inner_t")
    types.struct("outer", 64, ("items", types.array(inner, 3), 8))
    found = btf(types)
    assert found.place("outer", "items") == Place(8, 48)
    assert found.place("outer", "items", 2, "x") == Place(8 + 32 + 12, 4)
    assert found.place("outer", "items", 3) is None


def test_members_of_what_has_no_name_are_the_structs_own():
    types = Types()
    union = types.struct("", 8, ("a", types.number(4), 0), ("b", types.number(8), 0), kind=UNION)
    nested = types.struct("", 16, ("", union, 8))
    types.struct("one", 32, ("", nested, 16))
    assert btf(types).place("one", "b") == Place(24, 8)


def test_a_struct_with_bit_fields_has_sizes_in_its_offsets():
    types = Types()
    types.struct("one", 8, ("flag", types.number(4), 4), bits=3)
    assert btf(types).place("one", "flag") == Place(4, 4)


def test_other_kinds_are_stepped_over():
    types = Types()
    types.add(ENUM, "e", 4, bytes(16), count=2)
    types.add(FWD, "f", 0)
    types.add(VAR, "v", 1, bytes(4))
    types.add(DATASEC, ".data", 8, bytes(24), count=2)
    types.struct("one", 8, ("x", types.number(8), 0))
    assert btf(types).place("one", "x") == Place(0, 8)


def test_what_is_not_there_is_none():
    types = Types()
    types.struct("one", 8, ("x", types.number(8), 0))
    found = btf(types)
    for path in (("two",), ("one", "y"), ("one", "x", "z"), ("one", 0), ("u64",)):
        assert found.place(*path) is None
    assert Btf(parse(memoryview(elf()))).place("one") is None
    assert btf(types.build(magic=0x9FEB)).place("one") is None
    assert btf(types.build()[:20]).place("one") is None


def test_types_that_never_end_find_nothing():
    types = Types()
    loop = types.alias(2)
    types.alias(1)
    types.struct("loop", 8, ("x", loop, 0))
    types.struct("own", 8, ("x", types.array(types.count + 1, 2), 0))
    array = types.count + 1
    types.array(array, 1 << 31)
    types.struct("endless", 8, ("x", array, 0))
    inner = types.count + 1
    types.struct("", 8, ("", inner, 0), ("", inner, 0))
    types.struct("nested", 8, ("", inner, 0))
    types.struct("void", 8, ("x", 0, 0))
    types.struct("far", 8, ("x", 1 << 31, 0))
    types.struct("opaque", 8, ("x", types.add(FWD, "f", 0), 0))
    found = btf(types)
    for name in ("loop", "own", "endless", "nested", "void", "far", "opaque"):
        assert found.place(name, "x") is None, name


def test_structs_in_each_other_end_however_many_there_are():
    """Each level has hundreds of members without a name, all of the level below."""
    types = Types()
    below = types.struct("", 8, ("x", types.number(8), 0))
    for _ in range(20):
        below = types.struct("", 8, *[("", below, 0)] * 300)
    types.struct("top", 8, ("", below, 0))
    assert btf(types).place("top", "y") is None


SOUND = module_types().build()


@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=8))
def test_damage_yields_a_place_or_none(edits):
    data = bytearray(SOUND)
    for at, value in edits:
        data[at] = value
    found = btf(bytes(data))
    for path in (("module", "mem", 1, "base"), ("module", "arch", "num_orcs"), ("task_struct",)):
        place = found.place(*path)
        assert place is None or (place.offset >= 0 and place.size >= 0)


def test_a_name_without_end_is_cut():
    types = Types()
    types.struct("one", 8, ("x", types.number(8), 0))
    data = bytearray(types.build())
    data[12:16] = struct.pack("<I", len(types.types))
    data[-1] = ord("x")
    assert btf(bytes(data)).place("one", "y") is None
