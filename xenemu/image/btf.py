"""Where a Linux kernel's structs have their members, by its own type information.

A kernel with CONFIG_DEBUG_INFO_BTF has the section `.BTF`; kernels of distributions do. The section
has types by number. Each type has a kind, a name, and what belongs to the kind. The first question
reads only what leads to a member's offset.

In Linux: Documentation/bpf/btf.rst, include/uapi/linux/btf.h
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import Final

from xenemu.image.elf import Elf
from xenemu.records import dataclass

MAGIC: Final = 0xEB9F
HEADER: Final = struct.Struct("<HBBIIIII")  # magic, version, flags, sizes and offsets
TYPE: Final = struct.Struct("<III")  # name, info, size or type
MEMBER: Final = struct.Struct("<III")  # name, type, offset in bits
ARRAY: Final = struct.Struct("<III")  # type, index type, number of elements

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


@dataclass(frozen=True)
class Place:
    """Where a member is in its struct, and how much room it takes there; in bytes."""

    offset: int
    size: int


class _Unsound(Exception):
    """The section contradicts itself."""


class Btf:
    """The types of one kernel; if there is no section, or an unsound one, nothing is found."""

    def __init__(self, elf: Elf) -> None:
        self._width = elf.elf_class // 8
        self._types = self._strings = b""
        self._left = 0
        section = elf.section(".BTF")
        if section is None:
            return
        data = elf.view[section.offset :][: section.size]
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
                found = self._step(self._resolved(number), step)
                if found is None:
                    return None
                more, number = found
                offset += more
            return Place(offset, self._size(number))
        except (_Unsound, struct.error):
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

    def _string(self, at: int) -> str:
        return self._strings[at : at + MAX_NAME].partition(b"\0")[0].decode("latin-1")

    def _type(self, number: int) -> tuple[int, int, int]:
        """The `info` of a type, its size or type, and where the rest of it begins."""
        if not 0 < number < len(self._offsets):
            raise _Unsound
        at = self._offsets[number]
        _, info, size = TYPE.unpack_from(self._types, at)
        return info, size, at + TYPE.size

    def _resolved(self, number: int) -> int:
        """The number of the type that a typedef or a qualifier is for."""
        for _ in range(MAX_DEPTH):
            info, target, _ = self._type(number)
            if info >> 24 & 31 not in ALIASES:
                return number
            number = target
        raise _Unsound

    def _step(self, number: int, step: str | int, depth: int = 0) -> tuple[int, int] | None:
        """The offset in a type of a member or an element, and its type's number."""
        info, _, at = self._type(number)
        kind = info >> 24 & 31
        if isinstance(step, int):
            if kind != ARRAY_KIND:
                return None
            element, _, count = ARRAY.unpack_from(self._types, at)
            return (step * self._size(element), element) if step < count else None
        if kind not in (STRUCT, UNION) or depth > MAX_DEPTH:
            return None
        bits = 0xFFFFFF if info >> 31 else 0xFFFFFFFF  # else with the size of a bit field
        for index in range(info & 0xFFFF):
            self._left -= 1
            if self._left < 0:
                raise _Unsound
            name, member, offset = MEMBER.unpack_from(self._types, at + index * MEMBER.size)
            offset = (offset & bits) // 8
            if name and self._string(name) == step:
                return offset, member
            if not name:
                inner = self._step(self._resolved(member), step, depth + 1)
                if inner is not None:
                    return offset + inner[0], inner[1]
        return None

    def _size(self, number: int, depth: int = 0) -> int:
        number = self._resolved(number)
        info, size, at = self._type(number)
        kind = info >> 24 & 31
        if kind in SIZED:
            return size
        if kind == PTR:
            return self._width
        if kind == ARRAY_KIND and depth < MAX_DEPTH:
            element, _, count = ARRAY.unpack_from(self._types, at)
            return int(count) * self._size(element, depth + 1)
        raise _Unsound
