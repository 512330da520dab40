"""What is kept of each boot that passed, for the page of a later run to compare with.

A file for each boot, in a directory that a person names, or in the cache. Many plans have their
boots there, and two of them may give a boot the same name. So a file's name tells the plan, too.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Final

import msgspec

from xenemu import cachedir
from xenemu.errors import OutputError, UsageError
from xenemu.outputs import encode
from xenemu.records import dataclass
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result

SUFFIX: Final = ".passed"
CACHED: Final = re.compile(r"[0-9a-f]{32}-.*\.passed")
KEPT: Final = 4096  # files in the cache
LIMIT: Final = 24 << 20  # bytes of a file: more than those of a console that is kept


class Passed(msgspec.Struct):
    """A boot that passed: when, since 1970, and its console with virtual times."""

    name: str
    started: float
    log: str


@dataclass
class Baseline:
    """Where they are kept; `option` begins a complaint, if a person has named the place."""

    folder: Path
    option: str = ""
    found: dict[str, Passed] = field(default_factory=dict)

    @classmethod
    def of(cls, boots: Sequence[Boot], named: Path | None) -> Baseline:
        """Read what there is of these boots; UsageError: what a person named has others' files.

        What is in the cache, and cannot be read, is not there.
        """
        cached = cls(cachedir.directory("passed"))
        baseline = cached if named is None else cls(named, "--baseline")
        for boot in boots if baseline._may_be_read else ():
            try:
                baseline.found[boot.name] = _read(baseline.path(boot))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                if baseline.option:
                    why = error.strerror if isinstance(error, OSError) else "not of xenemu's making"
                    said = f"{baseline.option} {baseline.path(boot)}: {why}"
                    raise UsageError(said) from None
        return baseline

    @property
    def _may_be_read(self) -> bool:
        if self.option:
            return True
        try:
            return cachedir.is_mine(self.folder.lstat(), stat.S_IFDIR)
        except OSError:
            return False

    def path(self, boot: Boot) -> Path:
        """The file of a boot."""
        name = f"{boot.slug}{SUFFIX}"
        return self.folder / (name if self.option else f"{_whose(boot)}-{name}")

    def keep(self, results: Sequence[Result]) -> None:
        """Let the boots that passed take the places of earlier ones.

        OutputError: what a person named cannot be written. Without the cache, one does.
        """
        try:
            if self.option:
                self.folder.mkdir(parents=True, exist_ok=True)
            elif not cachedir.make(self.folder):
                return
            for result in results:
                if not result.findings:
                    self._write(result)
            if not self.option:
                cachedir.thin_out(self.folder, CACHED, KEPT)
        except OSError as error:
            if self.option:
                raise OutputError(f"{self.option} {self.folder}: {error.strerror}") from None

    def _write(self, result: Result) -> None:
        kept = Passed(_plain(result.boot.name), result.started, _plain(result.log))
        path = self.path(result.boot)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with fresh.open("xb") as file:
                file.write(msgspec.json.encode(kept))
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def _plain(text: str) -> str:
    """Text that can be written: a file's name may have what is no character in it."""
    return encode(text).decode()


def _read(path: Path) -> Passed:
    """What is in a file; ValueError: it is not ours, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(LIMIT + 1) or b""  # None of a pipe that somebody holds open
    if len(data) > LIMIT:
        raise ValueError
    return msgspec.json.decode(data, type=Passed)


def _whose(boot: Boot) -> str:
    """What tells a boot from those of another plan, or of another kernel without a plan."""
    path = os.path.abspath(boot.place.file if boot.place else boot.kernel)
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
