"""Where a Linux kernel's structs have their members, by its own type information.

A kernel with CONFIG_DEBUG_INFO_BTF has the section `.BTF`; kernels of distributions do. The section
has types by number. Each type has a kind, a name, and what belongs to the kind. The first question
reads only what leads to a member's offset. A loaded kernel has the section in its memory, too, from
`__start_BTF` to `__stop_BTF`.

Types of variables are there for those of each CPU. pahole writes others only if it is told to.

In Linux: Documentation/bpf/btf.rst, include/uapi/linux/btf.h
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Final

from xenemu.image.elf import Elf
from xenemu.records import dataclass

MAGIC: Final = 0xEB9F
HEADER: Final = struct.Struct("<HBBIIIII")  # magic, version, flags, sizes and offsets
TYPE: Final = struct.Struct("<III")  # name, info, size or type
MEMBER: Final = struct.Struct("<III")  # name, type, offset in bits
ARRAY: Final = struct.Struct("<III")  # type, index type, number of elements

WORD: Final = struct.Struct("<I")
DATASEC_ENTRY: Final = struct.Struct("<III")  # a variable, its offset and size
ENUM_ENTRY: Final = struct.Struct("<II")  # name, value
ENUM64_ENTRY: Final = struct.Struct("<III")

VOID: Final = 0
(INT, PTR, ARRAY_KIND, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC,
 FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64) = range(1, 20)  # fmt: skip
# What follows a type: bytes of the kind, and of each of the things that `info` counts.
FIXED: Final = {INT: 4, ARRAY_KIND: ARRAY.size, VAR: 4, DECL_TAG: 4}
EACH: Final = {
    **{STRUCT: MEMBER.size, UNION: MEMBER.size, ENUM: 8, FUNC_PROTO: 8},
    **{DATASEC: 12, ENUM64: 12},
}
SIZED: Final = {INT, STRUCT, UNION, ENUM, FLOAT, ENUM64}
ALIASES: Final = {TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG}
MAX_TYPES: Final = 1 << 20
MAX_DEPTH: Final = 32  # of aliases, and of structs without a name in each other
MAX_MEMBERS: Final = 1 << 16  # that are looked at for one place
MAX_NAME: Final = 256
PER_CPU: Final = ".data..percpu"  # the section of variables that each CPU has of its own
SIGNED, CHAR, BOOL = 1, 2, 4  # how an INT is meant
TAGS: Final = {STRUCT: "struct ", UNION: "union ", ENUM: "enum ", ENUM64: "enum ", FWD: "struct "}
TAGGED: Final = tuple(TAGS.values())
QUALIFIERS: Final = {VOLATILE: "volatile ", CONST: "const "}


@dataclass(frozen=True)
class Place:
    """Where a member is in its struct, and how much room it takes there; in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Type:
    """A type: its kind, its name, how many things it has, its size or what it is made from.

    `at` is where the rest of it begins; `has_bits` if offsets of members have bit fields' widths.
    """

    number: int
    kind: int
    name: str
    count: int
    has_bits: bool
    size: int
    at: int


@dataclass(frozen=True)
class Member:
    """A member of a struct: where it begins, in bits, and its width if it is a bit field, else 0.

    One without a name has members of its own, which are the struct's, too.
    """

    name: str
    type: int
    offset: int
    bits: int


class Unsound(Exception):
    """The section contradicts itself."""


class Btf:
    """The types of one kernel; if there is no section, or an unsound one, nothing is found."""

    def __init__(self, elf: Elf, loaded: bytes = b"") -> None:
        """Take the section of the kernel's file; without one, what lies where it was loaded."""
        self.width = elf.elf_class // 8
        self._types = self._strings = b""
        self._members: dict[int, list[Member]] = {}
        self._left = 0
        section = elf.section(".BTF")
        data = elf.view[section.offset :][: section.size] if section else memoryview(loaded)
        if len(data) < HEADER.size:
            return
        magic, _, _, header, types_at, types, strings_at, strings = HEADER.unpack_from(data)
        if magic == MAGIC:
            self._types = bytes(data[header + types_at :][:types])
            self._strings = bytes(data[header + strings_at :][:strings])

    def place(self, name: str, *path: str | int) -> Place | None:
        """Find a member of the struct `name`, or an element of an array.

        A member goes by its name, and an element by its number. A path of several steps leads to a
        member of a member. An empty path is the struct itself. None if there is no such thing.
        """
        number = self._structs.get(name)
        if number is None:
            return None
        offset, self._left = 0, MAX_MEMBERS
        try:
            for step in path:
                found = self._step(self.resolved(number), step)
                if found is None:
                    return None
                more, number = found
                offset += more
            return Place(offset, self.size(number))
        except (Unsound, struct.error):
            return None

    @cached_property
    def _offsets(self) -> list[int]:
        """Where each type is, by its number; number 0 is void."""
        offsets, at = [0], 0
        unpack, types = TYPE.unpack_from, self._types
        while at + TYPE.size <= len(types) and len(offsets) < MAX_TYPES:
            offsets.append(at)
            _, info, _ = unpack(types, at)
            kind = info >> 24 & 31
            at += TYPE.size + FIXED.get(kind, 0) + EACH.get(kind, 0) * (info & 0xFFFF)
        return offsets

    @cached_property
    def _structs(self) -> dict[str, int]:
        """The numbers of structs with a name; of several with one name, the first."""
        found: dict[str, int] = {}
        for number, at in enumerate(self._offsets[1:], 1):
            name, info, _ = TYPE.unpack_from(self._types, at)
            if info >> 24 & 31 == STRUCT and name:
                found.setdefault(self._string(name), number)
        return found

    # Types as such, for those who show values. All raise Unsound, or struct.error.

    def __bool__(self) -> bool:
        """Whether there are types."""
        return bool(self._types)

    @cached_property
    def _named(self) -> dict[str, int]:
        """The numbers of types by name, as C has it: `struct page`, `u64`."""
        found: dict[str, int] = {}
        for number in range(1, len(self._offsets)):
            one = self.type(number)
            if one.name and one.kind in (INT, FLOAT, TYPEDEF, STRUCT, UNION, ENUM, ENUM64):
                found.setdefault(TAGS.get(one.kind, "") + one.name, number)
        return found

    @cached_property
    def _variables(self) -> dict[str, tuple[int, bool]]:
        """The types of variables by name, and whether each CPU has its own."""
        per_cpu, found = set[int](), {}
        for number in range(1, len(self._offsets)):
            one = self.type(number)
            if one.kind == DATASEC and one.name == PER_CPU:
                words = DATASEC_ENTRY.iter_unpack(self._types[one.at :][: 12 * one.count])
                per_cpu |= {variable for variable, _, _ in words}
            elif one.kind == VAR:
                found[one.name] = number
        return {name: (self.type(n).size, n in per_cpu) for name, n in found.items()}

    def find(self, spelling: str) -> int | None:
        """The number of a type by its name in C; `struct` and `union` may be left out."""
        words = " ".join(spelling.replace("*", " * ").split())
        if words.endswith("*"):
            target = self.find(words.removesuffix("*"))
            pointers = (n for n in range(1, len(self._offsets)) if self.type(n).kind == PTR)
            return next((n for n in pointers if self.type(n).size == target), None)
        tags = ("", "struct ", "union ", "enum ")
        return next((n for tag in tags if (n := self._named.get(tag + words))), None)

    def names(self) -> Iterator[str]:
        """The names of all types, without `struct` and the like."""
        return (n.rpartition(" ")[2] if n.startswith(TAGGED) else n for n in self._named)

    def variable(self, name: str) -> tuple[int, bool] | None:
        """A variable's type, and whether each CPU has one of its own; None if nothing says so."""
        return self._variables.get(name)

    def type(self, number: int) -> Type:
        """A type by its number; 0 is void."""
        if number == 0:
            return Type(0, VOID, "void", 0, False, 0, 0)
        info, size, at = self._type(number)
        name = self._string(TYPE.unpack_from(self._types, at - TYPE.size)[0])
        return Type(number, info >> 24 & 31, name, info & 0xFFFF, bool(info >> 31), size, at)

    def members(self, number: int) -> list[Member]:
        """The members of a struct or union, in order."""
        if number not in self._members:
            self._members[number] = self._read_members(number)
        return self._members[number]

    def _read_members(self, number: int) -> list[Member]:
        one, found = self.type(number), list[Member]()
        for index in range(one.count):
            name, member, offset = MEMBER.unpack_from(self._types, one.at + index * MEMBER.size)
            bits = offset >> 24 if one.has_bits else 0
            offset &= 0xFFFFFF if one.has_bits else 0xFFFFFFFF
            found.append(Member(self._string(name), member, offset, bits))
        return found

    def member(self, number: int, name: str) -> Member | None:
        """A member by its name, also one of members without a name."""
        self._left = MAX_MEMBERS
        return self._member(number, name, 0)

    def _member(self, number: int, name: str, depth: int) -> Member | None:
        one = self.type(number)
        if one.kind not in (STRUCT, UNION) or depth > MAX_DEPTH:
            return None
        for member in self.members(number):
            self._left -= 1
            if self._left < 0:
                raise Unsound
            if member.name == name:
                return member
            if not member.name:
                inner = self._member(self.resolved(member.type), name, depth + 1)
                if inner is not None:
                    return replace(inner, offset=inner.offset + member.offset)
        return None

    def element(self, number: int) -> tuple[int, int]:
        """Of an array: its elements' type, and how many there are."""
        element, _, count = ARRAY.unpack_from(self._types, self.type(number).at)
        return element, count

    def integer(self, number: int) -> tuple[int, int, int]:
        """How an INT is meant (SIGNED and so on), where its bits begin, and how many they are."""
        (word,) = WORD.unpack_from(self._types, self.type(number).at)
        return word >> 24 & 15, word >> 16 & 255, word & 255

    def enumerators(self, number: int) -> dict[int, str]:
        """The names of an enumeration's values; of two for one value, the first."""
        one, found = self.type(number), dict[int, str]()
        form = ENUM64_ENTRY if one.kind == ENUM64 else ENUM_ENTRY
        for name, *words in form.iter_unpack(self._types[one.at :][: form.size * one.count]):
            value = sum(word << 32 * n for n, word in enumerate(words))
            bits = 32 * len(words)
            value -= (value >> bits - 1 << bits) if one.has_bits else 0  # which here says: signed
            found.setdefault(value, self._string(name))
        return found

    def spelling(self, number: int, depth: int = 0) -> str:
        """A type as C has it, an array as `char [16]`."""
        if depth > MAX_DEPTH:
            raise Unsound
        one = self.type(number)
        if one.kind == PTR:
            inner = self.spelling(one.size, depth + 1)
            return f"{inner}{'' if inner.endswith('*') else ' '}*"
        if one.kind == ARRAY_KIND:
            element, count = self.element(number)
            return f"{self.spelling(element, depth + 1)} [{count}]"
        if one.kind == FUNC_PROTO:
            return f"{self.spelling(one.size, depth + 1)} (...)"
        if one.kind in ALIASES and one.kind != TYPEDEF:
            return QUALIFIERS.get(one.kind, "") + self.spelling(one.size, depth + 1)
        return TAGS.get(one.kind, "") + (one.name or "{...}")

    def _string(self, at: int) -> str:
        return self._strings[at : at + MAX_NAME].partition(b"\0")[0].decode("latin-1")

    def _type(self, number: int) -> tuple[int, int, int]:
        """The `info` of a type, its size or type, and where the rest of it begins."""
        if not 0 < number < len(self._offsets):
            raise Unsound
        at = self._offsets[number]
        _, info, size = TYPE.unpack_from(self._types, at)
        return info, size, at + TYPE.size

    def resolved(self, number: int) -> int:
        """The number of the type that a typedef or a qualifier is for; Unsound."""
        for _ in range(MAX_DEPTH):
            info, target, _ = self._type(number)
            if info >> 24 & 31 not in ALIASES:
                return number
            number = target
        raise Unsound

    def _step(self, number: int, step: str | int) -> tuple[int, int] | None:
        """The offset in a type of a member or an element, and its type's number."""
        info, _, at = self._type(number)
        kind = info >> 24 & 31
        if isinstance(step, int):
            if kind != ARRAY_KIND:
                return None
            element, _, count = ARRAY.unpack_from(self._types, at)
            return (step * self.size(element), element) if step < count else None
        if kind not in (STRUCT, UNION):
            return None
        found = self.member(number, step)
        return (found.offset // 8, found.type) if found else None

    def size(self, number: int, depth: int = 0) -> int:
        """How many bytes a value of a type takes; Unsound."""
        number = self.resolved(number)
        info, size, at = self._type(number)
        kind = info >> 24 & 31
        if kind in SIZED:
            return size
        if kind == PTR:
            return self.width
        if kind == ARRAY_KIND and depth < MAX_DEPTH:
            element, _, count = ARRAY.unpack_from(self._types, at)
            return int(count) * self.size(element, depth + 1)
        raise Unsound
