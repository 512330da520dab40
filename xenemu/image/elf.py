"""ELF headers, for images that may be anything.

Only what a loader needs is read. Every offset and count is checked against the file before its use.
So a hostile header costs a sentence, and neither memory nor an exception.

Layouts: System V ABI, chapter 4 (object files) and 5 (program loading).

In Xen: common/libelf/libelf-loader.c, libelf-tools.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from xenemu.errors import ImageError

MAGIC: Final = b"\x7fELF"
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PF_RWX: Final = 7
SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 2, 3, 7, 8
SHF_ALLOC: Final = 2

EI_OSABI: Final = 7
ELFOSABI_STANDALONE: Final = 255
OS_ABIS: Final = {2: "NetBSD", 9: "FreeBSD", 12: "OpenBSD"}
OS_NOTES: Final = {".note.netbsd.ident": "NetBSD", ".note.openbsd.ident": "OpenBSD"}

TYPES = {1: "REL", ET_EXEC: "EXEC", ET_DYN: "DYN", 4: "CORE"}
MACHINES = {EM_386: "i386", EM_X86_64: "x86_64"}
_OTHER_MACHINES = {20: "PowerPC", 21: "PowerPC64", 22: "s390", 40: "Arm", 183: "AArch64"}
_OTHER_MACHINES |= {243: "RISC-V", 258: "LoongArch"}

EHDR: Final = {32: struct.Struct("<16sHHIIIIIHHHHHH"), 64: struct.Struct("<16sHHIQQQIHHHHHH")}
_PHDR = {32: struct.Struct("<8I"), 64: struct.Struct("<IIQQQQQQ")}
SHDR: Final = {32: struct.Struct("<10I"), 64: struct.Struct("<IIQQQQIIQQ")}


def text(data: memoryview) -> str:
    """Decode a C string up to its NUL; what does not print as ASCII becomes an escape."""
    string = bytes(data).partition(b"\0")[0]
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in string)


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """The fields of Elf32_Shdr and Elf64_Shdr, which have the same order."""

    name: int  # offset into the section name table
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


@dataclass(frozen=True)
class Elf:
    """The headers of an x86 ELF."""

    view: memoryview
    elf_class: int  # 32 or 64
    machine: str
    type: str
    entry: int
    program_headers: tuple[ProgramHeader, ...]
    section_headers: tuple[SectionHeader, ...]
    shstrndx: int

    def section(self, name: str) -> SectionHeader | None:
        """Find a section by name."""
        if self.shstrndx >= len(self.section_headers):
            return None
        names = self.section_headers[self.shstrndx].offset
        wanted = name.encode() + b"\0"
        for header in self.section_headers:
            start = names + header.name
            if self.view[start : start + len(wanted)] == wanted:
                return header
        return None

    @property
    def interpreter(self) -> str | None:
        """The dynamic linker that this asks for; a BSD kernel asks, and means nothing by it."""
        for header in self.program_headers:
            if header.type == PT_INTERP:
                data = self.view[header.offset : header.offset + min(header.filesz, 256)]
                return text(data)
        return None

    @property
    def os_abi(self) -> str | None:
        """The system whose mark this bears, by EI_OSABI or a section; None for Linux and others."""
        marks = (os for name, os in OS_NOTES.items() if self.section(name))
        return OS_ABIS.get(self.view[EI_OSABI]) or next(marks, None)


def parse(view: memoryview) -> Elf:
    """Read the headers of `view`, which starts with the magic."""
    elf_class = {1: 32, 2: 64}.get(view[4] if len(view) > 4 else 0)
    if elf_class is None or len(view) < EHDR[elf_class].size:
        raise ImageError("the ELF is truncated or has a class that is neither 32 nor 64")
    header = EHDR[elf_class].unpack_from(view)
    ident, e_type, e_machine, _version, entry, phoff, shoff = header[:7]
    phentsize, phnum, shentsize, shnum, shstrndx = header[9:14]
    if ident[5] != 1:
        raise ImageError("the ELF is big-endian, so not for x86")
    if e_machine not in MACHINES:
        name = _OTHER_MACHINES.get(e_machine, f"machine {e_machine}")
        raise ImageError(f"the ELF is for {name}; only x86-64 and i386 can run")
    if e_type not in (ET_EXEC, ET_DYN):
        raise ImageError(f"the ELF is of type {TYPES.get(e_type, hex(e_type))}, so no kernel")
    segments = _table(view, "program", _PHDR[elf_class], phoff, phentsize, phnum)
    sections = _table(view, "section", SHDR[elf_class], shoff, shentsize, shnum)
    return Elf(
        view,
        elf_class,
        MACHINES[e_machine],
        TYPES[e_type],
        entry,
        tuple(_program_header(elf_class, fields) for fields in segments),
        tuple(SectionHeader(*fields) for fields in sections),
        shstrndx,
    )


def without_contents(elf_class: int) -> bytes:
    """An ELF for x86 that has no segments, no sections and so no names."""
    machine = {32: EM_386, 64: EM_X86_64}[elf_class]
    ident = MAGIC + bytes((elf_class // 32, 1, 1))
    size = EHDR[elf_class].size
    return EHDR[elf_class].pack(ident, ET_EXEC, machine, 1, 0, 0, 0, 0, size, 0, 0, 0, 0, 0)


def _table(
    view: memoryview, what: str, entry: struct.Struct, offset: int, entsize: int, count: int
) -> Iterator[tuple[int, ...]]:
    if count == 0:
        return
    if entsize < entry.size:
        raise ImageError(f"the ELF's {what} headers have {entsize} bytes each, under {entry.size}")
    if offset + entsize * count > len(view):
        raise ImageError(
            f"the ELF is truncated: {count} {what} headers at {offset:#x} reach past the file's"
            f" {len(view)} bytes"
        )
    for index in range(count):
        yield entry.unpack_from(view, offset + index * entsize)


def _program_header(elf_class: int, fields: tuple[int, ...]) -> ProgramHeader:
    if elf_class == 64:
        p_type, flags, offset, vaddr, paddr, filesz, memsz, _align = fields
    else:
        p_type, offset, vaddr, paddr, filesz, memsz, flags, _align = fields
    return ProgramHeader(p_type, flags, offset, vaddr, paddr, filesz, memsz)
