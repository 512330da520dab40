"""The kernel's ELF as it is on disk, debug information included.

A run keeps no copy of the file, because the file may be large. It is read when gdb asks. If the
file is cut short meanwhile, gdb gets less.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from xenemu.errors import ImageError
from xenemu.image.elf import Elf, parse
from xenemu.image.files import map_file


class OnDisk:
    """A file, open as long as this is; its first bytes are `head`, whatever is there."""

    def __init__(self, path: str, head: bytes) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._head, self._size = head, os.fstat(self._file).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """The bytes of a slice without a step, as far as they are there."""
        start, end, _ = part.indices(self._size)
        os.lseek(self._file, start, os.SEEK_SET)  # pread is no call of a confined process
        data, left = self._head[start:end], max(0, end - start)
        found = bytearray()
        while len(found) < left and (piece := os.read(self._file, left - len(found))):
            found += piece
        return data + bytes(found[len(data) :])


def find(path: str, elf: memoryview) -> OnDisk | None:
    """The file at `path` if it is still the one that `elf` was copied from, by its headers.

    It begins as `elf` does.
    """
    try:
        there, copied = parse(map_file(Path(path))), parse(elf)
        if _headers(there) != _headers(copied) or len(there.view) != len(elf):
            return None
        return OnDisk(path, bytes(elf[:64]))
    except (ImageError, OSError):
        return None


def _headers(elf: Elf) -> tuple[object, ...]:
    return elf.entry, elf.program_headers, elf.section_headers
