"""A guest's memory for a person who looks at it, or changes it, while it stands still.

Looking changes nothing. Writing changes what the person says, unless that would break Xen's own
rules. For example, a frame that a PV guest uses as a page table cannot be written, and neither can
a descriptor table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenemu.errors import Unmapped, UsageError, XenError
from xenemu.hv.current import Current, pieces
from xenemu.hv.frame_table import LEVELS, TYPE_NAMES, PGT_seg_desc_page
from xenemu.image import Image
from xenemu.machine.core import Core
from xenemu.peek import kernel_tables, locate, tables
from xenemu.x86.paging import PAGE_SHIFT, Maddr

Locate = Callable[[int], Maddr]  # where an address is in the machine: Unmapped
ADDRESS_BITS: Final = 64


def virtual(current: Current, image: Image) -> Locate:
    """Addresses as a vcpu has them.

    The kernel's addresses are found even before it has turned paging on, where it was loaded, and
    even while a program runs on page tables that lack them.
    """

    def find(vaddr: int) -> Maddr:
        if vaddr >> ADDRESS_BITS:
            raise Unmapped(f"{vaddr:#x} is no address")
        try:
            if tables(current) is None and vaddr >> 32:
                return _linked(current, image, vaddr)
            return locate(current, vaddr)
        except XenError:
            if tables(current) is None:
                return _linked(current, image, vaddr)
            try:
                return locate(current, vaddr, kernel_tables(current, image))
            except XenError as error:
                raise Unmapped(error.reason) from None

    return find


def _linked(current: Current, image: Image, vaddr: int) -> Maddr:
    for part in image.segments:
        if part.vaddr <= vaddr < part.vaddr + part.memsz:
            try:
                return locate(current, part.paddr + vaddr - part.vaddr)
            except XenError as error:
                raise Unmapped(error.reason) from None
    raise Unmapped(f"{vaddr:#x} is not in the kernel's image, and paging is off")


def read(machine: Core, find: Locate, address: int, size: int) -> bytes:
    """As many of `size` bytes as are there in one piece; Unmapped if not even the first is."""
    found: list[bytes] = []
    for vaddr, n in pieces(address, size):
        try:
            found.append(machine.domain.memory.read(find(vaddr), n))
        except Unmapped:
            if not found:
                raise
            break
    return b"".join(found)


def write(machine: Core, find: Locate, address: int, data: bytes) -> None:
    """Store, also where the guest itself could not; UsageError, and nothing stored, or all."""
    places = [
        (_writable(machine, find, vaddr), data[vaddr - address :][:n])
        for vaddr, n in pieces(address, len(data))
    ]
    machine.disturbed += 1
    for maddr, piece in places:
        machine.domain.memory.write(maddr, piece)


def _writable(machine: Core, find: Locate, address: int) -> Maddr:
    maddr, frames = find(address), machine.domain.frames
    mfn = maddr >> PAGE_SHIFT
    used_as = frames.type[mfn] if frames.type_count[mfn] else 0
    if machine.domain.p2m is None and (used_as in LEVELS or used_as == PGT_seg_desc_page):
        raise UsageError(f"{address:#x} is in a {TYPE_NAMES[used_as]}, which Xen has checked")
    return maddr
