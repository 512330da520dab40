"""An ELF with a kernel's symbols, for a kernel that has them only in its own tables.

A distribution's kernel has neither `.symtab` nor debug information. Its kallsyms make a symbol
table of sections without contents, which is all that gdb wants to know names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from xenemu.errors import ImageError
from xenemu.image import Image
from xenemu.image.elf import EM_386, EM_X86_64, ET_EXEC, Elf, parse
from xenemu.image.symbols import load_symbols

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 1, 2, 3, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
STB_GLOBAL_NOTYPE = 0x10
EHDR: Final = {64: struct.Struct("<16sHHIQQQIHHHHHH"), 32: struct.Struct("<16sHHIIIIIHHHHHH")}
SHDR: Final = {64: struct.Struct("<IIQQQQIIQQ"), 32: struct.Struct("<10I")}
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


def symbol_file(image: Image) -> memoryview:
    """The kernel's own ELF if gdb finds names in it; else one with the names that kallsyms has."""
    try:
        headers = parse(image.elf)
    except ImageError:
        return image.elf
    if headers.section(".symtab"):
        return image.elf
    symbols = load_symbols(image.elf, image.segments)
    names = list(symbols.items())
    if not names:
        return image.elf
    return memoryview(_write(image, headers, _places(image), names))


def _places(image: Image) -> list[Section]:
    """A section without contents for each segment: code if it may be executed."""
    return [
        Section(
            f".segment{index}",
            SHT_NOBITS,
            SHF_ALLOC | SHF_EXECINSTR,
            segment.vaddr,
            segment.memsz,
        )
        for index, segment in enumerate(image.segments)
    ]


def _write(
    image: Image, headers: Elf, places: list[Section], names: list[tuple[int, str]]
) -> bytes:
    """Lay out the file."""
    strings = bytearray(1)
    table = bytearray(SYM64.size if image.elf_class == 64 else SYM32.size)
    for vaddr, name in names:
        index = next((n for n, s in enumerate(places, 1) if s.vaddr <= vaddr < s.vaddr + s.size), 0)
        if not index:
            continue
        if image.elf_class == 64:
            table += SYM64.pack(len(strings), STB_GLOBAL_NOTYPE, 0, index, vaddr, 0)
        else:
            table += SYM32.pack(len(strings), vaddr, 0, STB_GLOBAL_NOTYPE, 0, index)
        strings += name.encode("ascii", "replace") + b"\0"
    entry_size = SYM64.size if image.elf_class == 64 else SYM32.size
    sections = [Section("", 0), *places]
    sections.append(
        Section(
            ".symtab",
            SHT_SYMTAB,
            data=bytes(table),
            link=len(sections) + 1,
            info=1,
            entry_size=entry_size,
        )
    )
    sections.append(Section(".strtab", SHT_STRTAB, data=bytes(strings)))
    return _assemble(image, sections)


def _assemble(image: Image, sections: list[Section]) -> bytes:
    bits = image.elf_class
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
        body, 0, ident, ET_EXEC, machine, 1, image.entry, 0, len(body), 0,
        EHDR[bits].size, 0, 0, SHDR[bits].size, len(sections), len(sections) - 1,
    )  # fmt: skip
    return bytes(body) + b"".join(headers)
