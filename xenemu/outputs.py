"""The one rule for the files that a command writes.

An output must be new or empty, or a pipe or a device, but no disk. `-` names none. A file that has
something in it belongs to somebody, and stays. Two outputs are never one file, even if two
processes write them. All are opened before anything runs. If one is refused, or if the command
fails before it begins, no empty file is left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from xenemu.errors import OutputError, UsageError

FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
UNNAMED: Final = "-"  # what many programs take for standard output or input
STANDARD: Final = {1: "standard output", 2: "standard error"}
Identity = tuple[int, int]  # a device and an inode


class Output:
    """What is open for writing; `name` is what the person calls it.

    `is_file`: it is a file, so there is no reader at the other end who might be slow.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name
        self.is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def write(self, data: bytes, anew: bool = False) -> None:
        """Write all of it, if `anew` in the place of what was written before; OutputError."""
        left = memoryview(data)
        try:
            if anew and self.is_file:
                os.truncate(self.descriptor, 0)
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError as error:
            raise OutputError(f"{self.name}: {error.strerror}") from None

    def skip(self, size: int) -> None:
        """Write so many zeroes; in a file, a hole, which takes no room; OutputError."""
        if not self.is_file:
            self.write(bytes(size))
            return
        try:
            os.ftruncate(self.descriptor, os.lseek(self.descriptor, size, os.SEEK_END))
        except OSError as error:
            raise OutputError(f"{self.name}: {error.strerror}") from None

    @property
    def is_written(self) -> bool:
        """Whether a file has something in it: a copy of this process may have written it."""
        try:
            return self.is_file and os.lseek(self.descriptor, 0, os.SEEK_END) > 0
        except OSError:  # it has no end, as /proc/self/mem
            return False

    def empty(self) -> None:
        """Take back what was written to a file, as far as the host lets us."""
        if self.is_file:
            with suppress(OSError):
                os.ftruncate(self.descriptor, 0)


class Folder:
    """A directory for outputs."""

    def __init__(self, option: str, path: Path) -> None:
        self._option, self._path = option, path

    def write(self, name: str, data: str | bytes) -> None:
        """Write a file as a whole; OutputError, also if there is something in it by now."""
        path = self._path / name
        try:
            with Outputs() as outputs:
                output = outputs.open(self._option, path)
                output.write(encode(data) if isinstance(data, str) else data)
        except UsageError as error:
            raise OutputError(str(error)) from None


class Outputs:
    """The outputs of a command: a context, in which they are open."""

    def __init__(self) -> None:
        self._open: list[Output] = []
        self._created: list[Path] = []
        self._taken: dict[Identity, str] = {}
        for descriptor, name in STANDARD.items():
            with suppress(OSError):
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode):
                    self._taken.setdefault(_identity(status), name)

    def open(self, option: str, path: Path) -> Output:
        """Open a file; UsageError if the rule forbids it, or if it cannot be written."""
        name = f"{option} {path}"
        _check_named(option, path)
        try:
            descriptor = self._descriptor(path)
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}") from None
        output = Output(descriptor, name)
        self._open.append(output)
        self._claim(output)
        return output

    def folder(self, option: str, path: Path, names: Iterable[str]) -> Folder:
        """Make a directory, unless it is there, for files of these names.

        UsageError if the rule forbids one of them.
        """
        _check_named(option, path)
        try:
            self._created += [p for p in (path, *path.parents) if not p.exists()]
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            for file in (path / name for name in names):
                with suppress(FileNotFoundError):
                    self._check(f"{option} {file}", file.stat())
        except OSError as error:
            raise UsageError(f"{option} {path}: {error.strerror}") from None
        return Folder(option, path)

    def _descriptor(self, path: Path) -> int:
        is_link_to_nothing = path.is_symlink() and not path.exists()
        new = Path(os.path.realpath(path)) if is_link_to_nothing else path
        with suppress(FileExistsError):
            descriptor = os.open(new, FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            self._created.append(new)
            return descriptor
        return os.open(path, FLAGS)

    def _claim(self, output: Output) -> None:
        status = os.fstat(output.descriptor)
        self._check(output.name, status)
        if stat.S_ISCHR(status.st_mode):
            return
        self._taken[_identity(status)] = output.name
        if output.is_file:
            try:
                fcntl.flock(output.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"{output.name}: another xenemu writes it now") from None
            except OSError:  # a file system without locks
                pass

    def _check(self, name: str, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{name}: {os.strerror(errno.EISDIR)}")
        if stat.S_ISBLK(status.st_mode):  # a disk has something on it
            raise UsageError(f"{name}: a block device; choose a file, a pipe or another device")
        other = self._taken.get(_identity(status))
        if other is not None:
            raise UsageError(f"{name}: the same file as {other}")
        if stat.S_ISREG(status.st_mode) and status.st_size:
            raise UsageError(f"{name}: the file exists; remove it, or choose another name")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all; OutputError if one cannot be written to its end."""
        if error is not None:
            self.discard()
        failed = ""
        for output in self._open:
            try:
                os.close(output.descriptor)
            except OSError as fault:
                failed = failed or f"{output.name}: {fault.strerror}"
        if failed and error is None:
            raise OutputError(failed)

    def discard(self) -> None:
        """Remove the files and directories that were made, and have nothing in them."""
        for path in self._created:
            with suppress(OSError):
                if path.is_dir():
                    path.rmdir()
                elif path.stat().st_size == 0:
                    path.unlink()


def check_ending(
    option: str, path: Path, forms: Mapping[str, Sequence[str]], others: str = ""
) -> None:
    """UsageError unless a file's name has an ending of one of the `forms`, in any case.

    `forms` has what each is for, and its endings; `others` says what else the option takes.
    """
    if path.suffix.lower() not in chain(*forms.values()):
        known = ", ".join(f"{' or '.join(ends)} for {what}" for what, ends in forms.items())
        raise UsageError(f"{option} {path}: end its name in {known}{others}")


def _check_named(option: str, path: Path) -> None:
    if str(path) == UNNAMED:
        raise UsageError(f"{option} {path}: this does not go to standard output; name a file")


def encode(text: str) -> bytes:
    """Text as the bytes of a file; what is no character, say in a file's name, is escaped."""
    return text.encode(errors="backslashreplace")


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
