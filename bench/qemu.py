"""The peers' QEMU: the one that is installed, and the newest that Debian has for this release.

The newest is in the backports. It is not installed: its packages, and what they need that is not
installed here, are unpacked in the cache, under ``qemu-newest``. Delete that folder to fetch anew.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.measure import BenchError
from guests import fetch

PROGRAM: Final = "qemu-system-x86_64"
PACKAGE: Final = "qemu-system-x86"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INSTALLED, NEWEST = "QEMU", "newest QEMU"  # names of rows

# As quick as these machines get: no video, network or disk controller to look for.
OPTIONS: Final = "-accel tcg -nodefaults -display none -serial stdio -no-reboot".split()


@dataclass(frozen=True)
class Qemu:
    """A QEMU: how it is started, and its version."""

    name: str
    version: str
    program: tuple[str, ...]

    @property
    def machine(self) -> tuple[str, ...]:
        """A command, to which a CPU, memory and what to boot are added."""
        return (*self.program, *OPTIONS)


@functools.cache
def installed() -> Qemu:
    """The QEMU of this machine; BenchError: there is none."""
    if not shutil.which(PROGRAM):
        raise BenchError(f"no {PROGRAM}: apt-get install --no-install-recommends {PACKAGE}")
    return Qemu(INSTALLED, _version((PROGRAM,)), (PROGRAM,))


@functools.cache
def newest() -> Qemu | None:
    """The newest QEMU, from the cache or from Debian's backports; None if it cannot be had."""
    root = fetch.cache_dir() / "qemu-newest"
    try:
        if not root.exists():
            _fetch(root)
        program = _program(root)
        return Qemu(NEWEST, _version(program), program)
    except (BenchError, *fetch.FAILURES) as error:
        print(f"bench: no newest QEMU: {error}", file=sys.stderr)
        return None


def all_of_them() -> tuple[Qemu, ...]:
    """Those that can be had."""
    return tuple(qemu for qemu in (installed(), newest()) if qemu)


def versions() -> dict[str, str]:
    """Of those that have been used so far."""
    found = []
    for look in (installed, newest):
        if look.cache_info().currsize:
            found.append(look())
    return {qemu.name: qemu.version for qemu in found if qemu}


def _version(program: tuple[str, ...]) -> str:
    result = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    return result.stdout.split()[3]


def _program(root: Path) -> tuple[str, ...]:
    """Start what is unpacked at `root`, with its own libraries, modules and firmware."""
    libraries = f"{root}/usr/lib/{os.uname().machine}-linux-gnu"
    variables = (f"LD_LIBRARY_PATH={libraries}", f"QEMU_MODULE_DIR={libraries}/qemu")
    firmware = ("-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios")
    return ("env", *variables, f"{root}/usr/bin/{PROGRAM}", *firmware)


class _Backports(fetch.Apt):
    """apt with the backports of this release, which knows what is installed here."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "amd64")
        self.sources = root / "sources.list"
        self.suite = f"{_codename()}-backports"
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        suites = (self.suite.removesuffix("-backports"), self.suite)
        root.mkdir(parents=True)
        self.sources.write_text(
            "".join(f"deb {signed}{_archive()} {suite} main\n" for suite in suites)
        )

    def options(self) -> Mapping[str, object]:
        """As for images, but for the sources and what is installed."""
        return {
            **super().options(),
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Etc::sourcelist": self.sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Debug::NoLocking": "1",  # dpkg's lock is root's, and nothing is installed
        }

    def download_all(self, package: str) -> list[Path]:
        """Download a package of the backports, and what it needs that is not installed."""
        words = f"-y -t {self.suite} --no-install-recommends --download-only install".split()
        self._run("apt-get", *words, package)
        return sorted((self.cache / "archives").glob("*.deb"))


def _fetch(root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="qemu-", dir=root.parent) as scratch:
        draft = Path(scratch) / "root"
        draft.mkdir()
        for package in _Backports(Path(scratch) / "apt").download_all(PACKAGE):
            subprocess.run(["dpkg-deb", "-x", package, draft], check=True)
        if not (draft / "usr/bin" / PROGRAM).exists():
            raise BenchError("the backports have none that is newer than the installed one")
        draft.rename(root)


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise BenchError("/etc/os-release names no release of Debian's")


def _archive() -> str:
    """Where this machine's apt gets the release itself from."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    words += [f"Codename: {_codename()}", "Component: main"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    for uri in result.stdout.split():
        return uri
    raise BenchError("this machine's apt has no Debian archive in its sources")
