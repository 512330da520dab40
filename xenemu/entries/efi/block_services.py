"""Block I/O: the files of --efi-root as a disk, to read.

UEFI specification 2.10, section 13.9.
"""

from __future__ import annotations

from typing import Final

from xenemu.entries.efi.abi import Status
from xenemu.entries.efi.call import Call, EfiError, check, needed, service
from xenemu.entries.efi.fat import SECTOR
from xenemu.entries.efi.memory_services import MAX_SPAN, take_time

MEDIA_ID: Final = 0


@service("BlockIo.Reset", "NB")
def reset_blocks(call: Call, this: int, extended: int) -> None:
    pass


@service("BlockIo.ReadBlocks", "NIQNN")
def read_blocks(call: Call, this: int, media: int, block: int, size: int, buffer: int) -> None:
    disk = call.firmware.disk
    if disk is None:
        raise EfiError(Status.NO_MEDIA, "there is no disk")
    check(media == MEDIA_ID, Status.MEDIA_CHANGED, f"there is no medium {media}")
    check(not size % SECTOR, Status.BAD_BUFFER_SIZE, f"{size} bytes are not whole blocks")
    inside = size <= MAX_SPAN and block * SECTOR + size <= disk.size
    check(inside, Status.INVALID_PARAMETER, f"{size} bytes from block {block:#x} are not all there")
    if size:
        call.write(needed(buffer), disk.read(block * SECTOR, size))
        take_time(call, size)


@service("BlockIo.WriteBlocks", "NIQNN")
def write_blocks(call: Call, this: int, media: int, block: int, size: int, buffer: int) -> None:
    raise EfiError(Status.WRITE_PROTECTED, "the disk is to be read only")


@service("BlockIo.FlushBlocks", "N")
def flush_blocks(call: Call, this: int) -> None:
    pass
