"""Options that say what a guest gets, for all commands that boot one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xenemu.errors import UsageError
from xenemu.options import read_module
from xenemu.shares import FORM

Kernel = Annotated[
    Path,
    typer.Argument(
        metavar="KERNEL",
        help="bzImage, ELF, compressed ELF, or PE program; or a guest's configuration for"
        " xl create.",
    ),
]
Cmdline = Annotated[str, typer.Option(help="The kernel's command line.", metavar="TEXT")]
Initrd = Annotated[
    Path | None, typer.Option(help="An initial ramdisk to give the kernel.", metavar="FILE")
]
Init = Annotated[
    Path | None,
    typer.Option(
        help="Make an initramfs instead: of a script, with busybox, or of a static program.",
        metavar="FILE",
    ),
]
Rootfs = Annotated[
    Path | None, typer.Option(help="Make an initramfs of a directory.", metavar="DIR")
]
Busybox = Annotated[
    Path | None,
    typer.Option(
        help="The static busybox for --init and --rootfs, which else is the one in PATH;"
        " alone, it makes an initramfs that gives a shell, which ends with its input.",
        metavar="FILE",
    ),
]
Memory = Annotated[
    str, typer.Option(help="The guest's memory: a number and K, M or G.", metavar="SIZE")
]
MaxMem = Annotated[
    str | None,
    typer.Option(
        help="How much memory the guest can come to have: its balloon is told to keep to --memory,"
        " until xenemu control says otherwise.",
        metavar="SIZE",
    ),
]
Net = Annotated[
    list[str] | None,
    typer.Option(
        help="A network interface for the guest. user: this host's network, by passt, with this"
        " host's ports if you like (hostfwd=tcp:2222:22). socket:PATH: a wire to another xenemu or"
        " to QEMU's -netdev stream; the first one there listens. none-but-pcap: a wire with nobody"
        " at its other end. For several interfaces, say it again.",
        metavar="user[,hostfwd=tcp:HOSTPORT:PORT]|socket:PATH|none-but-pcap[,mac=MAC][,later]",
    ),
]
Disk = Annotated[
    list[str] | None,
    typer.Option(
        help="A disk for the guest. What it writes is gone after the run, unless you give an"
        " overlay a file: with rw it is in FILE,"
        " with ro it is refused. Without a name, it is the first free of xvda, xvdb and so on. For"
        " several disks, say it again.",
        metavar="FILE[,ro|rw|overlay[=FILE]][,name=xvda][,format=raw|qcow2][,sector-size=512|4096]"
        "[,persistent][,later]",
        rich_help_panel="Devices",
    ),
]
Sharing = Annotated[
    list[str] | None,
    typer.Option(
        "--share",
        help="A directory for the guest to mount by 9P, under its tag, root if none is given;"
        " Debian's diod serves it. The guest changes nothing in it, unless you say rw. For several"
        " directories, say it again.",
        metavar=FORM,
    ),
]
Overlay = Annotated[
    Path | None,
    typer.Option(
        help="Keep what the guest writes to its disk in this file, and go on from what an earlier"
        " run has left there; the disk's own file stays as it is.",
        metavar="FILE",
    ),
]
RngSeed = Annotated[
    str,
    typer.Option(
        help="What the guest's RDRAND and RDSEED begin with: a number of 64 bits. The same seed"
        " gives the same run.",
        metavar="NUMBER",
    ),
]
Slice = Annotated[
    str,
    typer.Option(
        help="How long a vcpu runs before another one that can run gets its turn: a number of"
        " nanoseconds, or of us or ms.",
        metavar="TIME",
    ),
]
ScheduleSeed = Annotated[
    str | None,
    typer.Option(
        help="Let vcpus run in an order, and for times, that this number of 64 bits draws: to hunt"
        " a race. The same seed gives the same run.",
        metavar="NUMBER",
    ),
]
EfiRoot = Annotated[
    Path | None,
    typer.Option(
        help="A directory whose files EFI has on a disk, to read; it is read before the guest runs."
        " For --entry efi and the like.",
        metavar="DIR",
    ),
]
DraftNotes = Annotated[
    str | None,
    typer.Option(
        help="The types of the notes PADDR_ENTRY and PADDR_OFFSET, for hvm-draft-a.",
        metavar="ENTRY,OFFSET",
    ),
]


def initial_ramdisk(
    initrd: Path | None, init: Path | None, rootfs: Path | None, busybox: Path | None, memory: int
) -> bytes:
    """The ramdisk that the options give or describe, for a guest of so many bytes of memory.

    Empty if they do neither. UsageError if two of them do, or if one cannot be honoured.
    """
    made = {"--init": init, "--rootfs": rootfs, "--busybox": busybox}
    asked = [option for option, path in made.items() if path is not None]
    if initrd is not None and asked:
        raise UsageError(f"{asked[0]}: there is --initrd {initrd} already; give one of them")
    if initrd is not None:
        return read_module("--initrd", initrd, memory)
    if not asked:
        return b""
    from xenemu.smoke import initramfs  # noqa: PLC0415 (nobody else pays for it)

    try:
        return initramfs.make(init, rootfs, busybox)
    except UsageError as error:  # which begins with a key of a plan
        raise UsageError(f"--{error}") from None
