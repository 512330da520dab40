"""The programs that are loaded: their handles, and EFI_LOADED_IMAGE_PROTOCOL.

UEFI specification 2.10, section 9.
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

from xenemu.entries.efi import device_path, tables
from xenemu.entries.efi.abi import (
    LOADED_IMAGE,
    LOADED_IMAGE_DEVICE_PATH,
    MemoryType,
    Status,
)
from xenemu.entries.efi.call import EfiError
from xenemu.entries.efi.state import Firmware, Program, handle_of
from xenemu.entries.efi.width import WIDTHS
from xenemu.hv.building import Data
from xenemu.records import dataclass

REVISION: Final = 0x1000
FIELDS: Final = "INNNNNINNQIIN"
DATA_TYPES: Final = {
    MemoryType.LOADER_CODE: MemoryType.LOADER_DATA,
    MemoryType.BOOT_SERVICES_CODE: MemoryType.BOOT_SERVICES_DATA,
    MemoryType.RUNTIME_SERVICES_CODE: MemoryType.RUNTIME_SERVICES_DATA,
}


@dataclass
class Writing:
    """Pieces of pool that are taken for what is to be written there."""

    firmware: Firmware
    pieces: list[tuple[int, Data]] = field(default_factory=list)

    def __call__(self, data: bytes) -> int:
        """Where the data will be; OUT_OF_RESOURCES, and nothing taken at all, without room."""
        firmware = self.firmware
        limit = WIDTHS[firmware.width].mask
        at = firmware.memory.allocate_pool(MemoryType.BOOT_SERVICES_DATA, len(data), limit)
        if at is None:
            self.give_back()
            raise EfiError(Status.OUT_OF_RESOURCES, f"there is no room for {len(data)} bytes")
        self.pieces.append((at, data))
        return at

    def give_back(self) -> None:
        for at, _ in self.pieces:
            self.firmware.memory.free_pool(at)
        self.pieces.clear()


def add(
    writing: Writing,
    image: range,
    entry: int,
    kind: MemoryType,
    *,
    parent: int = 0,
    device: int = 0,
    path: bytes = b"",
    options: range = range(0),
) -> int:
    """The handle of a program at `image`, which came from the file at a path on a device."""
    firmware = writing.firmware
    own = device_path.VOLUME if device and device == firmware.volume_handle else b""
    protocols = {LOADED_IMAGE_DEVICE_PATH: writing(own + path + device_path.END) if own else 0}
    fields = WIDTHS[firmware.width].pack(
        FIELDS,
        REVISION,
        parent,
        firmware.places.runtime_data + tables.SYSTEM_TABLE,
        device,
        writing(path + device_path.END),
        0,
        len(options),
        options.start,
        image.start,
        len(image),
        kind,
        DATA_TYPES[kind],
        0,
    )
    protocols[LOADED_IMAGE] = writing(fields)
    handle = handle_of(firmware, protocols)
    pool = tuple(at for at, _ in writing.pieces)
    firmware.programs[handle] = Program(image.start, len(image), image.start + entry, kind, pool)
    return handle
