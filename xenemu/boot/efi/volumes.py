"""The device that has the files of --efi-root: its handle, and its protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xenemu.boot.efi import device_path, fat, tables
from xenemu.boot.efi.abi import (
    BLOCK_IO,
    BLOCK_SERVICES,
    DEVICE_PATH,
    SIMPLE_FILE_SYSTEM,
    VOLUME_SERVICES,
)
from xenemu.boot.efi.programs import Writing
from xenemu.boot.efi.state import handle_of
from xenemu.boot.efi.volume import of_tree
from xenemu.boot.efi.width import WIDTHS
from xenemu.hv.building import Data

REVISION: Final = 1 << 16  # of each of the two protocols
MEDIA_FIELDS: Final = "IBBBBBIIQ"


def add(writing: Writing, tree: Mapping[str, Data]) -> None:
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
