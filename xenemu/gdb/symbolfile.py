"""An ELF with a kernel's symbols, for a kernel that has them only in its own tables.

A distribution's kernel has neither `.symtab` nor debug information. Its kallsyms become a symbol
table, with sections without contents. gdb needs nothing more to know names. Its ORC tables become
call frame information, by which gdb finds callers.

The flags of a symbol's section alone tell gdb whether the symbol is a function or a variable. So
each segment is cut wherever code ends and data begins, and the other way round.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Final

from xenemu.gdb.callframes import debug_frame
from xenemu.image import Image
from xenemu.image.elf import (
    EHDR,
    EI_OSABI,
    ELFOSABI_STANDALONE,
    EM_386,
    EM_X86_64,
    ET_EXEC,
    SHDR,
    SHT_NOBITS,
    SHT_STRTAB,
    SHT_SYMTAB,
    parse,
)
from xenemu.image.kernel_modules import Module
from xenemu.records import dataclass

SHT_PROGBITS = 1
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
STB_GLOBAL_NOTYPE = 0x10
SYM64: Final = struct.Struct("<IBBHQQ")
SYM32: Final = struct.Struct("<IIIBBH")


@dataclass(frozen=True)
class Section:
    """One section of the file: where it is at run time, and what it has in the file."""

    name: str
    type: int
    flags: int = 0
    vaddr: int = 0
    size: int = 0
    data: bytes = b""
    link: int = 0
    info: int = 0
    entry_size: int = 0


@dataclass(frozen=True)
class Run:
    """A part of a segment that is all code, or all data, with its names."""

    start: int
    size: int
    is_code: bool
    names: list[tuple[int, str]]

    def symbols(self) -> Iterator[tuple[int, int, str]]:
        """Each (address, size, name): gdb puts no name to data of no size."""
        end = vaddr = self.start + self.size
        found = []
        for start, name in reversed(self.names):
            if start != vaddr:
                end, vaddr = vaddr, start
            found.append((start, end - start, name))
        return reversed(found)


@dataclass(frozen=True)
class Piece:
    """A segment of the kernel, or a part of a module: where it is linked, and its names there.

    `offset` leads from that address to the address in the file.
    """

    linked: range
    offset: int
    names: list[tuple[int, str, bool]]


def symbol_file(image: Image, physical: bool = False) -> memoryview:
    """The ELF with the kernel's symbols, its own or a separate one; else one made of kallsyms.

    With `physical`, a 32-bit ELF, whose names are where the kernel was loaded. A BSD kernel's ELF
    loses its mark: most gdbs know nothing of that system, and go wrong as soon as they see the
    mark.
    """
    if has_own(image, physical):
        return _unmarked(image.symbol_file.elf)
    names = list(image.symbols.items())
    pieces = []
    for part in image.segments:
        linked = range(part.vaddr, part.vaddr + part.memsz)
        offset = part.paddr - part.vaddr if physical else 0
        pieces.append(Piece(linked, offset, [entry for entry in names if entry[0] in linked]))
    frames = debug_frame(image.orc) if image.orc and not physical else b""
    return _names_only(32 if physical else image.elf_class, image.entry, pieces, frames)


def has_own(image: Image, physical: bool = False) -> bool:
    """Whether gdb gets an ELF that exists, and not one that is made for it."""
    if physical:
        return False
    return parse(image.symbol_file.elf).section(".symtab") is not None or not len(image.symbols)


def _unmarked(elf: memoryview) -> memoryview:
    if parse(elf).os_abi is None:
        return elf
    unmarked = bytearray(elf)
    unmarked[EI_OSABI] = ELFOSABI_STANDALONE
    return memoryview(unmarked)


def module_file(bits: int, modules: Sequence[Module]) -> memoryview:
    """An ELF with the names of a kernel's modules, and their call frame information."""
    pieces, frames = [], b""
    for module in modules:
        names = list(module.symbols.items())
        for part in module.parts:
            pieces.append(Piece(part, 0, [entry for entry in names if entry[0] in part]))
        frames += debug_frame(module.orc, module.parts) if module.orc else b""
    return _names_only(bits, 0, pieces, frames)


def _names_only(bits: int, entry: int, pieces: list[Piece], frames: bytes) -> memoryview:
    """An ELF of sections without contents, and of names in them."""
    table, strings, sections = bytearray(SYMBOL[bits](0, 0, 0, 0)), bytearray(1), [Section("", 0)]
    for piece in pieces:
        for run in _runs(piece):
            kind, flags = (".text", SHF_EXECINSTR) if run.is_code else (".data", SHF_WRITE)
            start = run.start + piece.offset
            place = f"{kind}{len(sections)}", SHT_NOBITS, flags | SHF_ALLOC, start
            sections.append(Section(*place, run.size))
            for vaddr, size, name in run.symbols():
                at = vaddr + piece.offset
                table += SYMBOL[bits](len(strings), len(sections) - 1, at, size)
                strings += name.encode("ascii", "replace") + b"\0"
    if frames:
        sections.append(Section(".debug_frame", SHT_PROGBITS, data=frames))
    links = {"link": len(sections) + 1, "info": 1, "entry_size": len(SYMBOL[bits](0, 0, 0, 0))}
    sections.append(Section(".symtab", SHT_SYMTAB, data=bytes(table), **links))
    sections.append(Section(".strtab", SHT_STRTAB, data=bytes(strings)))
    return memoryview(_assemble(bits, entry, sections))


def _runs(piece: Piece) -> Iterator[Run]:
    """Cut a piece into runs; a piece without names is code, as far as anybody knows.

    A label of the linker's for the end of data may be where a function begins. So a place is code
    if one of its names is.
    """
    names, linked = piece.names, piece.linked
    code = {vaddr for vaddr, _, is_code in names if is_code}
    runs = [(is_code, list(run)) for is_code, run in groupby(names, lambda name: name[0] in code)]
    starts = [linked.start, *(run[0][0] for _, run in runs[1:]), linked.stop]
    for (is_code, run), (start, end) in zip(runs or [(True, [])], pairwise(starts), strict=True):
        yield Run(start, end - start, is_code, [(vaddr, name) for vaddr, name, _ in run])


def _symbol64(name: int, section: int, vaddr: int, size: int) -> bytes:
    return SYM64.pack(name, STB_GLOBAL_NOTYPE if name else 0, 0, section, vaddr, size)


def _symbol32(name: int, section: int, vaddr: int, size: int) -> bytes:
    return SYM32.pack(name, vaddr, size, STB_GLOBAL_NOTYPE if name else 0, 0, section)


SYMBOL: Final = {64: _symbol64, 32: _symbol32}


def _assemble(bits: int, entry: int, sections: list[Section]) -> bytes:
    """Lay out the file."""
    section_names = b"\0".join(section.name.encode() for section in sections) + b"\0.shstrtab\0"
    sections = [*sections, Section(".shstrtab", SHT_STRTAB, data=section_names)]
    body, headers, name_at = bytearray(EHDR[bits].size), [], 0
    for section in sections:
        body += bytes(-len(body) % 8)
        size = section.size if section.type == SHT_NOBITS else len(section.data)
        headers.append(
            SHDR[bits].pack(
                name_at, section.type, section.flags, section.vaddr, len(body), size,
                section.link, section.info, 1, section.entry_size,
            )
        )  # fmt: skip
        body += section.data
        name_at += len(section.name) + 1
    body += bytes(-len(body) % 8)
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    machine = EM_X86_64 if bits == 64 else EM_386
    EHDR[bits].pack_into(
        body, 0, ident, ET_EXEC, machine, 1, entry, 0, len(body), 0,
        EHDR[bits].size, 0, 0, SHDR[bits].size, len(sections), len(sections) - 1,
    )  # fmt: skip
    return bytes(body) + b"".join(headers)
