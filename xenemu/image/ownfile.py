"""Copy a kernel file, which may be cut short or written over while its guest runs.

To touch a mapped file beyond its end is SIGBUS, which would end the process. So what a run may ask
of the file later is copied when it starts. Debug information and relocations, which nobody here
asks for, stay out: they are most of a kernel developer's vmlinux.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from xenemu.errors import ImageError
from xenemu.image.elf import EHDR, SHF_ALLOC, SHT_NOBITS, Elf, parse
from xenemu.mapping import anonymous

MAX_COPY: Final = 1 << 30  # bytes
MAX_LEFT_OUT: Final = 256  # sections
LEFT_OUT: Final = (b".debug_", b".zdebug_", b".rel.", b".rela.")  # how the sections' names begin


def own(parsed: Elf) -> Elf:
    """The same ELF in a copy of its file, with zeros for what is left out.

    ImageError if that is too large.
    """
    view, kept = parsed.view, list(_kept(parsed))
    size = sum(map(len, kept))
    if size > MAX_COPY:
        raise ImageError(
            f"the ELF has {size:#x} bytes besides debug information, over {MAX_COPY:#x}"
        )
    copy = memoryview(anonymous(len(view)))
    for part in kept:
        copy[part.start : part.stop] = view[part.start : part.stop]
    return parse(copy.toreadonly())


def _kept(parsed: Elf) -> Iterator[range]:
    """The file, in order, without the sections that are left out and are in no segment."""
    used = [range(p.offset, p.offset + p.filesz) for p in parsed.program_headers]
    at, end = 0, min(len(parsed.view), _end(parsed, used))
    left_out = islice(_left_out(parsed), MAX_LEFT_OUT)
    for part in sorted(left_out, key=lambda part: part.start):
        if any(part.start < other.stop and other.start < part.stop for other in used):
            continue
        yield range(at, min(max(part.start, at), end))
        at = max(at, part.stop)
    yield range(min(at, end), end)


def _end(parsed: Elf, used: list[range]) -> int:
    """Where the last thing ends that the ELF's headers mention."""
    header = EHDR[parsed.elf_class].unpack_from(parsed.view)
    tables: list[int] = [header[5] + header[9] * header[10], header[6] + header[11] * header[12]]
    sections = [s.offset + s.size for s in parsed.section_headers if s.type != SHT_NOBITS]
    ends = [*tables, *sections, *(part.stop for part in used), EHDR[parsed.elf_class].size]
    return max(ends)


def _left_out(parsed: Elf) -> Iterator[range]:
    if parsed.shstrndx >= len(parsed.section_headers):
        return
    names = parsed.section_headers[parsed.shstrndx].offset
    for header in parsed.section_headers:
        start, part = names + header.name, range(header.offset, header.offset + header.size)
        if (
            not header.flags & SHF_ALLOC
            and header.type != SHT_NOBITS
            and bytes(parsed.view[start : start + 8]).startswith(LEFT_OUT)
        ):
            yield part
