"""Files as bytes, without reading more of them than is looked at."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from xenemu.errors import ImageError


def map_file(path: Path) -> memoryview:
    """Map a file; ImageError unless it is a regular one with something in it.

    OSError if it cannot be read.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size == 0:
            raise ImageError("the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
