"""What FreeBSD's loader leaves for the kernel, as one module that Xen can hand over.

FreeBSD's kernel takes its environment and its preloaded files from a list of records, each of a
type, a size, and data. Its own loader writes the list. A PVH domain has no loader, but a first
module (Xen's initrd), which the kernel takes for that list. The module begins with the list. After
it come, at page boundaries, what the records point to: the environment, and a memory disk.

Addresses in the list count from the module's beginning: MODULEP, which says where the list was when
it was written, is 0. The kernel adds where the list is now. The kernel's own record has no address,
because that one is not relative to the module.

In FreeBSD: sys/sys/linker.h and sys/x86/include/metadata.h (the numbers), sys/kern/subr_module.c
(the walk), sys/x86/xen/pv.c (xen_pvh_parse_preload_data), sys/dev/md/md.c (the disk).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from xenemu.errors import XenemuError

MODINFO_NAME, MODINFO_TYPE, MODINFO_ADDR, MODINFO_SIZE = 1, 2, 3, 4
MODINFO_METADATA: Final = 0x8000
MODINFOMD_ENVP: Final = 0x0006
MODINFOMD_MODULEP: Final = 0x1006

PAGE: Final = 4096
WORD: Final = 8  # of amd64: records are aligned to it
MAX_ENVIRONMENT: Final = PAGE - 64  # the kernel copies it to one page, and adds acpi.rsdp


def freebsd_module(environment: Mapping[str, str], disk: bytes = b"") -> bytes:
    """The module, for an amd64 kernel; `disk` becomes /dev/md0, if there is one.

    XenemuError if a name cannot be one, or if the environment is too large for the kernel.
    """
    variables = _environment(environment)
    kernel = [(MODINFO_NAME, b"kernel\0"), (MODINFO_TYPE, b"elf kernel\0")]
    disk_at = PAGE + _whole_pages(len(variables))
    records = [
        *kernel,
        (MODINFO_METADATA | MODINFOMD_MODULEP, _word(0)),
        (MODINFO_METADATA | MODINFOMD_ENVP, _word(PAGE)),
    ]
    if disk:
        records += [
            *((MODINFO_NAME, b"disk\0"), (MODINFO_TYPE, b"md_image\0")),
            *((MODINFO_ADDR, _word(disk_at)), (MODINFO_SIZE, _word(len(disk)))),
        ]
    records.append((0, b""))
    listed = b"".join(_record(kind, data) for kind, data in records)
    return listed.ljust(PAGE, b"\0") + variables.ljust(disk_at - PAGE, b"\0") + disk


def _environment(variables: Mapping[str, str]) -> bytes:
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise XenemuError(f"{name}={value}: no variable of FreeBSD's environment")
    text = b"".join(f"{name}={value}".encode() + b"\0" for name, value in variables.items()) + b"\0"
    if len(text) > MAX_ENVIRONMENT:
        raise XenemuError(
            f"an environment of {len(text)} bytes: FreeBSD has room for {MAX_ENVIRONMENT}"
        )
    return text


def _record(kind: int, data: bytes) -> bytes:
    padding = -len(data) % WORD
    return struct.pack("<II", kind, len(data)) + data + bytes(padding)


def _word(value: int) -> bytes:
    return value.to_bytes(WORD, "little")


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
