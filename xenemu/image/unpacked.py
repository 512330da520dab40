"""Keep what compressed kernels unpack to, so that the next run need not do it again.

A file each in the cache directory, ``$XDG_CACHE_HOME/xenemu/unpacked``, named by a digest of the
compressed bytes. It may be removed at any time. Where there can be no such directory, nothing is
kept.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

WORTH_KEEPING: Final = 1 << 20  # bytes of compressed kernel; less is quickly unpacked
KEPT: Final = 8  # files; those used last


def unpacked(
    compressed: memoryview, unpack: Callable[[], bytes | bytearray], size: int | None = None
) -> memoryview:
    """What `unpack` makes of `compressed`: from the cache, or kept there from now on.

    `size` is how many bytes that must be, if it is known. Errors of `unpack` are the caller's;
    those of the cache only cost time.
    """
    if len(compressed) < WORTH_KEEPING:
        return memoryview(unpack()).toreadonly()
    path = _directory() / hashlib.blake2b(compressed, digest_size=20).hexdigest()
    with suppress(OSError, ValueError):  # ValueError: an empty file cannot be mapped
        view = map_file(path)
        if size is None or len(view) == size:
            os.utime(path)
            return view
    data = unpack()
    with suppress(OSError):
        _keep(path, data)
        return map_file(path)
    return memoryview(data).toreadonly()


def map_file(path: Path) -> memoryview:
    """Map a regular file: what is never read is never in memory. OSError, ValueError: empty."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def forget(view: memoryview) -> None:
    """Let the host take back the memory of a mapped file; what is read again is there again."""
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(mmap.MADV_DONTNEED)


def _directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    cache = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return Path(cache, "xenemu", "unpacked")


def _keep(path: Path, data: bytes | bytearray) -> None:
    """Write the file under another name first: it is there wholly, or not at all."""
    import tempfile  # noqa: PLC0415 (with all that it imports, rarely needed)

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    by_use = sorted(path.parent.iterdir(), key=lambda kept: kept.stat().st_mtime_ns)
    for oldest in by_use[:-KEPT]:
        oldest.unlink(missing_ok=True)
