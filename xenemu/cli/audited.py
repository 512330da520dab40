"""Which snapshot files have passed an audit: it need not be repeated for the same bytes.

The cache directory ``$XDG_CACHE_HOME/xenemu/audited`` has an empty file for each, whose name says
which xenemu has audited a file of which digest.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from xenemu import __version__, cachedir

KEPT: Final = 256
MADE: Final = re.compile(r"[0-9a-f]{64}-\S+")  # what this module calls its files


def knows(digest: bytes) -> bool:
    """Whether a file of that digest has passed."""
    path = _path(digest)
    try:
        return cachedir.is_mine(path.parent.lstat(), stat.S_IFDIR) and cachedir.is_mine(
            path.lstat(), stat.S_IFREG
        )
    except OSError:
        return False


def remember(digest: bytes) -> None:
    """Note that a file of that digest has passed. If it cannot be noted, that only costs time."""
    path = _path(digest)
    with suppress(OSError):
        if not cachedir.make(path.parent):
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        os.utime(descriptor)
        os.close(descriptor)
        cachedir.thin_out(path.parent, MADE, KEPT)


def _path(digest: bytes) -> Path:
    return cachedir.directory("audited") / f"{digest.hex()}-{__version__}"
