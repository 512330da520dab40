"""Make an initramfs: of a script and busybox, of a static program, or of a directory.

The archive has the console node that the kernel opens for /init before anything is mounted. The
same input gives the same bytes: no times, no owners, a fixed order.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path
from typing import Final

from xenemu.errors import ImageError, UsageError
from xenemu.image import elf
from xenemu.needs import BUSYBOX
from xenemu.records import dataclass

COMMANDS: Final = (
    "ash awk basename cat chmod chown chroot cmp cp cut date dd dirname dmesg echo env expr false "
    "find free grep gunzip halt head hostname id insmod ip kill ln ls lsmod md5sum mkdir mkfifo "
    "mknod mktemp modprobe mount mv nc nproc ping poweroff printf ps pwd readlink reboot rm rmdir "
    "sed seq setsid sh sha256sum sleep sort stat stty switch_root sync tail tar tee test timeout "
    "touch tr true udhcpc umount uname uniq uptime usleep wc wget which xargs yes"
).split()
LARGEST: Final = 256 << 20  # bytes of a program
LARGEST_TREE: Final = 1 << 30  # bytes of all files of a directory
MOST_FILES: Final = 1 << 18
DIRECTORIES: Final = ("bin", "dev", "etc", "proc", "root", "sys", "tmp")


# A shell with Ctrl-C, which needs a session and a terminal of its own. Xen's console is where the
# person is, also where the kernel was not told to print there.
SHELL: Final = b"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
tty=/dev/hvc0
[ -c $tty ] || tty=/dev/console
exec <$tty >$tty 2>&1
echo "A shell of busybox; exit powers off."
grep -q hvc /sys/class/tty/console/active ||
    echo "The kernel prints elsewhere: console=hvc0 on its command line shows it here."
setsid sh -c "exec sh <$tty >$tty 2>&1"
poweroff -f
"""


@dataclass(frozen=True)
class Member:
    """A member of the archive; `device` is (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


NODES: Final = (
    Member("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
    Member("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
)


def entries(init: bytes, busybox: bytes | None = None) -> list[Member]:
    """List the members of an archive that is made of an /init and, maybe, a static busybox."""
    members = [Member(name, stat.S_IFDIR | 0o755) for name in DIRECTORIES]
    members += [*NODES, Member("init", stat.S_IFREG | 0o755, init)]
    if busybox is not None:
        members.append(Member("bin/busybox", stat.S_IFREG | 0o755, busybox))
        members += [Member(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in COMMANDS]
    return members


def newc(members: list[Member]) -> bytes:
    """Write a cpio archive in the "newc" format: by name, so that parents come first."""
    archive = bytearray()
    ordered = sorted(members, key=lambda entry: entry.name)
    for inode, entry in enumerate([*ordered, Member("TRAILER!!!", 0)], start=1):
        name = os.fsencode(entry.name) + b"\0"
        header = (
            inode,
            entry.mode,
            0,  # uid
            0,  # gid
            2 if stat.S_ISDIR(entry.mode) else 1,  # links
            0,  # mtime
            len(entry.data),
            *(0, 0),  # the device that holds the archive's source
            *entry.device,
            len(name),
            0,  # checksum, unused in this format
        )
        archive += b"070701" + b"".join(b"%08x" % field for field in header) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def build(busybox: bytes, init: bytes) -> bytes:
    """Return the gzipped archive of a busybox userland that runs `init`."""
    return pack(entries(init, busybox))


def pack(members: list[Member]) -> bytes:
    """Return the gzipped archive of `members`."""
    return gzip.compress(newc(members), compresslevel=6, mtime=0)


def make(init: Path | None, rootfs: Path | None, busybox: Path | None) -> bytes:
    """Return the archive that these ask for; at least one is given.

    With a `busybox` alone, /init is a shell. `init` becomes /init: a script, which also gets
    busybox, or a static program. `rootfs` is a directory that is taken as it is. If `busybox` is
    given, too, the archive gets busybox and its commands, except where the directory has a file of
    that name. If no `busybox` is given, a script uses the one in PATH. UsageError for what cannot
    be read, or what cannot run.
    """
    program = _read("init", init) if init is not None else None
    if rootfs is None and init is None:
        return build(read_busybox(busybox), SHELL)
    if rootfs is None:
        assert init is not None and program is not None
        if program.startswith(elf.MAGIC):
            _check_static("init", init, program)
            return pack(entries(program))
        if not program.startswith(b"#!"):
            raise UsageError(f"init {init}: neither a script that begins with #! nor an ELF")
        return build(read_busybox(busybox), program)
    try:
        if not stat.S_ISDIR(rootfs.stat().st_mode):
            raise UsageError(f"rootfs {rootfs}: not a directory")
    except FileNotFoundError:
        raise UsageError(f"rootfs {rootfs}: there is no such directory") from None
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"rootfs {rootfs}: {error.strerror}") from None
    if os.path.samefile(rootfs, "/"):
        raise UsageError(f"rootfs {rootfs}: this host's own root, with /proc in it: give a copy")
    members = {entry.name: entry for entry in NODES}
    members["dev"] = Member("dev", stat.S_IFDIR | 0o755)
    if busybox is not None:
        members |= {entry.name: entry for entry in entries(b"", read_busybox(busybox))}
        del members["init"]
    members |= {entry.name: entry for entry in _tree(rootfs)}
    if program is not None:
        members["init"] = Member("init", stat.S_IFREG | 0o755, program)
    if "init" not in members:
        raise UsageError(f"rootfs {rootfs}: has no /init; give one with init")
    return pack(list(members.values()))


def read_busybox(path: Path | None = None) -> bytes:
    """The bytes of a static busybox, if not of that in PATH; UsageError."""
    found = path or BUSYBOX.find()
    if found is None:
        raise UsageError(f"busybox: not found, and a script needs it: install {BUSYBOX.package}")
    data = _read("busybox", Path(found))
    _check_static("busybox", Path(found), data)
    return data


def _check_static(what: str, path: Path, data: bytes) -> None:
    if not data.startswith(elf.MAGIC):
        raise UsageError(f"{what} {path}: not an ELF; give a static program")
    try:
        dynamic = elf.parse(memoryview(data)).interpreter
    except ImageError as error:
        raise UsageError(f"{what} {path}: {error}") from None
    if dynamic:
        raise UsageError(
            f"{what} {path}: wants {dynamic}, which is not in the archive: link it static"
        )


def _tree(root: Path) -> list[Member]:
    """The members of a directory, with their modes; sockets and the like are left out.

    UsageError if it is more than any guest's initramfs: it may be the host's root.
    """
    found: list[Member] = []
    too_much = f"rootfs {root}: more than {MOST_FILES} files, or {LARGEST_TREE >> 20} MiB of them"
    room = LARGEST_TREE
    try:
        for path in root.rglob("*"):
            status, name = path.lstat(), str(path.relative_to(root))
            room -= status.st_size if stat.S_ISREG(status.st_mode) else 0
            if room < 0 or len(found) >= MOST_FILES:
                raise UsageError(too_much)
            if stat.S_ISLNK(status.st_mode):
                data = os.fsencode(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                data = _bounded(path, room + status.st_size)
                room -= max(0, len(data) - status.st_size)  # in /proc, a size says nothing
                if room < 0:
                    raise UsageError(too_much)
            elif stat.S_ISDIR(status.st_mode):
                data = b""
            else:
                continue
            found.append(Member(name, status.st_mode, data))
    except OSError as error:
        raise UsageError(f"rootfs {error.filename}: {error.strerror}") from None
    return found


def _bounded(path: Path, most: int) -> bytes:
    """What is in a file, or its beginning and a byte too much; waits for nobody. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most + 1) or b""


def _read(what: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)  # a device may have no end
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise UsageError(f"{what} {path}: larger than {LARGEST >> 20} MiB")
    return data
