"""What the firmware has by way of devices: the initial ramdisk, random numbers, files.

UEFI specification 2.10, sections 13.2 (LoadFile2), 37.5 (RNG), 13.4 and 13.9 (what a volume has).
In Linux: drivers/firmware/efi/libstub/efi-stub-helper.c
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from xenemu.entries.efi import device_path, fat, tables
from xenemu.entries.efi.abi import (
    BLOCK_IO,
    BLOCK_SERVICES,
    DEVICE_PATH,
    RNG_ALGORITHM_RAW,
    SIMPLE_FILE_SYSTEM,
    VOLUME_SERVICES,
    Status,
)
from xenemu.entries.efi.call import Call, check, needed, service
from xenemu.entries.efi.programs import Writing
from xenemu.entries.efi.state import handle_of
from xenemu.entries.efi.volume import of_tree
from xenemu.entries.efi.width import WIDTHS
from xenemu.hv.building import Data

MAX_RANDOM: Final = 1 << 20  # bytes at a time
REVISION: Final = 1 << 16  # of a volume's two protocols
MEDIA_FIELDS: Final = "IBBBBBIIQ"


@service("LoadFile2.LoadFile", "NNBNN")
def load_file(call: Call, this: int, path: int, boot: int, size_at: int, buffer: int) -> None:
    check(path and size_at, Status.INVALID_PARAMETER, "a pointer is null")
    check(not boot, Status.UNSUPPORTED, "LoadFile2 is not for boot options")
    initrd = call.firmware.initrd
    room = call.read_word(size_at)
    call.write_word(size_at, len(initrd))
    enough = buffer and room >= len(initrd)
    check(enough, Status.BUFFER_TOO_SMALL, f"the initrd has {len(initrd)} bytes")
    call.write(buffer, initrd)


@service("Rng.GetInfo", "NNN")
def get_info(call: Call, this: int, size_at: int, list_at: int) -> None:
    room = call.read_word(needed(size_at))
    call.write_word(size_at, len(RNG_ALGORITHM_RAW))
    check(room >= len(RNG_ALGORITHM_RAW), Status.BUFFER_TOO_SMALL, "there is one algorithm")
    call.write(needed(list_at), RNG_ALGORITHM_RAW)


@service("Rng.GetRNG", "NNNN")
def get_rng(call: Call, this: int, algorithm_at: int, size: int, value_at: int) -> None:
    """Give bytes that follow from --rng-seed and from how many calls there were."""
    raw = not algorithm_at or call.read_guid(algorithm_at) == RNG_ALGORITHM_RAW
    check(raw, Status.UNSUPPORTED, "there is only the algorithm RAW")
    check(0 < size <= MAX_RANDOM, Status.INVALID_PARAMETER, f"{size} random bytes at a time")
    firmware = call.firmware
    state = firmware.seed + firmware.random_taken.to_bytes(8, "little")
    call.write(needed(value_at), hashlib.shake_128(state).digest(size))
    firmware.random_taken += 1


def add_volume(writing: Writing, tree: Mapping[str, Data]) -> None:
    """Give the firmware a volume: files to read, and a disk that has them in its blocks."""
    firmware = writing.firmware
    width, revision = WIDTHS[firmware.width], REVISION.to_bytes(8, "little")
    firmware.volume = of_tree(tree)
    firmware.disk = disk = fat.make(firmware.volume)
    last = disk.size // fat.SECTOR - 1
    # Present, and to be read only; neither removable nor a partition, and without a cache.
    media = writing(width.pack(MEDIA_FIELDS, 0, 0, 1, 0, 1, 0, fat.SECTOR, 0, last))
    blocks = width.pointers(media) + tables.pointers(firmware, BLOCK_SERVICES)
    firmware.volume_handle = handle_of(
        firmware,
        {
            DEVICE_PATH: writing(device_path.VOLUME + device_path.END),
            SIMPLE_FILE_SYSTEM: writing(revision + tables.pointers(firmware, VOLUME_SERVICES)),
            BLOCK_IO: writing(revision + blocks),
        },
    )
