"""What keeps the requests for a share inside its directory, in addition to what holds the server.

diod knows a file by its path, and follows the path anew for each request: through symbolic links,
and through "..". Landlock keeps it from opening what lies outside, but not from changing the mode,
the owner and the times of a file there. So dom0 knows the path of each fid, too. Before a request
that opens or changes something, it walks that path, and sees that only directories lead there. The
guest's requests come one after the other, so it cannot change the path in between.

Nor are devices opened: a guest whose server is root could make one that is the host's disk.

In Linux: net/9p/client.c. In diod: protocol.md
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Final

from xenemu.dom0.p9_messages import HEADER, LENGTH, WORD, Export, Refused, T, error
from xenemu.records import dataclass

SYMLINK, MKNOD, RENAME, SETATTR, XATTRCREATE = 16, 18, 20, 26, 32
LINK, MKDIR, RENAMEAT, UNLINKAT = 70, 72, 74, 76
# What requests begin with that open or change something: fids (f), and names (n).
CHECKED: Final = {
    T.LOPEN: "f", T.LCREATE: "fn", SYMLINK: "fn", MKNOD: "fn", RENAME: "ffn", SETATTR: "f",
    LINK: "ffn", MKDIR: "fn", RENAMEAT: "fnfn", UNLINKAT: "fn", T.REMOVE: "f",
}  # fmt: skip
NO_FID: Final = 0xFFFF_FFFF
ROOT, LOOK = NO_FID - 1, NO_FID - 2  # dom0's own fids: the directory, and what it looks at
MOST_FIDS: Final = 1 << 17
AT_ONCE: Final = 8  # names in a walk
QID: Final = 13  # bytes
QTDIR, QTSYMLINK = 0x80, 0x02
ATTR_MODE, ATTR_SIZE = 1, 8  # in SETATTR's mask
GETATTR_MODE: Final = 1

Path = tuple[bytes, ...]  # from the directory that is shared


@dataclass
class Paths:
    """The fids of a connection, by `exchange`, which asks the server; each with its path and type.

    `export` says whom dom0 is, to the server.
    """

    exchange: Callable[[bytes], bytes]
    export: Export
    fids: dict[int, tuple[Path, int]] = field(default_factory=dict)
    attached: bool = False  # ROOT is

    def ask(self, request: bytes) -> bytes:
        """The answer to a request: the server's, unless the request leads out of the directory."""
        try:
            return self._ask(request)
        except Refused as refused:
            fid = _first(request)
            if request[4] == T.REMOVE and fid in self.fids:  # it gives the fid back even so
                del self.fids[fid]
                self._own(T.CLUNK, request, WORD.pack(fid))
            return error(request, refused.errno)

    def _ask(self, request: bytes) -> bytes:
        kind, fid = request[4], _first(request)
        if kind == T.VERSION:
            self.fids.clear()
            self.attached = False
        elif kind != T.FLUSH and fid in (ROOT, LOOK):
            raise Refused(errno.EBADF)
        if kind in (T.WALK, T.ATTACH) and len(self.fids) >= MOST_FIDS:
            raise Refused(errno.EMFILE)
        if kind == T.WALK:
            return self._walk(request)
        if kind == XATTRCREATE:  # it is done later, where nothing looks at the path
            raise Refused(errno.EOPNOTSUPP)
        fids, names = _parse(request, CHECKED.get(kind, ""))
        paths = [self._check(kind, one, request) for one in fids]
        answer = self.exchange(request)
        if kind in (T.CLUNK, T.REMOVE):
            self.fids.pop(fid, None)
        elif answer[4] == kind + 1:
            if kind == T.ATTACH:
                self._note(fid, (), QTDIR)
            elif kind == T.LCREATE:
                self._note(fid, (*paths[0], *names), 0)
            elif kind == RENAME:
                self._note(fid, (*paths[1], *names), self.fids[fid][1])
        return answer

    def _walk(self, request: bytes) -> bytes:
        """Walk, but not through anything but directories."""
        (fid, new), _ = _parse(request, "ff")
        at = HEADER.size + 2 * WORD.size
        if new in (ROOT, LOOK) or at + LENGTH.size > len(request):
            raise Refused(errno.EBADF)
        (count,) = LENGTH.unpack_from(request, at)
        _, names = _parse(request, "n" * count, at + LENGTH.size)
        path, found = self._known(fid)
        if names and found != QTDIR:
            raise Refused(errno.ENOTDIR)
        answer = self.exchange(request)
        if answer[4] != T.WALK + 1:
            return answer
        types = _types(answer)
        if len(types) < len(names):  # the guest gets no fid, whatever the server has
            self.fids.pop(new, None)
        else:
            self._note(new, (*path, *names), types[-1] if types else found)
        if any(one != QTDIR for one in types[:-1]):
            self.fids.pop(new, None)
            self._own(T.CLUNK, request, WORD.pack(new))
            raise Refused(errno.ENOTDIR)
        return answer

    def _note(self, fid: int, path: Path, found: int) -> None:
        self.fids[fid] = path, found

    def _known(self, fid: int) -> tuple[Path, int]:
        if fid not in self.fids:
            raise Refused(errno.EBADF)
        return self.fids[fid]

    def _check(self, kind: int, fid: int, request: bytes) -> Path:
        """The path of a fid; Refused if it leads outside, or to what may not be used so."""
        path, _ = self._known(fid)
        try:
            found = self._look(path, request)
            if found == QTSYMLINK and kind == T.LOPEN:
                raise Refused(errno.ELOOP)
            if found == QTSYMLINK and kind == SETATTR and _mask(request) & (ATTR_MODE | ATTR_SIZE):
                raise Refused(errno.EOPNOTSUPP)  # diod would change what it leads to
            if kind == T.LOPEN and self._is_device(request):
                raise Refused(errno.ENXIO)
        finally:
            self._own(T.CLUNK, request, WORD.pack(LOOK))
        return path

    def _look(self, path: Path, request: bytes) -> int:
        """Walk from the directory to a path, as LOOK; its type."""
        if not self.attached:
            names = LENGTH.pack(0) + LENGTH.pack(len(self.export.path)) + self.export.path
            body = struct.pack("<II", ROOT, NO_FID) + names + WORD.pack(self.export.uid or 0)
            self._demand(T.ATTACH, request, body)
            self.attached = True
        self._demand(T.WALK, request, struct.pack("<IIH", ROOT, LOOK, 0))
        types = [QTDIR]
        for at in range(0, len(path), AT_ONCE):
            some = path[at : at + AT_ONCE]
            packed = b"".join(LENGTH.pack(len(name)) + name for name in some)
            body = struct.pack("<IIH", LOOK, LOOK, len(some)) + packed
            found = _types(self._demand(T.WALK, request, body))
            if len(found) < len(some):
                raise Refused(errno.ENOENT)
            types += found
        if any(one != QTDIR for one in types[:-1]):
            raise Refused(errno.ENOTDIR)
        return types[-1]

    def _is_device(self, request: bytes) -> bool:
        answer = self._demand(T.GETATTR, request, struct.pack("<IQ", LOOK, GETATTR_MODE))
        mode = int(WORD.unpack_from(answer, HEADER.size + 8 + QID)[0])
        return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)

    def _demand(self, kind: int, request: bytes, body: bytes) -> bytes:
        """The answer to a request of dom0's own; Refused, as the server refuses it."""
        answer = self._own(kind, request, body)
        if answer[4] != kind + 1:
            raise Refused(int.from_bytes(answer[HEADER.size :][: WORD.size], "little"))
        return answer

    def _own(self, kind: int, request: bytes, body: bytes) -> bytes:
        tag = HEADER.unpack_from(request)[2]
        return self.exchange(HEADER.pack(HEADER.size + len(body), kind, tag) + body)


def _first(request: bytes) -> int:
    """The first word after the header: a fid, in most requests."""
    return int.from_bytes(request[HEADER.size :][: WORD.size], "little")


def _mask(request: bytes) -> int:
    """What a SETATTR changes."""
    return int.from_bytes(request[HEADER.size + WORD.size :][: WORD.size], "little")


def _types(answer: bytes) -> Sequence[int]:
    """The types of what an RWALK has come to."""
    return answer[HEADER.size + LENGTH.size :: QID]


def _parse(request: bytes, form: str, at: int = HEADER.size) -> tuple[list[int], list[bytes]]:
    """The fids and names in a request; Refused if it is cut off, or a name could lead elsewhere."""
    fids, names = [], []
    try:
        for one in form:
            if one == "f":
                fids.append(WORD.unpack_from(request, at)[0])
                at += WORD.size
            else:
                end = at + LENGTH.size + LENGTH.unpack_from(request, at)[0]
                names.append(request[at + LENGTH.size : end])
                at = end
    except struct.error:
        raise Refused(errno.EINVAL) from None
    if at > len(request):
        raise Refused(errno.EINVAL)
    if any(name in (b"", b".", b"..") or b"/" in name or b"\0" in name for name in names):
        raise Refused(errno.EACCES)
    return fids, names
