"""The files of boots that run on another machine: they travel by digest, and are kept there.

Here, `pack` replaces the paths of boots by names, and says what each name stands for: a file by its
SHA-256, a directory by all that is in it. There, `keep` takes a file's bytes into the user's cache,
and `unpacked` lays files out under their names, for as long as the boots run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Final

from xenemu import cachedir
from xenemu.disks import parse_disk
from xenemu.errors import UsageError
from xenemu.needs import BUSYBOX
from xenemu.network.asked import parse_net
from xenemu.options import digest_of
from xenemu.records import dataclass
from xenemu.smoke.plan import Boot
from xenemu.smoke.plan_text import PlanError

KEPT: Final = 256  # files, of which those that were used last stay,
IN_USE_S: Final = 3600  # and all that were used in this time: boots may wait for more
DIGEST: Final = re.compile("[0-9a-f]{64}")
PLACE: Final = "place"  # the file with the cache's own name
PATHS: Final = ("kernel", "initrd", "init", "rootfs", "busybox", "efi_root")
SPECS: Final = {"module": "=", "disk": ","}  # a path, and what ends it


@dataclass(frozen=True)
class Entry:
    """A file, a directory or a link that boots need: where it is to lie, and what is in it."""

    name: str
    mode: int  # with the kind
    digest: str = ""  # of a file
    target: str = ""  # of a link


@dataclass(frozen=True)
class Load:
    """Boots with names for paths; what these stand for; the paths that they had, by name."""

    boots: tuple[Boot, ...]
    entries: tuple[Entry, ...]
    paths: Mapping[str, str]


def moved(boot: Boot, to: Callable[[Path], Path]) -> Boot:
    """The same boot with other paths."""
    changed: dict[str, object] = {
        name: to(path) for name in PATHS if (path := getattr(boot, name)) is not None
    }
    for name, separator in SPECS.items():
        parts = [text.partition(separator) for text in getattr(boot, name)]
        changed[name] = tuple(f"{to(Path(path))}{end}{rest}" for path, end, rest in parts)
    if boot.origin:
        changed["origin"] = moved(boot.origin, to)
    return replace(boot, **changed)  # type: ignore[arg-type] # each has its field's type


# Here.


def check(boots: Iterable[Boot]) -> None:
    """UsageError: one of them needs what only this machine has."""
    for boot in boots:
        if needs := _bound_to(boot):
            problem = f"{boot.name}: with --executor, there can be no {needs}"
            raise PlanError(boot.place, problem) if boot.place else UsageError(problem)


def _bound_to(boot: Boot) -> str:
    if boot.share:
        return "share: the directory is on this machine"
    if any(parse_disk("disk", text).leaves for text in boot.disk):
        return "disk that it writes to: the file is on this machine"
    if any(parse_net("net", text).path for text in boot.net):
        return "net on a socket: that is on this machine"
    return ""


@dataclass
class Packer:
    """Packs boots; reads each file once to find its digest, whatever number of boots has it."""

    files: dict[str, Path] = field(default_factory=dict)  # by digest
    _known: dict[tuple[Path, bool], tuple[Entry, ...]] = field(default_factory=dict)

    def pack(self, boots: Sequence[Boot]) -> Load:
        """UsageError: a file cannot be read."""
        names: dict[Path, str] = {}
        followed = {os.path.abspath(boot.efi_root) for boot in boots if boot.efi_root}

        def name(path: Path) -> Path:
            whole = Path(os.path.abspath(path))
            return Path(names.setdefault(whole, f"{len(names)}-{whole.name}"))

        packed = tuple(moved(_with_busybox(boot), name) for boot in boots)
        entries = [
            replace(entry, name=f"{name}{entry.name}")
            for path, name in names.items()
            for entry in self._entries(path, str(path) in followed)
        ]
        return Load(packed, tuple(entries), {name: str(path) for path, name in names.items()})

    def data(self, digest: str) -> bytes:
        """The bytes of a file; UsageError: it has others by now."""
        with suppress(OSError):
            data = self.files[digest].read_bytes()
            if hashlib.sha256(data).hexdigest() == digest:
                return data
        raise UsageError("it has changed since the boots began")

    def _entries(self, path: Path, follows: bool) -> tuple[Entry, ...]:
        if (path, follows) not in self._known:
            try:
                below = sorted(path.rglob("*")) if path.is_dir() else []
                found = [self._entry(path, one, follows) for one in (path, *below)]
            except OSError as error:
                raise UsageError(f"{error.filename}: {error.strerror}") from None
            self._known[path, follows] = tuple(entry for entry in found if entry)
        return self._known[path, follows]

    def _entry(self, root: Path, path: Path, follows: bool) -> Entry | None:
        """None of what an initramfs has none of, either: sockets, devices and the like.

        With `follows`, a link to a file is that file, as EFI sees it.
        """
        name = str(path)[len(str(root)) :]
        mode = (
            path.stat() if path == root or (follows and path.is_file()) else path.lstat()
        ).st_mode
        if stat.S_ISLNK(mode):
            return Entry(name, mode, target=os.readlink(path))
        if stat.S_ISDIR(mode):
            return Entry(name, mode)
        if not stat.S_ISREG(mode):
            return None
        digest = digest_of(path, "--executor:")
        self.files[digest] = path
        return Entry(name, mode, digest)


def _with_busybox(boot: Boot) -> Boot:
    """The busybox that a script would take from PATH is this machine's, as without an executor."""
    if boot.init and not (boot.rootfs or boot.busybox) and (found := BUSYBOX.find()):
        return replace(boot, busybox=Path(found))
    return boot


# There.


def folder() -> Path:
    """The directory in which files are kept, by digest; OSError or UsageError."""
    kept = cachedir.directory("cargo")
    if not cachedir.make(kept):
        raise UsageError(f"{kept}: belongs to another user")
    return kept


def place() -> str:
    """The name of this machine's cache, which another machine may share."""
    path = folder() / PLACE
    with _written(path.parent, os.urandom(16).hex().encode()) as new, suppress(FileExistsError):
        os.link(new, path)
    return path.read_text()


def lacking(entries: Iterable[Entry]) -> list[str]:
    """The digests of the files that are not kept here."""
    kept, found = folder(), []
    for digest in dict.fromkeys(entry.digest for entry in entries if entry.digest):
        try:
            if not cachedir.is_mine((kept / digest).lstat(), stat.S_IFREG):
                found.append(digest)
            else:
                os.utime(kept / digest)  # it is in use
        except FileNotFoundError:
            found.append(digest)
    return found


def keep(digest: str, data: bytes) -> None:
    """Keep a file; OSError. ValueError: these are not its bytes."""
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("a file was damaged on its way")
    kept = folder()
    with _written(kept, data) as new:
        os.link(new, f"{new}.whole")
        os.replace(f"{new}.whole", kept / digest)
    cachedir.thin_out(kept, DIGEST, KEPT, IN_USE_S)


@contextmanager
def _written(folder: Path, data: bytes) -> Iterator[str]:
    """A new file, for as long as it has no other name."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="new-") as file:
        file.write(data)
        file.flush()
        yield file.name


@contextmanager
def unpacked(load: Load) -> Iterator[tuple[list[Boot], dict[str, str]]]:
    """Lay files out; the boots with paths here, and the paths at home, by those here; OSError."""
    kept = folder()
    with tempfile.TemporaryDirectory(dir=kept, prefix="boots-") as scratch:
        place = Path(scratch)
        for entry in load.entries:
            _lay_out(kept, place / entry.name, entry)
        for entry in reversed(load.entries):  # a directory that is full may be read-only
            if stat.S_ISDIR(entry.mode):
                (place / entry.name).chmod(stat.S_IMODE(entry.mode))
        boots = [moved(boot, lambda name: place / name) for boot in load.boots]
        yield boots, {str(place / name): path for name, path in load.paths.items()}


def _lay_out(kept: Path, path: Path, entry: Entry) -> None:
    if entry.target:
        path.symlink_to(entry.target)
    elif stat.S_ISDIR(entry.mode):
        path.mkdir()
    elif path.parent.parent == kept:
        os.link(kept / entry.digest, path)
    else:  # an initramfs has its mode
        shutil.copyfile(kept / entry.digest, path)
        path.chmod(stat.S_IMODE(entry.mode))
