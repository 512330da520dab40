"""The options that give a guest its initial ramdisk: --initrd, --init, --rootfs, --busybox."""

from __future__ import annotations

from pathlib import Path

from xenemu.errors import UsageError
from xenemu.options import read_module


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
