"""Build an initramfs: ``python guests/initramfs.py OUT.cpio.gz --busybox PATH [--init FILE]``.

The archive holds busybox with links for the commands below, the `init` script and the console
node that the kernel opens for it before it has mounted anything. The same input gives the same
bytes: no times, no owners, a fixed order.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

from __future__ import annotations

import argparse
import gzip
import stat
from dataclasses import dataclass
from pathlib import Path

DEFAULT_INIT = Path(__file__).with_name("linux-init") / "init"
COMMANDS = (
    "ash awk cat cp cut date dd dmesg echo expr false find free grep halt head hostname kill ls "
    "mkdir mknod mount mv poweroff printf ps pwd reboot rm sed seq sh sleep sort stty sync tail "
    "test touch tr true umount uname uniq uptime wc xargs yes"
).split()
DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "sys", "tmp")


@dataclass(frozen=True)
class Entry:
    """A member of the archive; `device` is (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def entries(busybox: bytes, init: bytes) -> list[Entry]:
    """List the members, parents before children."""
    links = [Entry(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in COMMANDS]
    members = [Entry(name, stat.S_IFDIR | 0o755) for name in DIRECTORIES]
    members += [
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        Entry("init", stat.S_IFREG | 0o755, init),
    ]
    return sorted(members + links, key=lambda entry: entry.name)


def newc(members: list[Entry]) -> bytes:
    """Write a cpio archive in the "newc" format, all times 0 and all owners root."""
    archive = bytearray()
    for inode, entry in enumerate([*members, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
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
    """Return the gzipped archive."""
    return gzip.compress(newc(entries(busybox, init)), compresslevel=6, mtime=0)


def main() -> None:
    """Write the archive that the command line describes."""
    parser = argparse.ArgumentParser(prog="guests/initramfs.py", description="Build an initramfs.")
    parser.add_argument("out", type=Path, metavar="OUT.cpio.gz")
    parser.add_argument("--busybox", type=Path, required=True, help="a static busybox")
    parser.add_argument("--init", type=Path, default=DEFAULT_INIT, help="the /init script")
    arguments = parser.parse_args()
    try:
        archive = build(arguments.busybox.read_bytes(), arguments.init.read_bytes())
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(archive)
    except OSError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
