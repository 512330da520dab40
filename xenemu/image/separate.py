"""A kernel's symbols in a file of their own: the vmlinux that a build leaves beside its bzImage.

The linker gives a kernel a build id, which every copy of it keeps, packed or stripped. It tells
whether two files are of one build.

GNU ld manual: --build-id
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from xenemu.errors import ImageError
from xenemu.image import elf
from xenemu.image.files import map_file
from xenemu.image.loader import Image, SymbolFile
from xenemu.image.ownfile import own
from xenemu.records import dataclass

MAX_NOTES_SIZE: Final = 1 << 20
# NT_GNU_BUILD_ID: sizes of the owner and of the id, the type, the owner.
BUILD_ID: Final = re.compile(rb"\x04\0\0\0([\x01-\x40])\0\0\0\x03\0\0\0GNU\0", re.DOTALL)


@dataclass(frozen=True)
class Separated:
    """A kernel with its symbols; `unchecked` says why nobody knows that the two belong together."""

    image: Image
    unchecked: str


def with_symbols(image: Image, path: Path) -> Separated:
    """The kernel with the symbols of the ELF at `path`.

    ImageError, which names the file and what to do, if it is no ELF, has no symbols, or is of
    another build.
    """
    try:
        parsed = own(_parse(map_file(path)))
        unchecked = _compare(image, parsed)
    except ImageError as fault:
        raise ImageError(f"{path}: {fault}") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    return Separated(replace(image, separate=SymbolFile(str(path), parsed.view)), unchecked)


def build_id(parsed: elf.Elf) -> str | None:
    """The build id in hex; None if there is none."""
    sections = [part for part in parsed.section_headers if part.type == elf.SHT_NOTE]
    places = [(part.offset, part.size) for part in sections]
    segments = [part for part in parsed.program_headers if part.type == elf.PT_NOTE]
    places += [(part.offset, part.filesz) for part in segments]
    for offset, size in places:
        notes = bytes(parsed.view[offset:][: min(size, MAX_NOTES_SIZE)])
        if found := BUILD_ID.search(notes):
            return notes[found.end() :][: found[1][0]].hex()
    return None


def _parse(view: memoryview) -> elf.Elf:
    if bytes(view[:4]) != elf.MAGIC:
        raise ImageError("not an ELF; give the vmlinux from which the kernel was made")
    parsed = elf.parse(view)
    symbols = parsed.section(".symtab")
    if symbols is None or symbols.type != elf.SHT_SYMTAB:
        raise ImageError("has no symbols; give a vmlinux that was not stripped")
    return parsed


def _compare(image: Image, parsed: elf.Elf) -> str:
    """Why it cannot be told that the two belong together, or nothing; ImageError if they do not."""
    if parsed.machine != image.machine:
        kernel = f"the kernel {image.path} for {image.machine}"
        raise ImageError(f"is for {parsed.machine}, and {kernel}")
    booted, given = build_id(elf.parse(image.elf)), build_id(parsed)
    if booted and given and booted != given:
        raise ImageError(
            f"is of another build: its build id is {given}, and that of the kernel {image.path}"
            f" is {booted}; give the vmlinux of the same build"
        )
    if booted and given:
        return ""
    if not booted and not given:
        return "neither it nor the kernel has a build id"
    return f"{'it' if booted else 'the kernel'} has no build id"
