"""The kernel's file and its modules', as gdb fetches them from the target to read symbols.

gdb manual: Host I/O Packets; The File Stat Structure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from xenemu.gdb.ondisk import OnDisk, find
from xenemu.gdb.rsp import PACKET_SIZE, number
from xenemu.gdb.symbolfile import has_own, module_file, symbol_file
from xenemu.gdb.target import Target

ENOENT, EBADF, EINVAL, EROFS = 2, 9, 22, 30  # gdb's own numbers, which are Linux's
REGULAR_READABLE: Final = 0o100444
# dev, ino, mode, nlink, uid, gid, rdev; size, blksize, blocks; atime, mtime, ctime
STAT: Final = struct.Struct(">7I3Q3I")
MAX_READ: Final = PACKET_SIZE // 2  # escaped, it may be twice as long
BLOCK: Final = 4096
PATIENCE: Final = 16 << 20  # bytes that gdb may fetch before it is told that this takes long
Content = memoryview | OnDisk
PHYSICAL_SUFFIX: Final = ".physical"
MODULES_SUFFIX: Final = ".modules"


class Files:
    """The files that there are: the kernel with its symbols, and the symbols of its modules.

    `tell` gets a sentence for the person at xenemu's terminal.
    """

    def __init__(self, target: Target, tell: Callable[[str], None] = lambda sentence: None) -> None:
        self._target, self._tell = target, tell
        self._left = PATIENCE  # bytes of files on disk, until the person is told
        self._path = str(Path(target.image.symbol_file.path).absolute())
        self._open: dict[int, Content] = {}
        self._contents: dict[bool, Content] = {}  # by whether it is of physical addresses

    @property
    def path(self) -> str:
        """What the file is called; in another layout it is another file."""
        return self._path + PHYSICAL_SUFFIX if self._target.shows_physical else self._path

    @property
    def modules_path(self) -> str:
        """What the file with the modules' names is called."""
        return self._path + MODULES_SUFFIX

    def prepare(self) -> Content:
        """Make the file, which takes longer than a gdb is willing to wait for an answer."""
        return self._prepare(self._target.shows_physical)

    def prepare_all(self) -> None:
        """Make the files of both layouts."""
        self._prepare(False)
        if self._target.image.elf_class == 64:
            self._prepare(True)

    def _prepare(self, physical: bool) -> Content:
        if physical not in self._contents:
            image = self._target.image
            made = symbol_file(image, physical)
            whole = None
            if has_own(image, physical):  # of which the copy here has no debug information
                whole = find(image.symbol_file.path, made)
            self._contents[physical] = whole or made
        return self._contents[physical]

    def close_all(self) -> None:
        """The gdb that had files open is gone."""
        self._open.clear()

    def handle(self, request: bytes) -> bytes:
        """Answer a ``vFile`` packet; ValueError if it is malformed."""
        verb, _, rest = request.partition(b":")
        arguments = rest.split(b",")
        if verb == b"setfs":
            return b"F0"
        if verb == b"open":
            return self._open_file(bytes.fromhex(arguments[0].decode("ascii")).decode())
        if verb == b"readlink":
            return _error(EINVAL)
        if verb in (b"pwrite", b"unlink"):
            return _error(EROFS)
        if verb not in (b"pread", b"fstat", b"close"):
            return b""
        descriptor = number(arguments[0])
        if descriptor not in self._open:
            return _error(EBADF)
        if verb == b"close":
            del self._open[descriptor]
            return b"F0"
        if verb == b"fstat":
            return _with_data(_stat(len(self._open[descriptor])))
        count, offset = map(number, arguments[1:3])
        content = self._open[descriptor]
        piece = content[offset : offset + min(count, MAX_READ)]
        if isinstance(content, OnDisk):
            self._count(len(piece), len(content))
        return _with_data(bytes(piece))

    def _count(self, fetched: int, size: int) -> None:
        """Tell the person, once, if gdb takes a large file through its connection."""
        was, self._left = self._left, self._left - fetched
        if was > 0 >= self._left:
            self._tell(
                f"gdb fetches {self._path}, {size >> 20} MiB, through its connection, which can"
                f" take minutes; gdb {self._path} reads it in seconds"
            )

    def _open_file(self, path: str) -> bytes:
        if path == self.path:
            content: Content = self.prepare()
        elif path == self.modules_path:  # those that are loaded by now
            content = module_file(self._target.image.elf_class, self._target.modules)
        else:
            return _error(ENOENT)
        descriptor = max(self._open, default=2) + 1
        self._open[descriptor] = content
        return b"F%x" % descriptor


def _stat(size: int) -> bytes:
    return STAT.pack(0, 1, REGULAR_READABLE, 1, 0, 0, 0, size, BLOCK, -(-size // 512), 0, 0, 0)


def _error(errno: int) -> bytes:
    return b"F-1,%x" % errno


def _with_data(data: bytes) -> bytes:
    return b"F%x;" % len(data) + data
