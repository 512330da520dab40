"""Fill the cache of guest images: ``python guests/fetch.py [--refresh] [--path] [NAME...]``.

What is in the cache is never fetched again (``--refresh`` does), so that one run with a
network serves every later one without. apt works on lists of its own, kept in the cache: that
needs no privilege, leaves the machine's lists alone and can reach a foreign architecture.

Layout of ``$XDG_CACHE_HOME/xenemu``::

    images/<name>.json            {"version": ..., "path": ...}, written last
    images/<name>/<version>/...   the file or directory itself; a root file system's version is a
                                  digest of what is in it
    apt/<architecture>/           apt's lists and caches
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).parents[1]))
from guests import rootfs

DECLARATIONS = Path(__file__).with_name("images.toml")


class FetchError(Exception):
    """An image cannot be had; `str()` is one line that says why."""


# What else may go wrong while a package is taken apart: a full disk, a missing or failing dpkg-deb.
FAILURES = (
    FetchError,
    rootfs.RootfsError,
    OSError,
    subprocess.SubprocessError,
    tarfile.TarError,
)


@dataclass(frozen=True)
class Image:
    """A declaration of images.toml; exactly one of `file`, `files`, `tree` and `system` is set.

    `debug_of` names the kernel whose debug information it is, of the same version.
    """

    name: str
    package: str = ""
    metapackage: str = ""
    architecture: str = "amd64"
    file: str = ""
    files: tuple[str, ...] = ()
    tree: str = ""
    system: tuple[str, ...] = ()
    debug_of: str = ""

    @property
    def is_large(self) -> bool:
        """Whether it is fetched only if it is named."""
        return bool(self.debug_of)


@dataclass(frozen=True)
class Cached:
    """An image in the cache: the package version it came from, and where it is."""

    name: str
    version: str
    path: Path


def cache_dir() -> Path:
    """Return xenemu's directory in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xenemu"


def declared() -> dict[str, Image]:
    """Read images.toml."""
    tables = tomllib.loads(DECLARATIONS.read_text())
    for table in tables.values():
        table |= {key: tuple(table.get(key, ())) for key in ("files", "system")}
    return {name: Image(name, **table) for name, table in tables.items()}


def cached(name: str) -> Cached | None:
    """Look an image up in the cache, without a network; None also if it lacks a file by now."""
    images = cache_dir() / "images"
    try:
        record = json.loads((images / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    path = images / record["path"]
    if not path.exists() or (path.is_dir() and not _has_all(name, path)):
        return None
    return Cached(name, record["version"], path)


def _has_all(name: str, folder: Path) -> bool:
    """Whether each file that is declared today is there: it may be an older xenemu's folder."""
    image = declared().get(name)
    names = [path.name for path in folder.iterdir()]
    patterns = image.files if image else ()
    return all(fnmatch.filter(names, pattern.rpartition("/")[2]) for pattern in patterns)


class Apt:
    """apt for one architecture, with state of its own under `root`."""

    def __init__(self, root: Path, architecture: str) -> None:
        self.architecture = architecture
        self.state = root / architecture / "state"
        self.cache = root / architecture / "cache"
        self.updated = False

    def resolve(self, metapackage: str) -> str:
        """Return the package that a metapackage stands for today."""
        for line in self._run("apt-cache", "depends", metapackage).splitlines():
            kind, _, package = line.strip().partition(": ")
            if kind == "Depends":
                return package
        raise FetchError(f"{metapackage} depends on nothing")

    def download(self, package: str, folder: Path) -> Path:
        """Download a .deb into `folder`."""
        self._run("apt-get", "download", package, cwd=folder)
        return next(folder.glob("*.deb"))

    def _run(self, command: str, *arguments: str, cwd: Path | None = None) -> str:
        if not self.updated:
            self._update()
        result = self._call(command, *arguments, cwd=cwd)
        if result.returncode:
            raise FetchError(_last_line(result.stderr) or f"{command} failed")
        return result.stdout

    def _update(self) -> None:
        (self.state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self.cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        result = self._call("apt-get", "update")
        self.updated = True
        if result.returncode:  # a broken mirror of one suite leaves the other suites usable
            print(f"apt-get update: {_last_line(result.stderr)}", file=sys.stderr)

    def options(self) -> Mapping[str, object]:
        """What apt is told instead of what this machine's configuration says."""
        return {
            "Dir::State": self.state,
            "Dir::State::status": "/dev/null",  # what is installed here does not matter
            "Dir::Cache": self.cache,
            "APT::Architecture": self.architecture,
            "APT::Architectures::": self.architecture,
            "APT::Sandbox::User": "",  # its own user may not write to this user's cache
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }

    def _call(
        self, command: str, *arguments: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        settings = [
            word for key, value in self.options().items() for word in ("-o", f"{key}={value}")
        ]
        try:
            return subprocess.run(
                [command, "-q", *settings, *arguments],
                cwd=cwd,
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise FetchError(f"no {command}: guest images come from Debian's archive") from None


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith(("E: ", "W: "))]
    return lines[-1][3:] if lines else ""


def fetch(images: Iterable[Image], apt: Apt) -> tuple[list[Cached], dict[str, Exception]]:
    """Fetch images of one architecture; a package that several share is downloaded once."""
    done: list[Cached] = []
    failed: dict[str, Exception] = {}
    packages: dict[str, list[Image]] = {}
    for image in images:
        packages.setdefault(image.package or image.metapackage or image.name, []).append(image)
    for sharers in packages.values():
        with tempfile.TemporaryDirectory(prefix="xenemu-") as scratch:
            try:
                package = _package(sharers[0], apt)
                deb = apt.download(package, Path(scratch))
            except FetchError as error:
                failed |= {image.name: error for image in sharers}
                continue
            for image in sharers:
                try:
                    done.append(install(image, deb))
                except FAILURES as error:
                    failed[image.name] = error
    return done, failed


def _package(image: Image, apt: Apt) -> str:
    """The package that an image comes from, as apt takes it."""
    if not image.debug_of:
        return image.package or apt.resolve(image.metapackage)
    kernel = cached(image.debug_of)
    if kernel is None:
        raise FetchError(f"{image.debug_of} must be fetched first")
    return f"linux-image-{kernel.path.name.removeprefix('vmlinuz-')}-dbg={kernel.version}"


def install(image: Image, deb: Path) -> Cached:
    """Take what `image` names out of a .deb and enter it in the cache."""
    version = subprocess.run(
        ["dpkg-deb", "-f", deb, "Version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    images = cache_dir() / "images"
    folder = images / image.name / version.rpartition(":")[2]  # an epoch is no part of a path
    found = _extract(deb, image, folder)
    if len(found) < max(1, len(image.files)):
        raise FetchError(f"{deb.name} has no {image.file or image.tree or ', '.join(image.files)}")
    path = folder / image.tree if image.tree else folder if image.files else found[0]
    return _enter(image, version, path)


def make_system(image: Image) -> Cached:
    """Make a root file system and enter it in the cache; what is not complete has another name."""
    folder = cache_dir() / "images" / image.name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=folder) as scratch:
        draft = Path(scratch) / "made"
        draft.mkdir()
        version = rootfs.make(image.system, draft)
        if not (folder / version).exists():
            draft.rename(folder / version)
    return _enter(image, version, folder / version)


def _enter(image: Image, version: str, path: Path) -> Cached:
    images = cache_dir() / "images"
    record = {"version": version, "path": str(path.relative_to(images))}
    draft = images / f"{image.name}.json.new"
    draft.write_text(json.dumps(record) + "\n")
    draft.replace(images / f"{image.name}.json")
    return Cached(image.name, version, path)


def _extract(deb: Path, image: Image, folder: Path) -> list[Path]:
    """Extract the members of a .deb that `image` names; return their paths."""
    found = []
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as members,
    ):
        for member in members:
            name = member.name.removeprefix("./")
            source = members.extractfile(member) if member.isfile() else None
            if source is None or not _wanted(image, name):
                continue
            target = folder / (name if image.tree else Path(name).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read())
            target.chmod(0o755 if member.mode & 0o100 else 0o644)
            found.append(target)
    return found


def _wanted(image: Image, name: str) -> bool:
    if image.tree:
        return name.startswith(image.tree + "/")
    return any(fnmatch.fnmatch(name, pattern) for pattern in image.files or (image.file,))


def main() -> int:
    """Fetch what is missing; print name, version and path of each image, a line each."""
    parser = argparse.ArgumentParser(prog="guests/fetch.py", description="Fetch guest images.")
    parser.add_argument("name", nargs="*", help="images to fetch (default: all but large ones)")
    parser.add_argument("--refresh", action="store_true", help="fetch even what is cached")
    parser.add_argument("--path", action="store_true", help="print the paths only")
    arguments = parser.parse_args()
    known = declared()
    unknown = [name for name in arguments.name if name not in known]
    if unknown:
        parser.error(f"no image {unknown[0]!r}; there are: {', '.join(known)}")
    usual = [name for name, image in known.items() if not image.is_large]
    wanted = [known[name] for name in arguments.name or usual]

    failed: dict[str, Exception] = {}
    have = {image.name: None if arguments.refresh else cached(image.name) for image in wanted}
    for image in wanted:
        if image.system and not have[image.name]:
            try:
                have[image.name] = make_system(image)
            except FAILURES as error:
                failed[image.name] = error
    for architecture in sorted({image.architecture for image in wanted}):
        missing = [
            image
            for image in wanted
            if image.architecture == architecture and not (image.system or have[image.name])
        ]
        if missing:
            done, errors = fetch(missing, Apt(cache_dir() / "apt", architecture))
            have |= {entry.name: entry for entry in done}
            failed |= errors
    for name, entry in have.items():
        if not entry:
            print(f"{name:20} unavailable: {failed[name]}", file=sys.stderr)
        elif arguments.path:
            print(entry.path)
        else:
            print(f"{name:20} {entry.version:36} {entry.path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
