"""The modules that a running Linux has loaded, with their names and unwind tables.

A kernel has a list of its modules, `modules`, with the newest first. The kernel's own type
information says where its structs have their members. If there is no type information, or no list,
there are no modules. A module has the symbols that /proc/kallsyms shows.

All of this lies in the guest's memory, and may be anything. So every count found there is bounded
here.

In Linux: include/linux/module.h, kernel/module/kallsyms.c, arch/x86/include/asm/module.h
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from itertools import count
from typing import Final, Self

from xenemu.errors import XenError
from xenemu.image.btf import Btf, Place
from xenemu.image.elf import text
from xenemu.image.kallsyms import CODE
from xenemu.image.loader import Image
from xenemu.image.orc import ENTRY_SIZE, Orc, Read
from xenemu.image.symbols import SHN_UNDEF, SYM, Symbols
from xenemu.records import dataclass

MAX_MODULES: Final = 1024
MAX_SYMBOLS: Final = 1 << 16  # of one module
MAX_ORCS: Final = 1 << 18
MAX_NAME: Final = 512  # KSYM_NAME_LEN
CHUNK: Final = 32
UNFORMED: Final = 3  # a state: nothing is there yet


@dataclass(frozen=True, eq=False)
class Module:
    """A loaded module: where its parts are, their names, and how to unwind its code."""

    name: str
    parts: tuple[range, ...]
    symbols: Symbols
    read_orc: Callable[[], Orc | None]

    @cached_property
    def orc(self) -> Orc | None:
        """Its unwind tables, if it has some that can be read."""
        return self.read_orc()

    def __contains__(self, vaddr: int) -> bool:
        return any(vaddr in part for part in self.parts)

    def format(self, vaddr: int, is_return: bool = False) -> str:
        """Write an address as Linux does, ``name+0x1a/0x400 [module]``."""
        return f"{self.symbols.format(vaddr, is_return)} [{self.name}]"


class Modules:
    """The modules of one running kernel; they are read anew when the newest one has changed.

    `reader` gives a function that reads the guest's memory as it is now.
    """

    def __init__(self, image: Image, reader: Callable[[], Read]) -> None:
        self._image = image
        self._reader = reader
        self._newest = 0
        self._loaded: tuple[Module, ...] = ()

    def find(self, vaddr: int) -> Module | None:
        """The module that an address lies in."""
        if not vaddr >> self._image.elf_class - 1:  # a program's
            return None
        return next((module for module in self.loaded() if vaddr in module), None)

    @cached_property
    def _layout(self) -> _Layout | None:
        return _Layout.of(self._image.btf)

    def loaded(self) -> tuple[Module, ...]:
        """All modules, the newest first; if nothing of the kernel is mapped, those last seen."""
        head = self._image.symbols.address("modules")
        layout = self._layout if head else None
        if head is None or layout is None:
            return ()
        with suppress(XenError):
            read = self._reader()
            newest = _word(read, head, layout.word)
            if newest != self._newest:
                self._loaded = tuple(self._read(layout, head, read))
                self._newest = newest
        return self._loaded

    def _read(self, layout: _Layout, head: int, read: Read) -> Iterator[Module]:
        node, seen = _word(read, head, layout.word), {head}
        while node not in seen and len(seen) <= MAX_MODULES:
            seen.add(node)
            at = node - layout.next.offset
            if _field(read, at, layout.state) != UNFORMED:
                name = text(memoryview(read(at + layout.name.offset, layout.name.size)))
                parts = tuple(part for part in layout.ranges(read, at) if part)
                symbols = Symbols(partial(self._symbols, layout, at, parts), parts)
                yield Module(name, parts, symbols, partial(self._orc, layout, at))
            node = _word(read, node, layout.word)

    def _symbols(
        self, layout: _Layout, at: int, parts: tuple[range, ...]
    ) -> list[tuple[int, str, bool]]:
        with suppress(XenError):
            return list(_symbols(layout, self._reader(), at, parts))
        return []

    def _orc(self, layout: _Layout, at: int) -> Orc | None:
        kernel = self._image.orc
        if kernel is None or not layout.orc:
            return None
        with suppress(XenError):
            read = self._reader()
            entries, ips_at, entries_at = (_field(read, at, place) for place in layout.orc)
            if not 0 < entries <= MAX_ORCS:
                return None
            ips, table = read(ips_at, entries * 4), read(entries_at, entries * ENTRY_SIZE)
            return kernel.of_module(ips_at, ips, table)
        return None


@dataclass(frozen=True)
class _Layout:
    """Where a kernel's structs have what is needed of a module."""

    next: Place
    name: Place
    state: Place
    parts: tuple[tuple[Place, Place, Place | None], ...]  # base, size, and of that the code
    kallsyms: tuple[Place, ...]  # the pointer to it; symtab, num_symtab, strtab, typetab in it
    orc: tuple[Place, ...]  # how many, where the addresses are, the entries; or nothing

    @classmethod
    def of(cls, btf: Btf) -> Self | None:
        """Find it all; None if the kernel's types do not have it."""

        def places(*paths: tuple[str, ...]) -> tuple[Place, ...]:
            found = [btf.place(*path) for path in paths]
            return tuple(place for place in found if place) if all(found) else ()

        own = places(("module", "list", "next"), ("module", "name"), ("module", "state"))
        symbols = places(
            ("module", "kallsyms"),
            *(("mod_kallsyms", member) for member in ("symtab", "num_symtab", "strtab", "typetab")),
        )
        parts = tuple(_parts(btf))
        if not own or not symbols or not parts:
            return None
        orc = places(
            *(("module", "arch", name) for name in ("num_orcs", "orc_unwind_ip", "orc_unwind"))
        )
        following, name, state = own
        return cls(following, name, state, parts, symbols, orc)

    @property
    def word(self) -> int:
        """The bytes of a pointer."""
        return self.next.size

    def ranges(self, read: Read, at: int) -> Iterator[range]:
        """Where the module at an address has its parts, the code apart from the data."""
        for base, size, code in self.parts:
            start, length = _field(read, at, base), _field(read, at, size)
            middle = start + min(length, _field(read, at, code)) if code else start
            yield range(start, middle)
            yield range(middle, start + length)


def _parts(btf: Btf) -> Iterator[tuple[Place, Place, Place | None]]:
    for index in count():  # since 6.4
        base = btf.place("module", "mem", index, "base")
        size = btf.place("module", "mem", index, "size")
        if base is None or size is None:
            break
        yield base, size, None
    for layout in ("core_layout", "init_layout"):  # before
        base, size = btf.place("module", layout, "base"), btf.place("module", layout, "size")
        code = btf.place("module", layout, "text_size")
        if base and size and code:
            yield base, size, code


def _symbols(
    layout: _Layout, read: Read, at: int, parts: tuple[range, ...]
) -> Iterator[tuple[int, str, bool]]:
    """Address and name of a module's symbols, as far as /proc/kallsyms has them; is it code?"""
    pointer, *members = layout.kallsyms
    kallsyms = _field(read, at, pointer)
    symtab, number, strtab, typetab = (_field(read, kallsyms, place) for place in members)
    number, form = min(number, MAX_SYMBOLS), SYM[layout.word * 8]
    types = read(typetab, number)
    for kind, entry in zip(types, form.iter_unpack(read(symtab, number * form.size)), strict=True):
        if layout.word == 8:
            name_at, _, _, section, vaddr, _ = entry
        else:
            name_at, vaddr, _, _, _, section = entry
        if section == SHN_UNDEF or not any(vaddr in part for part in parts):
            continue
        with suppress(XenError):
            name = _string(read, strtab + name_at)
            if name and not name.startswith((".L", "L0")):
                yield vaddr, name, chr(kind) in CODE


def _string(read: Read, at: int) -> str:
    """A name; empty if it is none."""
    name = bytearray()
    while len(name) < MAX_NAME:
        size = CHUNK - at % CHUNK  # so that none reaches into a page after the name's
        piece, nul, _ = read(at, size).partition(b"\0")
        name += piece
        at += size
        if nul:
            break
    string = name.decode("latin-1")
    return string if string.isascii() and string.isprintable() else ""


def _field(read: Read, at: int, place: Place) -> int:
    return int.from_bytes(read(at + place.offset, place.size), "little")


def _word(read: Read, at: int, size: int) -> int:
    return int.from_bytes(read(at, size), "little")
