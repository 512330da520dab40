"""Linux's bzImage: find the compressed ELF inside.

The set-up header is described in Linux's Documentation/arch/x86/boot.rst.
In Xen: tools/libs/guest/xg_dom_bzimageloader.c.
"""

from __future__ import annotations

import struct
from typing import Final

from xenemu.errors import ImageError
from xenemu.image import compression
from xenemu.image.elf import text
from xenemu.records import dataclass

OLDEST_PROTOCOL: Final = 0x208  # the first to say where the payload is
SECTOR: Final = 512
SIZE_WORD: Final = 4  # at the payload's end, its size when unpacked

# Offsets of the set-up header's fields.
SETUP_SECTS, BOOT_FLAG, HEADER, VERSION, KERNEL_VERSION = 0x1F1, 0x1FE, 0x202, 0x206, 0x20E
PAYLOAD_OFFSET, PAYLOAD_LENGTH, HEADER_END = 0x248, 0x24C, 0x250


@dataclass(frozen=True)
class BzImage:
    """What the set-up header says of the kernel inside."""

    file: memoryview
    code: memoryview  # what is loaded and entered: the decompressor, with the payload in it
    protocol: tuple[int, int]
    kernel_version: str | None  # as `file` prints it: release, builder, build
    compression: str
    compressed: memoryview
    size: int  # when unpacked

    def unpack(self) -> bytearray:
        """Return the ELF inside."""
        return compression.decompress(self.compressed, self.compression, self.size)


def is_bzimage(view: memoryview) -> bool:
    if len(view) < VERSION + 2:
        return False
    boot_flag, header = struct.unpack_from("<H2x4s", view, BOOT_FLAG)
    return (boot_flag, header) == (0xAA55, b"HdrS")


def parse(view: memoryview) -> BzImage:
    """Read the header of an image that `is_bzimage`."""
    (version,) = struct.unpack_from("<H", view, VERSION)
    protocol = divmod(version, 0x100)
    if version < OLDEST_PROTOCOL:
        raise ImageError(
            f"the bzImage has boot protocol {protocol[0]}.{protocol[1]:02}; 2.08 is the oldest"
            " that says where its ELF is"
        )
    if len(view) < HEADER_END:
        raise ImageError("the bzImage is truncated in its header")
    offset, length = struct.unpack_from("<II", view, PAYLOAD_OFFSET)
    if length == 0:
        raise ImageError("the bzImage has no payload: there is no ELF in it that Xen could load")
    if length <= SIZE_WORD:
        raise ImageError(f"the bzImage's payload has {length} bytes, which are no ELF")
    code = (view[SETUP_SECTS] + 1) * SECTOR
    offset += code
    if offset + length > len(view):
        raise ImageError(
            f"the bzImage is truncated: its payload is at {offset:#x}, {length} bytes long,"
            f" and the file has {len(view)} bytes"
        )
    payload = view[offset : offset + length]
    name = compression.detect(payload)
    if name is None:
        raise ImageError(f"the bzImage's compression is unknown (starts {payload[:4].hex(' ')})")
    (size,) = struct.unpack_from("<I", payload, length - SIZE_WORD)
    # The build appends the size, except to gzip, whose own last word it is.
    compressed = payload if name == "gzip" else payload[:-SIZE_WORD]
    return BzImage(view, view[code:], protocol, _kernel_version(view), name, compressed, size)


def _kernel_version(view: memoryview) -> str | None:
    (offset,) = struct.unpack_from("<H", view, KERNEL_VERSION)
    if offset == 0:
        return None
    start = offset + SECTOR
    return text(view[start : start + 256]) or None
