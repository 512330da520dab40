"""Linux's boot_params, the "zero page", and the set-up header of a bzImage within it.

In Linux: Documentation/arch/x86/boot.rst, Documentation/arch/x86/zero-page.rst,
arch/x86/include/uapi/asm/bootparam.h (struct boot_params, struct setup_header)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from xenemu.records import dataclass

# Offsets, which a bzImage's first sectors and boot_params have in common.
SETUP_HEADER: Final = 0x1F1
HEADER_LENGTH: Final = 0x201  # one byte: how far the header reaches after itself
HEADER_MAX: Final = 0x290
E820_MAX: Final = 128

SIZE: Final = 4096
LOADED_HIGH: Final = 1 << 0  # loadflags: the kernel is to be loaded at 1 MiB or above
XLF_EFI_HANDOVER_32: Final = 1 << 2
XLF_EFI_HANDOVER_64: Final = 1 << 3
XLF_KERNEL_64: Final = 1 << 0  # xloadflags: there is a 64-bit entry at 0x200

# Protocol versions, by what they brought.
HAS_SUBARCH, HAS_SETUP_DATA, HAS_INIT_SIZE, HAS_XLOADFLAGS = 0x207, 0x209, 0x20A, 0x20C
HAS_RSDP: Final = 0x20E
NEWEST: Final = 0x20F

LOADER: Final = 0x90  # Xen's boot loader id is 9; the low digit is a version
SUBARCHES: Final = {"pc": 0, "lguest": 1, "xen": 2, "intel-mid": 3, "ce4100": 4}

SETUP_RNG_SEED: Final = 9  # a type of setup_data, since Linux 6.0

_FIELDS: Final = {  # offset and code
    "acpi_rsdp_addr": (0x070, "Q"),
    "e820_entries": (0x1E8, "B"),
    "setup_sects": (0x1F1, "B"),
    "boot_flag": (0x1FE, "H"),
    "header": (0x202, "4s"),
    "version": (0x206, "H"),
    "type_of_loader": (0x210, "B"),
    "loadflags": (0x211, "B"),
    "code32_start": (0x214, "I"),
    "ramdisk_image": (0x218, "I"),
    "ramdisk_size": (0x21C, "I"),
    "cmd_line_ptr": (0x228, "I"),
    "initrd_addr_max": (0x22C, "I"),
    "kernel_alignment": (0x230, "I"),
    "relocatable_kernel": (0x234, "B"),
    "xloadflags": (0x236, "H"),
    "cmdline_size": (0x238, "I"),
    "hardware_subarch": (0x23C, "I"),
    "hardware_subarch_data": (0x240, "Q"),
    "setup_data": (0x250, "Q"),
    "pref_address": (0x258, "Q"),
    "init_size": (0x260, "I"),
    "handover_offset": (0x264, "I"),
}
_E820_TABLE: Final = 0x2D0
_E820_ENTRY: Final = struct.Struct("<QQI")


@dataclass
class ZeroPage:
    """A boot_params; fields go by their names in Linux."""

    data: bytearray

    @classmethod
    def of_bzimage(cls, setup: memoryview) -> ZeroPage:
        """All zeros but the set-up header, which begins the file `setup`."""
        end = min(HEADER_LENGTH + 1 + setup[HEADER_LENGTH], HEADER_MAX, len(setup))
        page = cls(bytearray(SIZE))
        page.data[SETUP_HEADER:end] = setup[SETUP_HEADER:end]
        return page

    @classmethod
    def of_vmlinux(cls) -> ZeroPage:
        """What a loader must make up for an ELF, because an ELF has no set-up header."""
        page = cls(bytearray(SIZE))
        page.put(
            boot_flag=0xAA55,
            header=b"HdrS",
            version=NEWEST,
            loadflags=LOADED_HIGH,
            initrd_addr_max=0x7FFFFFFF,
            cmdline_size=2047,
        )
        return page

    def get(self, name: str) -> int:
        offset, code = _FIELDS[name]
        value = struct.unpack_from("<" + code, self.data, offset)[0]
        assert isinstance(value, int)
        return value

    def put(self, **values: int | bytes) -> None:
        for name, value in values.items():
            offset, code = _FIELDS[name]
            struct.pack_into("<" + code, self.data, offset, value)

    def put_e820(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Tell the memory map: address, size and type of each range, at most `E820_MAX`."""
        self.put(e820_entries=len(ranges))
        for n, entry in enumerate(ranges):
            _E820_ENTRY.pack_into(self.data, _E820_TABLE + n * _E820_ENTRY.size, *entry)


def setup_data(kind: int, data: bytes) -> bytes:
    """The last node of the list that `setup_data` leads to."""
    return struct.pack("<QII", 0, kind, len(data)) + data
