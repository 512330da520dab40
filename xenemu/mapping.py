"""Memory of the host's, as a mapping of its own.

The host allocates a page when the page is first written, and a fork gets a copy.
"""

from __future__ import annotations

import mmap
from typing import Final

MAP_NORESERVE: Final = 0x4000  # Linux's; the mmap module names it only since Python 3.13


def anonymous(size: int) -> mmap.mmap:
    """`size` bytes of zeroes, private to this process."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
