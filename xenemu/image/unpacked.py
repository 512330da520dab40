"""Keep what compressed kernels unpack to, so that the next run need not do it again.

The cache directory ``$XDG_CACHE_HOME/xenemu/unpacked`` has a file for each kernel. The file's name
is a digest of the compressed bytes. The file has what they unpack to, and then a digest of both. It
may be removed at any time. If the directory cannot be made, nothing is kept.

Nothing there is taken on trust. The directory must belong to its owner alone, and must not be a
link. A file counts only if it is that user's, nobody else can write it, and its digest is right for
these compressed bytes. So a kernel is unpacked again if its file is damaged, or was put in another
file's place.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

WORTH_KEEPING: Final = 1 << 20  # bytes of compressed kernel; less is quickly unpacked
KEPT: Final = 8  # files; those used last
DIGEST: Final = hashlib.sha256
DIGEST_SIZE: Final = 32
NAME_LENGTH: Final = 40
MADE: Final = re.compile(r"[0-9a-f]{40}(\.new-\w{8})?")  # what this module calls its files
WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def unpacked(
    compressed: memoryview, unpack: Callable[[], bytes | bytearray], size: int | None = None
) -> memoryview:
    """What `unpack` makes of `compressed`: from the cache, or kept there from now on.

    `size` is how many bytes that must be, if it is known. The caller gets the errors of `unpack`.
    Errors of the cache only cost time.
    """
    if len(compressed) < WORTH_KEEPING:
        return memoryview(unpack()).toreadonly()
    key = DIGEST(compressed).digest()
    path = _directory() / key.hex()[:NAME_LENGTH]
    with suppress(OSError):
        view = _find(path, key)
        if view is not None and (size is None or len(view) == size):
            return view
    data = unpack()
    with suppress(OSError):
        _keep(path, key, data)
        view = _find(path, key)
        if view is not None:
            return view
    return memoryview(data).toreadonly()


def forget(view: memoryview) -> None:
    """Let the host take back the memory of a mapped file; a later read brings a page back."""
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(mmap.MADV_DONTNEED)


def _directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    cache = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return Path(cache, "xenemu", "unpacked")


def _digest(key: bytes, data: bytes | bytearray | memoryview) -> bytes:
    digest = DIGEST(key)
    digest.update(data)
    return digest.digest()


def _find(path: Path, key: bytes) -> memoryview | None:
    """Map the file at `path`; None if it is not to be trusted, OSError if there is none.

    A page that is never read again is not kept in memory: see `forget`.
    """
    if not _is_mine(path.parent.lstat(), stat.S_IFDIR):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not _is_mine(status, stat.S_IFREG) or status.st_size < DIGEST_SIZE:
            return None
        whole = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        data = whole[:-DIGEST_SIZE]
        if _digest(key, data) != whole[-DIGEST_SIZE:]:
            return None
        os.utime(descriptor)
        return data
    finally:
        os.close(descriptor)


def _is_mine(status: os.stat_result, kind: int) -> bool:
    """Whether a file is of this kind and this user's, and nobody else can write it."""
    return (
        stat.S_IFMT(status.st_mode) == kind
        and status.st_uid == os.geteuid()
        and not status.st_mode & WRITABLE_BY_OTHERS
    )


def _keep(path: Path, key: bytes, data: bytes | bytearray) -> None:
    """Write the file under another name first, so that it is there as a whole or not at all."""
    import tempfile  # noqa: PLC0415 (with all that it imports, rarely needed)

    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():  # root in a user's home, for one
            return
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f"{path.name}.new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.write(_digest(key, data))
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    made = [entry for entry in folder.iterdir() if MADE.fullmatch(entry.name)]
    for oldest in sorted(made, key=lambda entry: entry.lstat().st_mtime_ns)[:-KEPT]:
        oldest.unlink()
