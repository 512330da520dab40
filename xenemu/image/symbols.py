"""Names for a kernel's addresses: from the ELF's .symtab, else from Linux's kallsyms tables.

It takes some tenths of a second to read them, and nobody needs them until a guest crashes. So
`load_symbols` reads nothing. The first question to `Symbols` reads them.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

from xenemu.errors import ImageError
from xenemu.image.elf import Elf, parse
from xenemu.image.kallsyms import MAX_NAME, MAX_SYMBOLS, Kallsyms, LoadedSegment, read_kallsyms
from xenemu.records import dataclass

HIGH_HALF = 1 << 63

# Elf32_Sym: name, value, size, info, other, shndx. Elf64_Sym: name, info, other, shndx, value.
SYM = {32: struct.Struct("<III2BH"), 64: struct.Struct("<I2BHQQ")}
STB_LOCAL = 0
SHF_EXECINSTR = 4
STT_FUNC = 2  # below it: no type, object; above it: section, file, TLS
SHN_UNDEF, SHN_LORESERVE = 0, 0xFF00  # above: absolute and common, which are no places


@dataclass(frozen=True)
class Symbol:
    """The symbol that an address belongs to; `size` reaches to the next symbol."""

    name: str
    vaddr: int
    offset: int
    size: int


class Names(Protocol):
    """Who writes addresses by name."""

    def format(self, vaddr: int, is_return: bool = False) -> str: ...


@dataclass(frozen=True)
class _Listed:
    """Each symbol's address, ascending, and its name; and whether it is code."""

    vaddrs: list[int]
    names: list[str]
    are_code: list[bool]

    def code(self) -> list[bool]:
        return self.are_code


Entries = Iterable[tuple[int, str, bool]]


class Symbols:
    """The names of one image, read at the first question.

    `read` gives (address, name, whether it is code) in any order, or Linux's own table. If an
    address has several names, the first counts. `image` is where the kernel lies. Only an address
    in there gets a name, but any symbol can be asked for its address.
    """

    def __init__(
        self,
        read: Callable[[], Entries | Kallsyms] = tuple,
        image: Sequence[range] = (),
    ) -> None:
        self._read = read
        self._image = tuple(image)

    @property
    def parts(self) -> tuple[range, ...]:
        """Where the kernel lies."""
        return self._image

    def moved(self, offset: int) -> Symbols:
        """The names of the same image, so many bytes after where it is; others stay."""
        low = min((part.start for part in self._image), default=0)

        def read() -> Iterator[tuple[int, str, bool]]:
            for vaddr, name, is_code in self.items():
                yield vaddr + offset * (vaddr >= low), name, is_code

        return Symbols(read, [range(p.start + offset, p.stop + offset) for p in self._image])

    @cached_property
    def _table(self) -> Kallsyms | _Listed:
        found = self._read()
        if isinstance(found, Kallsyms):
            return found
        entries = sorted(found, key=lambda entry: entry[0])
        vaddrs, names = [entry[0] for entry in entries], [entry[1] for entry in entries]
        return _Listed(vaddrs, names, [entry[2] for entry in entries])

    @cached_property
    def _code(self) -> list[bool]:
        return self._table.code()

    @cached_property
    def _by_name(self) -> dict[str, int]:
        vaddrs, names = self._table.vaddrs, self._table.names
        found: dict[str, int] = {}
        for name, vaddr in zip(names, vaddrs, strict=True):
            found.setdefault(name, vaddr)
        return found

    def __len__(self) -> int:
        return len(self._table.vaddrs)

    def __iter__(self) -> Iterator[str]:
        """The names, each once."""
        return iter(self._by_name)

    def items(self) -> Iterator[tuple[int, str, bool]]:
        """Each (address, name, whether it is code), by ascending address."""
        return zip(self._table.vaddrs, self._table.names, self._code, strict=True)

    def lookup(self, vaddr: int) -> Symbol | None:
        """Return the symbol at or before `vaddr` in the same part of the image."""
        part = next((part for part in self._image if vaddr in part), None)
        vaddrs, names = self._table.vaddrs, self._table.names
        after = bisect_right(vaddrs, vaddr)
        if part is None or not after or vaddrs[after - 1] < part.start:
            return None
        start = vaddrs[after - 1]
        end = min(vaddrs[after], part.stop) if after < len(vaddrs) else part.stop
        return Symbol(names[bisect_left(vaddrs, start)], start, vaddr - start, end - start)

    def address(self, name: str) -> int | None:
        """Return the address of `name`, the lowest if several symbols have it."""
        return self._by_name.get(name)

    def format(self, vaddr: int, is_return: bool = False) -> str:
        """Write `vaddr` as Linux does, ``name+0x1a/0x400``; in hex where it has no name.

        With `is_return`, `vaddr` follows a call. The call may have been the last instruction of its
        function. So the name is that of the function with the call.
        """
        symbol = self.lookup(vaddr - is_return)
        if symbol is None:
            return f"{vaddr:#x}"
        return f"{symbol.name}+{symbol.offset + is_return:#x}/{symbol.size:#x}"


def load_symbols(elf: memoryview, segments: Sequence[LoadedSegment]) -> Symbols:
    """Return the symbols of an unpacked ELF, to be read when first asked; never fails."""
    image = _image(segments)
    return Symbols(lambda: _read_symbols(elf, segments, image), image)


def _image(segments: Sequence[LoadedSegment]) -> list[range]:
    """Return where the kernel runs.

    x86-64 Linux links its per-CPU template at 0, where nothing is at run time.
    """
    parts = [range(s.vaddr, s.vaddr + s.memsz) for s in segments if s.memsz]
    high = [part for part in parts if part.start >= HIGH_HALF]
    return high or parts


def _read_symbols(
    elf: memoryview, segments: Sequence[LoadedSegment], image: Sequence[range]
) -> Entries | Kallsyms:
    try:
        headers = parse(elf)
    except ImageError:
        return []
    listed = _read_symtab(headers)
    return listed or read_kallsyms(segments, image, headers.elf_class // 8) or []


def _contents(headers: Elf, name: str) -> memoryview:
    section = headers.section(name)
    return headers.view[section.offset :][: section.size] if section else headers.view[:0]


def _read_symtab(headers: Elf) -> list[tuple[int, str, bool]]:
    layout, table = SYM[headers.elf_class], _contents(headers, ".symtab")
    count = len(table) // layout.size
    if count > MAX_SYMBOLS:
        return []
    strings = bytes(_contents(headers, ".strtab"))
    code = {
        number
        for number, section in enumerate(headers.section_headers)
        if section.flags & SHF_EXECINSTR
    }
    found = []
    for entry in layout.iter_unpack(table[: count * layout.size]):
        if headers.elf_class == 64:
            at, info, _, shndx, vaddr, _ = entry
        else:
            at, vaddr, _, info, _, shndx = entry
        if info & 15 > STT_FUNC or not SHN_UNDEF < shndx < SHN_LORESERVE:
            continue
        end = strings.find(0, at, at + MAX_NAME)
        name = strings[at:end].decode("latin-1")
        if end > at and name.isascii() and name.isprintable():
            is_local, is_code = info >> 4 == STB_LOCAL, shndx in code
            found.append((vaddr, info & 15 != STT_FUNC, is_local, name, is_code))
    found.sort(key=lambda entry: entry[:3])
    return [(vaddr, name, is_code) for vaddr, _, _, name, is_code in found]
