"""Write PE programs, byte by byte: for EFI, with one section of code, inside a bzImage or not."""

from __future__ import annotations

import struct

import elfwriter

HEADERS = 0x400  # bytes; the sections follow in the file
TEXT = 0x1000  # the address of the code
X86_64, I386 = 0x8664, 0x14C


def pe(
    text: bytes = b"\xc3",
    machine: int = X86_64,
    subsystem: int = 10,
    image_base: int = 0,
    entry: int = TEXT,
    size: int = 0x3000,
    flags: int = 0x206,
    relocations: bytes = b"",
    text_size: int | None = None,
    compat: bytes = b"",
) -> bytes:
    """A program of the sections .text, and .reloc at 0x2000: PE32 for i386, else PE32+.

    With `compat`, it has .compat, too, which is in the headers and says these bytes.
    """
    reloc_at = HEADERS + len(text)
    directories = [(0, 0)] * 5 + [(0x2000, len(relocations))]
    narrow = machine == I386
    base = (0, image_base) if narrow else (image_base,)  # with BaseOfData before it
    optional = struct.pack(
        f"<HBBIIIII{'II' if narrow else 'Q'}IIHHHHHHIIIIHH{'IIII' if narrow else 'QQQQ'}II",
        *(0x10B if narrow else 0x20B, 0, 0, 0, 0, 0, entry, TEXT, *base, 0x1000, 0x200),
        *(0, 0, 0, 0, 0, 0, 0, size, HEADERS, 0, subsystem, 0, 0, 0, 0, 0, 0, len(directories)),
    ) + b"".join(struct.pack("<II", *directory) for directory in directories)
    sections = [
        (b".text", text_size or len(text), TEXT, len(text), HEADERS),
        (b".reloc", len(relocations), 0x2000, len(relocations), reloc_at),
        *[(b".compat", len(compat), 0x300, len(compat), 0x300)] * bool(compat),
    ]
    head = bytearray(HEADERS)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 0x40)
    coff = struct.pack(
        "<4sHHIIIHH", b"PE\0\0", machine, len(sections), 0, 0, 0, len(optional), flags
    )
    table = b"".join(struct.pack("<8s4I16x", *section) for section in sections)
    head[0x40 : 0x40 + len(coff + optional + table)] = coff + optional + table
    head[0x300 : 0x300 + len(compat)] = compat
    return bytes(head) + text + relocations


def efi_bzimage(program: bytes, kernel: bytes | None = None) -> bytes:
    """A bzImage that is a PE program, too: its header comes after the program's."""
    whole = bytearray(elfwriter.bzimage(elfwriter.kernel() if kernel is None else kernel))
    sectors = (len(program) + 511) // 512 - 1
    assert 0 < sectors < 256
    code = whole[1024:]
    head = bytearray(program.ljust(512 * (sectors + 1), b"\0"))
    head[0x1F1:0x26C] = whole[0x1F1:0x26C]
    head[0x1F1] = sectors
    return bytes(head) + bytes(code)


def blocks(*pages: tuple[int, list[int]]) -> bytes:
    """Relocations: of each page, the words ``type << 12 | offset``."""
    return b"".join(
        struct.pack(f"<II{len(words)}H", page, 8 + 2 * len(words), *words) for page, words in pages
    )
