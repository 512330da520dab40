"""Memory of the host's, as a mapping of its own.

The host allocates a page when the page is first written, and a fork gets a copy.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final

Run = tuple[int, bytes | memoryview]  # an address in some memory, and what is there

MAP_NORESERVE: Final = 0x4000  # Linux's; the mmap module names it only since Python 3.13


def anonymous(size: int) -> mmap.mmap:
    """`size` bytes of zeroes, private to this process."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)


def private(descriptor: int, size: int) -> mmap.mmap:
    """What a file holds, as memory of this process: what is written there stays here."""
    flags, prot = mmap.MAP_PRIVATE | MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.mmap(descriptor, size, flags=flags, prot=prot)


def sparse(size: int) -> mmap.mmap:
    """The same, for data with large gaps: the host never gives a huge page for a small one."""
    mapping = anonymous(size)
    with suppress(OSError):  # a kernel without huge pages does not know of them
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping
