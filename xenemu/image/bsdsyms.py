"""The symbols that a kernel with the note BSD_SYMTAB finds in memory after its last segment.

They begin with four bytes that have a size. An ELF file of that size follows: an ELF header, three
section headers, the symbol table, and the table of its strings. The debugger in a BSD kernel takes
its names from there.

In Xen: common/libelf/libelf-loader.c (elf_init, elf_parse_bsdsyms, elf_load_bsdsyms)
"""

from __future__ import annotations

import dataclasses
from typing import Final

from xenemu.image.elf import EHDR, SHDR, SHT_STRTAB, SHT_SYMTAB, Elf, SectionHeader
from xenemu.records import dataclass

SIZE_WORD: Final = 4
SECTIONS: Final = 3  # none, the symbol table, its strings
SYMTAB_INDEX, STRTAB_INDEX = 1, 2
EV_CURRENT: Final = 1
PAGE: Final = 4096

# libelf has room for 64-bit headers, also for a 32-bit kernel, whose section headers begin where
# 64-bit ones would, and whose symbols follow where they would end.
SECTIONS_AT: Final = SIZE_WORD + EHDR[64].size
HEADERS_END: Final = SECTIONS_AT + SECTIONS * SHDR[64].size


@dataclass(frozen=True, eq=False)
class BsdSymbols:
    """What is loaded for BSD_SYMTAB: `pieces` of (p_paddr, bytes), and zeros between them."""

    start: int  # p_paddr
    end: int  # p_paddr, where Xen takes the kernel to end
    pieces: tuple[tuple[int, memoryview], ...]


def bsd_symbols(elf: Elf, pstart: int, pend: int) -> BsdSymbols | None:
    """Lay out the symbols of a kernel that takes the memory from `pstart` to `pend`.

    None if the ELF has no symbol table with strings: then Xen loads nothing either. The sizes are
    what the file says, and may be anything. Check `end` before you allocate memory for them.
    """
    tables = _find(elf)
    if tables is None:
        return None
    symtab, strtab = tables
    align = elf.elf_class // 8
    start = _round_up(pend, align)
    # What Xen reserves is 72 bytes too little for a 32-bit kernel. It has whole pages, so that
    # this rarely matters; where it does, what does not fit is not loaded.
    end = start + _round_up(SECTIONS_AT + SECTIONS * SHDR[elf.elf_class].size, align)
    end = _round_up(_round_up(end + symtab.size, align) + strtab.size, align)
    room_end = pstart + _round_up(end - pstart, PAGE)
    symtab_at = _round_up(start + HEADERS_END, align)
    strtab_at = _round_up(symtab_at + symtab.size, align)
    file_at = start + SIZE_WORD
    headers = (strtab_at + strtab.size - file_at & 0xFFFFFFFF).to_bytes(4, "little")
    headers += _elf_header(elf).ljust(EHDR[64].size, b"\0")
    headers += bytes(SHDR[elf.elf_class].size)
    symtab_header = dataclasses.replace(symtab, offset=symtab_at - file_at, link=STRTAB_INDEX)
    strtab_header = dataclasses.replace(strtab, offset=strtab_at - file_at)
    headers += _section_header(elf, symtab_header) + _section_header(elf, strtab_header)
    pieces = [(start, memoryview(headers))]
    for at, section in ((symtab_at, symtab), (strtab_at, strtab)):
        data = elf.view[section.offset :][: section.size]
        if len(data) == section.size and at + section.size <= room_end:
            pieces.append((at, data))
    return BsdSymbols(start, end, tuple(pieces))


def _find(elf: Elf) -> tuple[SectionHeader, SectionHeader] | None:
    """The ELF's first symbol table and its strings; None if they are not what they should be."""
    headers = elf.section_headers
    symtab = next((header for header in headers[1:] if header.type == SHT_SYMTAB), None)
    if symtab is None or not 0 < symtab.link < len(headers):
        return None
    strtab = headers[symtab.link]
    return (symtab, strtab) if strtab.type == SHT_STRTAB else None


def _elf_header(elf: Elf) -> bytes:
    """The kernel's own header, without all that is not loaded."""
    layout = EHDR[elf.elf_class]
    ident, e_type, machine, _, entry, _, _, flags, *_ = layout.unpack_from(elf.view)
    return layout.pack(
        ident, e_type, machine, EV_CURRENT, entry, 0, SECTIONS_AT - SIZE_WORD, flags,
        layout.size, 0, 0, SHDR[elf.elf_class].size, SECTIONS, 0,
    )  # fmt: skip


def _section_header(elf: Elf, header: SectionHeader) -> bytes:
    fields = dataclasses.astuple(header)
    mask = (1 << elf.elf_class) - 1
    return SHDR[elf.elf_class].pack(*(field & mask for field in fields))


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
