"""What dom0 changes in the messages of 9P2000.L that pass between a guest and a server.

The server knows which directory is shared, and the guest does not. So an attach gets the
directory's name here, and a user that the server accepts. If the guest may only read, dom0 refuses
all that could change something. It passes what is known to be harmless, so that it also refuses
what it does not know.

In Linux: include/net/9p/9p.h, and the formats in net/9p/client.c. In diod: protocol.md
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from xenemu.abi.errno import EINVAL, EROFS
from xenemu.records import dataclass


class T(IntEnum):
    """The type of a message; an answer's is one more than its request's."""

    RLERROR = 7
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    READLINK = 22
    GETATTR = 24
    XATTRWALK = 30
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    CLUNK = 120
    REMOVE = 122


HARMLESS: Final = frozenset(T) - {T.RLERROR, T.LCREATE, T.REMOVE}

HEADER: Final = struct.Struct("<IBH")  # size of all, type, tag
WORD: Final = struct.Struct("<I")
LENGTH: Final = struct.Struct("<H")  # before each string
ATTACH_NAMES: Final = HEADER.size + 8  # in an attach: after it the user and the directory
OPEN_FLAGS: Final = HEADER.size + 4  # in LOPEN
ATIME, MTIME = slice(80, 96), slice(96, 112)  # in the answer to GETATTR
NOBODY: Final = 0xFFFF_FFFF  # an attach that gives no uid

# Flags of Linux's open, which the protocol has as they are on x86.
O_ACCMODE, O_CREAT, O_EXCL, O_TRUNC, O_NONBLOCK = 0o3, 0o100, 0o200, 0o1000, 0o4000


class Refused(Exception):
    """dom0 answers a request itself, with this errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


@dataclass(frozen=True)
class Export:
    """What is shared: the directory as the server names it, and whether it may be changed.

    If `uid` is given, whoever attaches is this user. Else the guest says who attaches, and if it
    does not, root does.
    """

    path: bytes
    writable: bool = False
    uid: int | None = None


def kind(message: bytes) -> int:
    """The type of a message, which is a `T` or unknown here."""
    return message[4]


def error(request: bytes, errno: int) -> bytes:
    """The answer that refuses a request."""
    _, _, tag = HEADER.unpack_from(request)
    return HEADER.pack(HEADER.size + WORD.size, T.RLERROR, tag) + WORD.pack(errno)


def amend(request: bytes, export: Export) -> bytes:
    """The request as the server gets it. Refused: it does not get it."""
    match kind(request):
        case T.ATTACH:
            return _attach(request, export)
        case T.LOPEN:
            return _open(request, export, OPEN_FLAGS)
        case T.LCREATE if export.writable:
            # What is there already could be a device, or a link to somewhere.
            return _open(request, export, OPEN_FLAGS + _string(request, OPEN_FLAGS), O_EXCL)
        case T.REMOVE if not export.writable:  # also gives the fid back, even if it fails
            return HEADER.pack(len(request), T.CLUNK, HEADER.unpack_from(request)[2]) + request[7:]
        case other if export.writable or other in HARMLESS:
            return request
    raise Refused(EROFS)


def amend_answer(request: bytes, answer: bytes, export: Export) -> bytes:
    """The answer to a request of the guest's, as the guest gets it.

    A file's time of access is shown as that of its last change. It would differ from run to run.
    """
    if kind(request) == T.REMOVE and not export.writable:
        return error(request, EROFS)
    if kind(answer) == T.GETATTR + 1 and len(answer) >= MTIME.stop:
        return answer[: ATIME.start] + answer[MTIME] + answer[ATIME.stop :]
    return answer


def _attach(request: bytes, export: Export) -> bytes:
    """Attach to the shared directory, whichever the guest named."""
    user = _string(request, ATTACH_NAMES)
    directory = ATTACH_NAMES + user
    uid = _word(request, directory + _string(request, directory))
    if export.uid is not None or uid == NOBODY:
        uid = export.uid or 0
    body = request[HEADER.size : directory] + LENGTH.pack(len(export.path)) + export.path
    _, message, tag = HEADER.unpack_from(request)
    size = HEADER.size + len(body) + WORD.size
    return HEADER.pack(size, message, tag) + body + WORD.pack(uid)


def _open(request: bytes, export: Export, at: int, more: int = 0) -> bytes:
    """Do not wait for the other end of a FIFO, which only this guest could open."""
    flags = _word(request, at)
    if not export.writable and (flags & O_ACCMODE or flags & (O_CREAT | O_TRUNC)):
        raise Refused(EROFS)
    return request[:at] + WORD.pack(flags | O_NONBLOCK | more) + request[at + WORD.size :]


def _word(message: bytes, at: int) -> int:
    if at + WORD.size > len(message):
        raise Refused(EINVAL)
    return int(WORD.unpack_from(message, at)[0])


def _string(message: bytes, at: int) -> int:
    """How many bytes a string takes, its length included."""
    if at + LENGTH.size > len(message):
        raise Refused(EINVAL)
    return LENGTH.size + int(LENGTH.unpack_from(message, at)[0])
