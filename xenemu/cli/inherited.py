"""Descriptors that this process was started with, besides its standard streams.

They belong to others. They may name files (``--log /dev/fd/3``), and are of no use any more when
those files are open.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

STDERR: Final = 2
FOLDER: Final = "/proc/self/fd"
_inherited: list[int] = []


def note() -> None:
    """Note the descriptors. Call this before this process opens anything of its own."""
    with suppress(OSError):  # no /proc
        _inherited[:] = filter(_is_inherited, map(int, os.listdir(FOLDER)))


def close() -> None:
    """Close the noted descriptors, so that a guest that breaks out cannot use them."""
    while _inherited:
        with suppress(OSError):
            os.close(_inherited.pop())


def _is_inherited(descriptor: int) -> bool:
    try:  # what Python opens is closed by exec, so that it did not come through one
        return descriptor > STDERR and os.get_inheritable(descriptor)
    except OSError:  # it was that of the listing
        return False
