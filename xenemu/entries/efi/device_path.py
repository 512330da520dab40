"""Device paths: what names a device, and a file on it.

UEFI specification 2.10, sections 10.2 and 10.3.
"""

from __future__ import annotations

import struct
from typing import Final

from xenemu.entries.efi.abi import LINUX_INITRD_MEDIA, Status, guid
from xenemu.entries.efi.call import Call, EfiError, check

HARDWARE, MEDIA = 1, 4
VENDOR, MEDIA_VENDOR, FILE_PATH = 4, 3, 4
END_OF_PATH: Final = 0x7F
END: Final = bytes((END_OF_PATH, 0xFF, 4, 0))
MAX_PATH: Final = 1 << 12


def _node(kind: int, subtype: int, data: bytes) -> bytes:
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


INITRD: Final = _node(MEDIA, MEDIA_VENDOR, LINUX_INITRD_MEDIA)
VOLUME: Final = _node(HARDWARE, VENDOR, guid("6b2f6d6c-7c4e-4d0a-9d5a-6566692d726f"))


def file_path(path: str) -> bytes:
    """The node for a file, by its path on a volume."""
    return _node(MEDIA, FILE_PATH, (path + "\0").encode("utf-16-le", "surrogatepass"))


def file_of(nodes: list[bytes]) -> str | None:
    """The path that nodes for a file make up; None if other nodes are among them."""
    if not nodes or any(tuple(node[:2]) != (MEDIA, FILE_PATH) for node in nodes):
        return None
    names = [node[4 : len(node) & ~1].decode("utf-16-le", "replace") for node in nodes]
    return "\\".join(name.partition("\0")[0] for name in names)


def read_path(call: Call, at: int) -> list[bytes]:
    """The nodes of a path in the guest's memory, without its end."""
    nodes: list[bytes] = []
    size = 0
    while size < MAX_PATH:
        head = call.read(at + size, 4)
        length = int.from_bytes(head[2:], "little")
        if head[0] & END_OF_PATH == END_OF_PATH:
            return nodes
        check(length >= 4, Status.INVALID_PARAMETER, f"a path's node has {length} bytes")
        nodes.append(call.read(at + size, length))
        size += length
    raise EfiError(Status.INVALID_PARAMETER, f"the device path at {at:#x} does not end")
