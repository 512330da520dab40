"""What is kept from run to run, in ``$XDG_CACHE_HOME/xenemu``. It may be removed at any time.

Nothing there is taken on trust. A directory must belong to this user, and must not be a link. A
file counts only if it is that user's and nobody else can write it.
"""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def directory(name: str) -> Path:
    """Where things of a kind are kept; it need not be there."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    cache = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return Path(cache, "xenemu", name)


def is_mine(status: os.stat_result, kind: int) -> bool:
    """Whether a file is of this kind and this user's, and nobody else can write it."""
    return (
        stat.S_IFMT(status.st_mode) == kind
        and status.st_uid == os.geteuid()
        and not status.st_mode & WRITABLE_BY_OTHERS
    )


def make(folder: Path) -> bool:
    """Make a directory for this user alone, unless it is there; False if it is another's.

    OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():  # root in a user's home, for one
            return False
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return True


def thin_out(folder: Path, names: re.Pattern[str], kept: int, in_use_s: float = 0) -> None:
    """Remove all files of such names but those that were used last; OSError.

    None that was used less than `in_use_s` ago is removed. Others may do the same meanwhile.
    """
    used: list[tuple[int, Path]] = []
    for entry in folder.iterdir():
        if names.fullmatch(entry.name):
            with suppress(FileNotFoundError):
                used.append((entry.lstat().st_mtime_ns, entry))
    latest = time.time_ns() - int(in_use_s * 1e9)
    for at_ns, oldest in sorted(used)[:-kept]:
        if not in_use_s or at_ns < latest:
            oldest.unlink(missing_ok=True)
