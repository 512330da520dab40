"""Keep what compressed kernels unpack to, so that the next run need not do it again.

The cache directory ``$XDG_CACHE_HOME/xenemu/unpacked`` has a file for each kernel. The file's name
is a digest of the compressed bytes. The file has what they unpack to, and then a digest of both. It
may be removed at any time. If the directory cannot be made, nothing is kept.

Nothing there is taken on trust. Besides what `cachedir` asks for, a file's digest must be right for
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

from xenemu import cachedir
from xenemu.records import dataclass

WORTH_KEEPING: Final = 1 << 20  # bytes of compressed kernel; less is quickly unpacked
KEPT: Final = 8  # files; those used last
DIGEST: Final = hashlib.sha256
DIGEST_SIZE: Final = 32
NAME_LENGTH: Final = 40
MADE: Final = re.compile(r"[0-9a-f]{40}(\.new-\w{8})?")  # what this module calls its files


@dataclass(frozen=True)
class Kept:
    """Where the cache has what `compressed` unpacks to; `whole` is that file, if there is one.

    The file is open, and its digest not checked yet.
    """

    key: bytes
    path: Path
    whole: memoryview | None

    @classmethod
    def of(cls, compressed: memoryview) -> Kept:
        """Look for it."""
        key = DIGEST(compressed).digest()
        path = cachedir.directory("unpacked") / key.hex()[:NAME_LENGTH]
        with suppress(OSError):
            return cls(key, path, _map(path))
        return cls(key, path, None)

    def data(self) -> memoryview | None:
        """What is kept; None if there is nothing, or if its digest is wrong."""
        if self.whole is None:
            return None
        data = self.whole[:-DIGEST_SIZE]
        return data if _digest(self.key, data) == self.whole[-DIGEST_SIZE:] else None


def unpacked(
    compressed: memoryview,
    unpack: Callable[[], bytes | bytearray],
    size: int | None = None,
    kept: Kept | None = None,
) -> memoryview:
    """What `unpack` makes of `compressed`: from the cache, or kept there from now on.

    `size` is how many bytes that must be, if it is known. `kept` is what an earlier look into the
    cache has found. The caller gets the errors of `unpack`. Errors of the cache only cost time.
    """
    if len(compressed) < WORTH_KEEPING:
        return memoryview(unpack()).toreadonly()
    kept = kept or Kept.of(compressed)
    view = kept.data()
    if view is not None and (size is None or len(view) == size):
        return view
    data = unpack()
    with suppress(OSError):
        _keep(kept.path, kept.key, data)
        view = Kept.of(compressed).data()
        if view is not None:
            return view
    return memoryview(data).toreadonly()


def forget(view: memoryview) -> None:
    """Let the host take back the memory of a mapped file; a later read brings a page back."""
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(mmap.MADV_DONTNEED)


def _digest(key: bytes, data: bytes | bytearray | memoryview) -> bytes:
    digest = DIGEST(key)
    digest.update(data)
    return digest.digest()


def _map(path: Path) -> memoryview | None:
    """Map the file at `path`; None if it is not to be trusted, OSError if there is none.

    A page that is never read again is not kept in memory: see `forget`.
    """
    if not cachedir.is_mine(path.parent.lstat(), stat.S_IFDIR):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not cachedir.is_mine(status, stat.S_IFREG) or status.st_size < DIGEST_SIZE:
            return None
        os.utime(descriptor)
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)


def _keep(path: Path, key: bytes, data: bytes | bytearray) -> None:
    """Write the file under another name first, so that it is there as a whole or not at all."""
    import tempfile  # noqa: PLC0415 (with all that it imports, rarely needed)

    folder = path.parent
    if not cachedir.make(folder):
        return
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
    cachedir.thin_out(folder, MADE, KEPT)
