"""Write small ELFs and bzImages, sound or broken on purpose, for tests of the loader."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass

PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PROGBITS, SYMTAB, STRTAB, NOTE = 1, 2, 3, 7
ENTRY = 0xFFFF_FFFF_8100_0000
VIRT_BASE = 0xFFFF_FFFF_8000_0000

EHDR = {32: "<16sHHIIIIIHHHHHH", 64: "<16sHHIQQQIHHHHHH"}
PHDR = {32: "<8I", 64: "<IIQQQQQQ"}
SHDR = {32: "<10I", 64: "<IIQQQQIIQQ"}


@dataclass
class Phdr:
    """A program header; `filesz` and `offset` follow from `data` unless given."""

    data: bytes = b""
    type: int = PT_LOAD
    paddr: int = 0x100_0000
    vaddr: int = ENTRY
    memsz: int | None = None
    flags: int = 7
    filesz: int | None = None
    offset: int | None = None


@dataclass
class Shdr:
    """A section header; `offset` and `size` follow from `data` unless given."""

    name: str
    data: bytes = b""
    type: int = PROGBITS
    addr: int = 0
    link: int = 0
    size: int | None = None
    offset: int | None = None
    flags: int = 0


def symbol_table(addresses: dict[str, int], bits: int = 64) -> list[Shdr]:
    """The two sections of a symbol table, to be the first ones: global objects in section 1."""
    names, table = b"\0", b""
    for name, address in addresses.items():
        if bits == 64:
            table += struct.pack("<IBBHQQ", len(names), 0x11, 0, 1, address, 16)
        else:
            table += struct.pack("<IIIBBH", len(names), address, 16, 0x11, 0, 1)
        names += name.encode() + b"\0"
    return [Shdr(".symtab", table, SYMTAB, link=2), Shdr(".strtab", names, STRTAB)]


def note(kind: int, value: int | str | bytes, owner: str = "Xen", width: int = 8) -> bytes:
    """Encode one note; a number takes `width` bytes, a string gets its NUL."""
    if isinstance(value, int):
        value = value.to_bytes(width, "little")
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    name = owner.encode() + b"\0"
    return struct.pack("<III", len(name), len(value), kind) + _pad(name) + _pad(value)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


PV_NOTES = (
    note(6, "linux"), note(5, "xen-3.0"), note(8, "generic"),
    note(3, VIRT_BASE), note(4, 0), note(1, ENTRY), note(9, "yes"),
)  # fmt: skip
PV32_NOTES = (
    note(6, "linux"), note(5, "xen-3.0"), note(8, "generic"),
    note(3, 0xC000_0000, width=4), note(4, 0, width=4), note(1, 0xC100_0000, width=4),
    note(9, "yes"),
)  # fmt: skip
# What a linker makes of two notes where one is aligned to 8: what follows is lost to Xen.
ASTRAY = (note(3, bytes(20), "GNU"), bytes(4), note(5, bytes(16), "GNU"))
KERNEL = Phdr(b"\x90" * 64, memsz=0x2000)


def elf(
    segments: Sequence[Phdr] = (KERNEL,),
    sections: Sequence[Shdr] = (),
    bits: int = 64,
    machine: int | None = None,
    entry: int = ENTRY,
    **header: int,
) -> bytes:
    """Build an ELF; `header` overrides e_type, phnum, phentsize, shnum, shoff and the like."""
    mask = (1 << bits) - 1
    phoff = struct.calcsize(EHDR[bits])
    body_at = phoff + len(segments) * struct.calcsize(PHDR[bits])
    body = bytearray()
    phdrs = b"".join(_phdr(one, bits, body, body_at) for one in segments)
    shdrs = b""
    if sections:
        shdrs = _section_table([Shdr("", type=0), *sections], bits, body, body_at)
    count = len(sections) + 2 if sections else 0
    fields = {
        "type": 2, "machine": machine or {32: 3, 64: 62}[bits], "version": 1, "entry": entry & mask,
        "phoff": phoff, "shoff": body_at + len(body) if sections else 0, "flags": 0,
        "ehsize": phoff, "phentsize": struct.calcsize(PHDR[bits]), "phnum": len(segments),
        "shentsize": struct.calcsize(SHDR[bits]), "shnum": count, "shstrndx": max(count - 1, 0),
    }  # fmt: skip
    ident = bytes([0x7F, *b"ELF", bits // 32, header.pop("data", 1), 1]).ljust(16, b"\0")
    fields |= header
    return struct.pack(EHDR[bits], ident, *fields.values()) + phdrs + bytes(body) + shdrs


def kernel(notes: Sequence[bytes] = PV_NOTES, bits: int = 64, **more: object) -> bytes:
    """Build a bootable kernel: one segment, and `notes` in a PT_NOTE segment."""
    segments = (KERNEL, Phdr(b"".join(notes), PT_NOTE, paddr=0, vaddr=0))
    return elf(segments, bits=bits, **more)  # type: ignore[arg-type]


def _phdr(segment: Phdr, bits: int, body: bytearray, body_at: int) -> bytes:
    mask = (1 << bits) - 1
    offset = body_at + len(body) if segment.offset is None else segment.offset
    filesz = len(segment.data) if segment.filesz is None else segment.filesz
    memsz = filesz if segment.memsz is None else segment.memsz
    body += segment.data
    places = (offset, segment.vaddr & mask, segment.paddr & mask, filesz, memsz)
    if bits == 64:
        return struct.pack(PHDR[64], segment.type, segment.flags, *places, 4)
    return struct.pack(PHDR[32], segment.type, *places, segment.flags, 4)


def _section_table(sections: list[Shdr], bits: int, body: bytearray, body_at: int) -> bytes:
    names = b"".join(one.name.encode() + b"\0" for one in sections) + b".shstrtab\0"
    sections = [*sections, Shdr(".shstrtab", names, STRTAB)]
    table, name_at = b"", 0
    for one in sections:
        offset = body_at + len(body) if one.offset is None else one.offset
        size = len(one.data) if one.size is None else one.size
        body += one.data
        fields = (name_at, one.type, one.flags, one.addr, offset, size, one.link, 0, 1, 0)
        table += struct.pack(SHDR[bits], *fields)
        name_at += len(one.name) + 1
    return table


def bzimage(
    image: bytes, payload: bytes | None = None, size: int | None = None, **header: int
) -> bytes:
    """Wrap an ELF in a bzImage; `payload` (without its size) is gzip unless given.

    `header` overrides version, payload_offset and payload_length.
    """
    if payload is None:
        payload = gzip.compress(image, 1, mtime=0)[:-4]
    payload += struct.pack("<I", len(image) if size is None else size)
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1  # one sector of set-up code after the boot sector
    struct.pack_into(
        "<H2x4sH6xH", setup, 0x1FE, 0xAA55, b"HdrS", header.get("version", 0x20F), 0x100
    )
    setup[0x300:0x30B] = b"6.1.0-test\0"
    place = (header.get("payload_offset", 0), header.get("payload_length", len(payload)))
    struct.pack_into("<II", setup, 0x248, *place)
    return bytes(setup) + payload


def lz4_legacy(blocks: Sequence[bytes]) -> bytes:
    """Frame compressed lz4 blocks as the kernel's build does."""
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(one)) + one for one in blocks)


def lzo_literals(data: bytes) -> bytes:
    """Encode `data` as LZO1X by one run of literals, and the end marker."""
    if len(data) <= 238:
        run = bytes([17 + len(data)])
    else:
        zeros, rest = divmod(len(data) - 18 - 1, 255)
        run = bytes(1 + zeros) + bytes([rest + 1])
    return run + data + b"\x11\0\0"


def lzop(blocks: Sequence[tuple[bytes, int]]) -> bytes:
    """Frame (LZO1X stream, unpacked size) blocks as lzop does, with one checksum each."""
    head = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBB", 0x1030, 0x2080, 0x0940, 1, 5)
    head += struct.pack(">IIII", 1, 0o644, 0, 0) + b"\0" + bytes(4)
    body = b"".join(struct.pack(">III", size, len(one), 0) + one for one, size in blocks)
    return head + body + bytes(4)
