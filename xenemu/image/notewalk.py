"""How Xen goes from one ELF note to the next, and which notes it thereby misses.

Xen steps by 4 bytes, whatever the alignment. A linker may put notes that are aligned to 8 among
others; `.note.gnu.property` is such a note. It then fills the gaps with zeros, and Xen takes the
zeros for the beginning of a note. The sizes that Xen then reads lead anywhere, mostly out of the
file. Xen never complains.

In Xen: common/libelf/libelf-dominfo.c (elf_xen_parse_notes), libelf-tools.c (elf_note_name,
elf_note_desc, elf_note_next)
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from xenemu.records import dataclass

HEADER: Final = struct.Struct("<III")  # namesz, descsz, type
MAX_NAME: Final = 4096  # libelf's longest string
MAX_SCAN: Final = 1 << 20
XEN: Final = b"Xen"
XEN_NOTE: Final = re.compile(rb"\x04\0\0\0.{8}Xen\0", re.DOTALL)


@dataclass(frozen=True)
class FoundNote:
    """A note as it lies in the file, or what Xen takes for one.

    `owner` is the string up to its NUL. `desc_at` follows from the size that is given for the
    string. `desc_size` may reach beyond the file.
    """

    offset: int
    owner: bytes
    type: int
    desc_at: int
    desc_size: int
    sound: bool = True  # the name has the size that it says


def walk(view: memoryview, start: int, size: int) -> Iterator[FoundNote]:
    """Yield the notes that Xen reads in a segment or section; the number has no limit."""
    offset, end = start, start + size
    while offset < min(end, len(view)):
        note, following = _read(view, offset)
        if note.owner == XEN or offset + HEADER.size <= end:
            yield note
        if following <= offset:
            return
        offset = following


def missed(view: memoryview, start: int, size: int, seen: set[int]) -> Iterator[FoundNote]:
    """Yield the notes of Xen's that lie there, but at none of the offsets `seen`."""
    for match in XEN_NOTE.finditer(view[start:][: min(size, MAX_SCAN)]):
        offset = start + match.start()
        if offset not in seen:
            yield _read(view, offset)[0]


def _read(view: memoryview, offset: int) -> tuple[FoundNote, int]:
    """The note at an offset in the file, and the offset of what Xen takes for the next."""
    # Words outside the file are 0 to libelf.
    header = bytes(view[offset : offset + HEADER.size]).ljust(HEADER.size, b"\0")
    name_size, desc_size, note_type = HEADER.unpack(header)
    name_at = offset + HEADER.size
    name, nul, _ = bytes(view[name_at : name_at + MAX_NAME]).partition(b"\0")
    owner = name if nul else b""
    desc_at = name_at + _up(name_size)
    sound = bool(nul) and len(name) + 1 == name_size
    note = FoundNote(offset, owner, note_type, desc_at, desc_size, sound)
    return note, desc_at + _up(desc_size)


def _up(size: int) -> int:
    """Round up to 4 bytes, as an unsigned int."""
    return size + 3 & 0xFFFFFFFC
