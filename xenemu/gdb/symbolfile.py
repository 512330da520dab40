"""An ELF with a kernel's symbols, for a kernel that has them only in its own tables.

A distribution's kernel has neither `.symtab` nor debug information. Its kallsyms make a symbol
table of sections without contents, which is all that gdb wants to know names; its ORC tables make
call frame information, by which it finds callers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
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
from xenemu.image.orc import Orc

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


def symbol_file(image: Image, physical: bool = False) -> memoryview:
    """The kernel's own ELF if gdb finds names in it; else one with the names that kallsyms has.

    With `physical`, one of 32 bits, whose names are where the kernel was loaded. A BSD kernel's
    ELF loses its mark: most gdbs know nothing of that system, and go wrong at its mere name.
    """
    headers = parse(image.elf)
    if headers.section(".symtab") and not physical:
        if headers.os_abi is None:
            return image.elf
        unmarked = bytearray(image.elf)
        unmarked[EI_OSABI] = ELFOSABI_STANDALONE
        return memoryview(unmarked)
    names = list(image.symbols.items())
    if not names and not physical:
        return image.elf
    bits = 32 if physical else image.elf_class
    parts = [
        (part.vaddr, part.paddr if physical else part.vaddr, part.memsz) for part in image.segments
    ]
    table, strings = bytearray(SYMBOL[bits](0, 0, 0)), bytearray(1)
    for vaddr, name in names:
        for index, (start, place, size) in enumerate(parts, 1):
            if start <= vaddr < start + size:
                table += SYMBOL[bits](len(strings), index, vaddr - start + place)
                strings += name.encode("ascii", "replace") + b"\0"
    sections = [
        Section("", 0),
        *(
            Section(f".segment{n}", SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR, place, size)
            for n, (_, place, size) in enumerate(parts)
        ),
    ]
    orc = Orc(image.elf)
    if len(orc) and not physical:
        sections.append(Section(".debug_frame", SHT_PROGBITS, data=debug_frame(orc)))
    links = {"link": len(sections) + 1, "info": 1, "entry_size": len(SYMBOL[bits](0, 0, 0))}
    sections.append(Section(".symtab", SHT_SYMTAB, data=bytes(table), **links))
    sections.append(Section(".strtab", SHT_STRTAB, data=bytes(strings)))
    return memoryview(_assemble(bits, image.entry, sections))


def _symbol64(name: int, section: int, vaddr: int) -> bytes:
    return SYM64.pack(name, STB_GLOBAL_NOTYPE if name else 0, 0, section, vaddr, 0)


def _symbol32(name: int, section: int, vaddr: int) -> bytes:
    return SYM32.pack(name, vaddr, 0, STB_GLOBAL_NOTYPE if name else 0, 0, section)


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
