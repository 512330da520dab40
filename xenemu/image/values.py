"""Values in a guest's memory, by the types of its kernel.

A value is a type and an address. Nothing is read before somebody asks what is there. All that a
guest has may be damaged, so a walk from value to value has a limit, which its reader sets.

In Linux: Documentation/bpf/btf.rst
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Final

from xenemu.errors import NoSuchName, Unmapped, UsageError, XenError, meant
from xenemu.image.btf import (
    ARRAY_KIND,
    BOOL,
    CHAR,
    ENUM,
    ENUM64,
    FLOAT,
    FUNC_PROTO,
    INT,
    PTR,
    SIGNED,
    STRUCT,
    UNION,
    Btf,
    Type,
    Unsound,
)
from xenemu.image.orc import Read
from xenemu.records import dataclass

MAX_ELEMENTS: Final = 16  # of an array that is shown
MAX_LINES: Final = 2000  # of a value that is shown
MAX_TEXT: Final = 4096  # bytes of a string
MAX_SHOWN: Final = 200  # bytes of one that a pointer leads to
MAX_PAGES: Final = 64  # of a value, that are tried
PAGE: Final = 4096
NOT_MAPPED: Final = "<not mapped>"
MAX_NUMBER: Final = 16  # bytes of one
MAX_DEPTH: Final = 16
AGGREGATES: Final = (STRUCT, UNION, ARRAY_KIND)
FLOATS: Final = {4: "<f", 8: "<d"}

Plain = int | float | bool | str | None
Name = Callable[[int, bool], str]  # an address, if it is of code, by name; empty if it has none


@contextmanager
def told() -> Iterator[None]:
    """Make one sentence of what is wrong with types or with memory: UsageError, Unmapped."""
    try:
        yield
    except (Unsound, struct.error):
        raise UsageError("the kernel's own types (BTF) contradict themselves") from None
    except XenError as error:
        raise Unmapped(error.reason) from None


@dataclass(frozen=True)
class Value:
    """What is at an address, by its type; a bit field begins `bit` bits after the address.

    `read` reads the guest's memory: XenError where nothing is mapped. What cannot be had is told by
    NoSuchName (no member, no element), Unmapped, or another UsageError.
    """

    types: Btf
    read: Read
    number: int
    at: int
    bit: int = 0
    bits: int = 0

    @cached_property
    def type(self) -> Type:
        """Its type, past all typedefs and qualifiers."""
        with told():
            return self.types.type(self.types.resolved(self.number) if self.number else 0)

    @property
    def spelling(self) -> str:
        """Its type, as C has it."""
        with told():
            return self.types.spelling(self.number)

    @property
    def size(self) -> int:
        """Its bytes."""
        with told():
            return self.types.size(self.number)

    # From value to value.

    def member(self, name: str) -> Value:
        """A member of a struct, or of the struct that a pointer leads to."""
        if self.type.kind == PTR:
            target = self.target()
            if target.type.kind == PTR:
                raise NoSuchName(f"{self.spelling} leads to no struct, and has no member {name!r}")
            return target.member(name)
        with told():
            found = self.types.member(self.type.number, name)
        if found is None:
            hint = meant(name, self.names())
            raise NoSuchName(f"{self.spelling} has no member {name!r}{hint}")
        at, bit = divmod(found.offset, 8)
        with told():
            kind = self.types.type(self.types.resolved(found.type))
            if kind.kind == INT and not found.bits:  # bit fields, as they once were told
                _, low, bits = self.types.integer(kind.number)
                if bits != 8 * kind.size:
                    return Value(self.types, self.read, found.type, self.at + at, bit + low, bits)
        return Value(self.types, self.read, found.type, self.at + at, bit, found.bits)

    def element(self, index: int) -> Value:
        """An element of an array, or the one that is so far from where a pointer leads to."""
        with told():
            if self.type.kind == PTR:
                base, number = int(self), self.type.size
            elif self.type.kind == ARRAY_KIND:
                base, (number, count) = self.at, self.types.element(self.type.number)
                if not 0 <= index < count and count:  # one of none is a flexible array's
                    raise NoSuchName(f"{self.spelling} has no element {index}")
            else:
                raise NoSuchName(f"{self.spelling} is no array")
            return Value(self.types, self.read, number, base + index * self.types.size(number))

    def target(self) -> Value:
        """What a pointer leads to."""
        if self.type.kind != PTR:
            raise NoSuchName(f"{self.spelling} is no pointer")
        address = int(self)
        if not address:
            raise Unmapped(f"the {self.spelling} at {self.at:#x} is NULL")
        return Value(self.types, self.read, self.type.size, address)

    def names(self) -> list[str]:
        """The names of the members, with those of members without a name, through a pointer, too.

        Empty for what has none.
        """
        with told():
            leads = self.is_pointer and self.type.size  # else to nothing, as a void * does
            number = self.types.resolved(self.type.size) if leads else self.type.number
            return list(self._names(number, 0))

    @property
    def is_pointer(self) -> bool:
        """Whether it leads to another value."""
        return self.type.kind == PTR

    def _names(self, number: int, depth: int) -> Iterator[str]:
        if self.types.type(number).kind not in (STRUCT, UNION) or depth > MAX_DEPTH:
            return
        for member in self.types.members(number):
            if member.name:
                yield member.name
            else:
                yield from self._names(self.types.resolved(member.type), depth + 1)

    # What it is.

    def __int__(self) -> int:
        """A number, an enumerator or a pointer, as a number."""
        kind = self.type
        if kind.kind not in (INT, ENUM, ENUM64, PTR):
            raise UsageError(f"{self.spelling} is no number")
        with told():
            size = self.types.size(self.type.number)
            if not 0 < size <= MAX_NUMBER:
                raise Unsound
            bits, low = (self.bits, self.bit) if self.bits else (8 * size, 0)
            data = self.read(self.at, (low + bits + 7) // 8)
            value = int.from_bytes(data, "little") >> low & (1 << bits) - 1
            is_signed = kind.has_bits if kind.kind in (ENUM, ENUM64) else False
            if kind.kind == INT:
                is_signed = bool(self.types.integer(kind.number)[0] & SIGNED)
        return value - (1 << bits) if is_signed and value >> bits - 1 else value

    def plain(self) -> Plain:
        """A number, a truth value, or text; None for all that has parts, and for pointers."""
        kind = self.type
        if kind.kind == ARRAY_KIND and self._is_text:
            with told():
                return _text(self.read(self.at, min(self.size, MAX_TEXT)))
        with told():
            if kind.kind == FLOAT and kind.size in FLOATS:
                (found,) = struct.unpack(FLOATS[kind.size], self.read(self.at, kind.size))
                return float(found)
            if kind.kind == INT and self.types.integer(kind.number)[0] & BOOL:
                return bool(int(self))
        return int(self) if kind.kind in (INT, ENUM, ENUM64) else None

    @property
    def _is_text(self) -> bool:
        """Whether it is an array of `char`."""
        with told():
            return self._is_letter(self.types.element(self.type.number)[0])

    def _is_letter(self, number: int) -> bool:
        inner = self.types.type(self.types.resolved(number) if number else 0)
        if inner.kind != INT or inner.size != 1:
            return False
        return inner.name == "char" or bool(self.types.integer(inner.number)[0] & CHAR)

    @property
    def enumerator(self) -> str:
        """The name that an enumeration has for it; empty if there is none."""
        if self.type.kind not in (ENUM, ENUM64):
            return ""
        with told():
            return self.types.enumerators(self.type.number).get(int(self), "")

    @property
    def length(self) -> int | None:
        """How many elements it has; None if it is no array."""
        with told():
            array = self.type.kind == ARRAY_KIND
            return self.types.element(self.type.number)[1] if array else None

    # For a person.

    def lines(self, name: Name = lambda address, is_code: "") -> list[str]:
        """The value as C would have it, with what is in it; long arrays and deep ones are cut.

        One line, if nothing of it is mapped.
        """
        found: list[str] = []
        self._show(found, "", "", name, 0)
        if len(found) > MAX_LINES:
            found[MAX_LINES:] = ["... (ask for a member)"]
        return found

    def _show(self, found: list[str], indent: str, label: str, name: Name, depth: int) -> None:
        start, kind = indent + label, self.type.kind
        if len(found) > MAX_LINES:
            return
        if kind not in AGGREGATES or (kind == ARRAY_KIND and self._is_text):
            found.append(start + self._brief(name))
            return
        if not self._is_mapped():
            found.append(start + NOT_MAPPED)
            return
        parts = list(self._parts())
        if depth > MAX_DEPTH or not parts:
            found.append(f"{start}{{{'...' if parts else ''}}}")
            return
        found.append(f"{start}{{")
        for tag, part in parts:
            part._show(found, indent + "  ", tag, name, depth + 1)
        left = (self.length or 0) - MAX_ELEMENTS
        if left > 0:
            found.append(f"{indent}  ... ({left} more)")
        found.append(f"{indent}}}")

    def _is_mapped(self) -> bool:
        """Whether anything of it can be read; a value that is absurdly large counts as such."""
        try:
            end = self.at + self.size
        except UsageError:
            return True
        places = [self.at, *range((self.at | PAGE - 1) + 1, end, PAGE)[: MAX_PAGES + 1]]
        return self.at == end or len(places) > MAX_PAGES or any(map(self._reads, places))

    def _reads(self, address: int) -> bool:
        try:
            return bool(self.read(address, 1))
        except XenError:
            return False

    def _parts(self) -> Iterator[tuple[str, Value]]:
        if self.length is not None:
            for index in range(min(self.length, MAX_ELEMENTS)):
                yield f"[{index}] = ", self.element(index)
            return
        with told():
            members = self.types.members(self.type.number)
        for member in members:
            if member.name:
                yield f"{member.name} = ", self.member(member.name)
            else:
                at = self.at + member.offset // 8
                yield "", Value(self.types, self.read, member.type, at)

    def _brief(self, name: Name) -> str:
        try:
            if self.type.kind == PTR:
                return self._pointer(name)
            if self.type.kind in (ENUM, ENUM64):
                return self.enumerator or str(int(self))
            found = self.plain()
        except Unmapped:
            return NOT_MAPPED
        except UsageError:
            return "<unknown>"
        if found is None:
            return f"<{'code' if self.type.kind == FUNC_PROTO else self.spelling}>"
        if isinstance(found, bool):
            return "true" if found else "false"
        return _quoted(found) if isinstance(found, str) else str(found)

    def _pointer(self, name: Name) -> str:
        address = int(self)
        if not address:
            return "NULL"
        with told():
            leads = self.types.resolved(self.type.size) if self.type.size else 0
            is_code = self.types.type(leads).kind == FUNC_PROTO
            text = self._string(address) if self._is_letter(leads) else ""
        named = name(address, is_code)
        return f"{address:#x}{f' <{named}>' if named else ''}{f' {text}' if text else ''}"

    def _string(self, address: int) -> str:
        """The string at an address, in quotes, cut if it is long; empty if there is none."""
        data = b""
        while len(data) < MAX_SHOWN and b"\0" not in data:
            at = address + len(data)
            try:
                data += self.read(at, min(MAX_SHOWN - len(data), PAGE - at % PAGE))
            except XenError:
                return ""
        text, end, _ = data.partition(b"\0")
        if not all(32 <= letter < 127 or letter in b"\t\n\r\x1b" for letter in text):
            return ""
        return _quoted(text.decode()) + ("" if end else "...")


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")


def _quoted(text: str) -> str:
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text.replace('"', '\\"'))
    return f'"{shown}"'
