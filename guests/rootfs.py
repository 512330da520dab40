"""Make a root file system of Debian packages, without root's rights where the host allows it.

mmdebstrap installs the packages, and picks how: as root, in a user namespace, or with fakechroot.
`rootfs/customize` then makes of it what tests need. The same packages give the same bytes.

An image of this kind is a directory::

    vmlinuz       the kernel that is installed in it
    initrd.img    Debian's own initramfs for this kernel, which also has the modules of 9p
    root.ext4     the file system, for a disk; its label is "root"
    root.tar      the same files, for a directory, and so without /etc/fstab
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

RECIPE: Final = Path(__file__).with_name("rootfs")
APT: Final = Path("/etc/apt")  # whose sources are the mirrors

SUITE: Final = "bookworm"
EPOCH: Final = 1_750_000_000  # no file is newer, and mkfs.ext4's clock stands still there
SIZE: Final = "1G"  # of the disk, most of it a hole
UUID: Final = "00000000-0000-4000-8000-000000000001"


class RootfsError(Exception):
    """There can be no root file system; `str()` is one line that says why."""


def make(packages: Sequence[str], folder: Path) -> str:
    """Make the image in `folder`; return a digest of it. RootfsError: it cannot be made."""
    needed = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs"}
    needed |= {command: command for command in _pretending()}
    for command, package in needed.items():
        if shutil.which(command, path=search_path()) is None:
            raise RootfsError(f"no {command}: install Debian's {package}")
    tar = folder / "root.tar"
    with tempfile.TemporaryDirectory(prefix="xenemu-") as scratch:
        options, files = Path(scratch) / "apt.conf", Path(scratch) / "files.tar"
        options.write_text(_apt_options())
        pack(RECIPE / "files", files)
        _run(
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"),
            *(f"--aptopt={options}", '--aptopt=APT::Install-Recommends "false"'),
            *(f"--dpkgopt=path-exclude=/usr/share/{kind}/*" for kind in ("doc", "man", "locale")),
            "--format=tar",
            "--skip=cleanup/reproducible",  # customize does it, and leaves the machine's identity
            f"--essential-hook=tar-in {files} /",
            f"--customize-hook={(RECIPE / 'customize').read_text()}",
            *(SUITE, str(tar), *map(str, _sources())),
        )
    _extract(tar, "boot/vmlinuz-*", folder / "vmlinuz")
    _extract(tar, "boot/initrd.img-*", folder / "initrd.img")
    make_disk(tar, folder / "root.ext4")
    with (folder / "root.ext4").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def pack(tree: Path, tar: Path) -> None:
    """Make an archive of files that are root's, and private if they are keys."""
    with tarfile.open(tar, "w") as archive:
        for path in sorted(path for path in tree.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(str(path.relative_to(tree)))
            member.size, member.mtime = path.stat().st_size, EPOCH
            member.mode = 0o600 if path.name.endswith("_key") else 0o644
            with path.open("rb") as file:
                archive.addfile(member, file)


def make_disk(tar: Path, disk: Path, size: str = SIZE) -> None:
    """Make an ext4 file system of an archive."""
    script = (
        'tar -xpf "$1" -C "$2" --numeric-owner && install -m 644 "$3" "$2/etc"'
        ' && touch -d "@$SOURCE_DATE_EPOCH" "$2/etc/fstab" "$2/etc" && mkfs.ext4 -q -L root -d "$2"'
        ' -U "$5" -E "hash_seed=$5,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0" "$4" "$6"'
    )
    disk.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="xenemu-") as tree:
        fstab = RECIPE / "files/etc/fstab"
        arguments = map(str, (tar, tree, fstab, disk, UUID, size))
        _run(*_pretending(), "sh", "-c", script, "sh", *arguments)
        _stop_clocks(tar, disk, Path(tree))


def _stop_clocks(tar: Path, disk: Path, scratch: Path) -> None:
    """Undo what tells when the archive was extracted: the inodes' times of access and change."""
    with tarfile.open(tar) as members:
        paths = {f"/{member.name.removeprefix('.').removeprefix('/')}" for member in members}
    paths |= {"/", "/etc", "/etc/fstab"}
    commands = [f"set_current_time @{EPOCH}"]
    for path in sorted(paths):
        commands += [f'set_inode_field "{path}" {time} @{EPOCH}' for time in ("atime", "ctime")]
    script = scratch / "commands"
    script.write_text("\n".join(commands))
    _run("debugfs", "-w", "-f", str(script), str(disk))


def _pretending() -> list[str]:
    """The command that lets files be root's, for a user who is not root."""
    return [] if os.getuid() == 0 else ["fakeroot"]


def _extract(tar: Path, pattern: str, target: Path) -> None:
    with tarfile.open(tar) as members:
        for member in members:
            source = members.extractfile(member) if member.isfile() else None
            if source and Path(member.name.removeprefix("./")).match(pattern):
                with target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                return
    raise RootfsError(f"the root file system has no {pattern}")


def _sources() -> list[Path]:
    found = [APT / "sources.list", *sorted((APT / "sources.list.d").glob("*"))]
    return [path for path in found if path.suffix in (".list", ".sources") and path.is_file()]


def _apt_options() -> str:
    """How this machine's apt reaches its mirrors: proxies, dates and so on."""
    dump = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True
    )
    return "".join(f"{line}\n" for line in dump.stdout.splitlines() if '""' not in line)


def search_path() -> str:
    """PATH, with what only root's shows."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _run(*command: str) -> None:
    environment = {
        **os.environ,
        "PATH": search_path(),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "E2FSPROGS_FAKE_TIME": str(EPOCH),
    }
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["failed"]
        errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
        why = (errors or lines)[-1]
        raise RootfsError(f"{Path(command[0]).name}: {why}")
