"""The tables that the guest sees: what they have, and where in the firmware's pages.

They are made from the firmware's state, and written anew when that has changed. UEFI specification
2.10, sections 4.2 to 4.6.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

from xenemu.entries.efi import abi, console, device_path
from xenemu.entries.efi.abi import BOOT_STUBS, RUNTIME_SERVICES, STUB, STUB_SIZE
from xenemu.entries.efi.call import SERVICES, put
from xenemu.entries.efi.state import Firmware
from xenemu.entries.efi.width import WIDTHS, Width
from xenemu.hv.state.domain import Domain
from xenemu.x86.paging import PAGE_SIZE

# In Places.runtime_data.
SYSTEM_TABLE, RUNTIME_TABLE, VENDOR, PROPERTIES, CONFIGURATION = 0, 0x100, 0x200, 0x240, 0x400
MAX_TABLES: Final = (PAGE_SIZE - CONFIGURATION) // 24
# In Places.boot_data.
BOOT_TABLE, CON_IN, CON_OUT, LOAD_FILE2, RNG = 0, 0x200, 0x220, 0x280, 0x290
CON_MODE, INITRD_PATH, GDT = console.MODE_OFFSET, 0x340, 0x500
HEADER: Final = struct.Struct("<QIIII")


def _with_header(signature: int, body: bytes) -> bytes:
    """A table with EFI_TABLE_HEADER before it, whose CRC is of all with the CRC 0."""
    size = HEADER.size + len(body)
    table = HEADER.pack(signature, abi.REVISION, size, 0, 0) + body
    return HEADER.pack(signature, abi.REVISION, size, zlib.crc32(table), 0) + body


def _pointers(width: Width, page: int, names: Sequence[str], of: Sequence[str]) -> bytes:
    """Pointers to stubs in a page that has those of the services `of`; null for no name."""
    return width.pointers(*(page + of.index(name) * STUB_SIZE if name else 0 for name in names))


def pointers(firmware: Firmware, names: Sequence[str]) -> bytes:
    """Pointers to the stubs of functions of protocols."""
    return _pointers(WIDTHS[firmware.width], firmware.places.boot_code, names, BOOT_STUBS)


def stubs(names: Sequence[str]) -> bytes:
    """A page of stubs."""
    return (STUB.ljust(STUB_SIZE, b"\xcc") * len(names)).ljust(PAGE_SIZE, b"\xcc")


def _system_table(firmware: Firmware) -> bytes:
    data, boot = firmware.runtime_data, firmware.places.boot_data
    handle = firmware.console_handle
    console_part = (handle, boot + CON_IN, handle, boot + CON_OUT, handle, boot + CON_OUT)
    body = WIDTHS[firmware.width].pack(
        "NINNNNNNNNNN",
        data + VENDOR,
        abi.FIRMWARE_REVISION,
        *(console_part if firmware.boot else (0,) * 6),
        data + RUNTIME_TABLE,
        boot + BOOT_TABLE if firmware.boot else 0,
        len(firmware.tables),
        data + CONFIGURATION,
    )
    return _with_header(abi.SYSTEM_SIGNATURE, body)


def runtime_data(firmware: Firmware) -> bytes:
    """The page that stays: the system table, the runtime services, the configuration tables."""
    page, width = bytearray(PAGE_SIZE), WIDTHS[firmware.width]
    services = _pointers(width, firmware.runtime_code, RUNTIME_SERVICES, RUNTIME_SERVICES)
    supported = sum(1 << n for n, name in enumerate(RUNTIME_SERVICES) if name in SERVICES)
    configuration = b"".join(
        guid + width.pointers(address) for guid, address in firmware.tables.items()
    )
    for at, piece in (
        (SYSTEM_TABLE, _system_table(firmware)),
        (RUNTIME_TABLE, _with_header(abi.RUNTIME_SIGNATURE, services)),
        (VENDOR, (abi.VENDOR + "\0").encode("utf-16-le")),
        (PROPERTIES, struct.pack("<HHI", 1, 8, supported)),
        (CONFIGURATION, configuration),
    ):
        page[at : at + len(piece)] = piece
    return bytes(page)


def boot_data(firmware: Firmware, gdt: bytes) -> bytes:
    """The page that goes: the boot services, and the protocols."""
    page, code, own = bytearray(PAGE_SIZE), firmware.places.boot_code, firmware.places.boot_data
    names = ["" if name == "Reserved" else name for name in abi.BOOT_SERVICES]
    width = WIDTHS[firmware.width]
    table = _pointers(width, code, names, BOOT_STUBS)
    con_in = _pointers(width, code, abi.CONSOLE_IN, BOOT_STUBS)
    con_out = _pointers(width, code, abi.CONSOLE_OUT, BOOT_STUBS)
    for at, piece in (
        (BOOT_TABLE, _with_header(abi.BOOT_SIGNATURE, table)),
        (CON_IN, con_in + width.pointers(firmware.wait_for_key)),
        (CON_OUT, con_out + width.pointers(own + CON_MODE)),
        (LOAD_FILE2, _pointers(width, code, abi.LOAD_FILE2_SERVICES, BOOT_STUBS)),
        (RNG, _pointers(width, code, abi.RNG_SERVICES, BOOT_STUBS)),
        (CON_MODE, console.mode_bytes(firmware.attribute, firmware.cursor)),
        (INITRD_PATH, device_path.INITRD + device_path.END),
        (GDT, gdt),
    ):
        page[at : at + len(piece)] = piece
    return bytes(page)


def write_tables(domain: Domain, firmware: Firmware) -> None:
    """Write the tables that stay as they are now."""
    put(domain, firmware.places.runtime_data, runtime_data(firmware))
