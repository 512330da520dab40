"""Load a PVH image from notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from elfwriter import Phdr, elf, note
from xenemu import image

PT_NOTE = 4
START = 0x100_0000


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[..., image.Image]:
    """Return a function that loads a kernel at 16 MiB, entered at 16 MiB + 16, with more notes."""

    def load(*notes: bytes, paddr: int = START, memsz: int = 0x2000) -> image.Image:
        found = b"".join((note(18, paddr + 16, width=4), *notes))
        segments = (
            Phdr(b"kernel".ljust(64, b"\x90"), paddr=paddr, memsz=memsz),
            Phdr(found, PT_NOTE, paddr=0, vaddr=0),
        )
        path = tmp_path / "kernel"
        path.write_bytes(elf(segments, bits=32))
        return image.load(path)

    return load
