"""What a BSD kernel's own memory says of it: whether it panicked, and with which words.

All BSDs have a pointer `panicstr`, which is null until the first panic. GNU Mach has it, too.

In FreeBSD: sys/kern/kern_shutdown.c (vpanic). In NetBSD and OpenBSD: sys/kern/subr_prf.c.
"""

from __future__ import annotations

from typing import Final

from xenemu.errors import XenError
from xenemu.image import Image
from xenemu.image.orc import Read

MAX_MESSAGE: Final = 256  # bytes


class Bsd:
    """The BSD in a domain, if it is one; `read` is of its memory."""

    def __init__(self, image: Image, read: Read) -> None:
        self._image = image
        self._read = read

    @property
    def panicked(self) -> bool | None:
        """Whether it has panicked; None if memory does not tell."""
        pointer = self._panicstr()
        return None if pointer is None else bool(pointer)

    @property
    def panic_message(self) -> str:
        """The words with which the kernel panicked; nothing if there are none to be read."""
        pointer, text = self._panicstr(), b""
        while pointer and len(text) < MAX_MESSAGE and b"\0" not in text:
            try:
                text += self._read(pointer + len(text), 1)
            except XenError:
                break
        return text.partition(b"\0")[0].decode(errors="replace").strip()

    def _panicstr(self) -> int | None:
        address = self._image.symbols.address("panicstr")
        if address is None:
            return None
        try:
            return int.from_bytes(self._read(address, self._image.elf_class // 8), "little")
        except XenError:
            return None
