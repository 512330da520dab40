"""Pages, pool, the memory map, and what copies memory.

UEFI specification 2.10, sections 7.2 and 7.5.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from xenemu.entries.efi.abi import (
    FIRST_OWN_TYPE,
    MEMORY_DESCRIPTOR_SIZE,
    MEMORY_DESCRIPTOR_VERSION,
    MEMORY_RUNTIME,
    MEMORY_WB,
    MemoryType,
    Status,
)
from xenemu.entries.efi.call import Call, EfiError, check, needed, service
from xenemu.hv.prices import WORK_NS
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

ANY_PAGES, MAX_ADDRESS, ADDRESS = range(3)
GIVEN: Final = {
    *range(MemoryType.LOADER_CODE, MemoryType.CONVENTIONAL),
    *(MemoryType.ACPI_RECLAIM, MemoryType.ACPI_NVS),
}
RUNTIME: Final = {MemoryType.RUNTIME_SERVICES_CODE, MemoryType.RUNTIME_SERVICES_DATA}
NOT_GIVEN: Final = {MemoryType.CONVENTIONAL, MemoryType.PERSISTENT, MemoryType.UNACCEPTED}
DESCRIPTOR: Final = struct.Struct(f"<I4xQQQQ{MEMORY_DESCRIPTOR_SIZE - 40}x")
PIECE: Final = 1 << 16  # bytes copied at a time
MAX_SPAN: Final = 64 << 20  # bytes that a call goes over, for nothing interrupts it


def _check_type(kind: int) -> None:
    known = kind < len(MemoryType) and kind not in NOT_GIVEN
    check(
        known or kind >= FIRST_OWN_TYPE,
        Status.INVALID_PARAMETER,
        f"memory cannot be given out as type {kind:#x}",
    )


@service("AllocatePages", "IINN")
def allocate_pages(call: Call, how: int, kind: int, pages: int, pointer: int) -> None:
    memory, limit = call.firmware.memory, call.width.mask
    _check_type(kind)
    check(how <= ADDRESS and pages, Status.INVALID_PARAMETER, f"{pages} pages, as {how}")
    check(not memory.is_full, Status.OUT_OF_RESOURCES, "the memory map has too many regions")
    wanted = call.read_word(needed(pointer), "Q")
    if how == ADDRESS:
        end = wanted + (pages << PAGE_SHIFT)
        check(not wanted & PAGE_MASK, Status.NOT_FOUND, f"{wanted:#x} is not a page's")
        check(
            memory.is_all(wanted, end, {MemoryType.CONVENTIONAL}),
            Status.NOT_FOUND,
            f"{wanted:#x}-{end:#x} is not all free",
        )
        start = wanted
    else:
        below = min(wanted, limit) + 1 if how == MAX_ADDRESS else limit
        found = memory.find(pages, below)
        if found is None:
            raise EfiError(Status.OUT_OF_RESOURCES, f"no {pages} pages are free below {below:#x}")
        start = found
    call.write_word(pointer, start, "Q")
    memory.take(start, pages, kind)


@service("FreePages", "QN")
def free_pages(call: Call, start: int, pages: int) -> None:
    end, memory = start + (pages << PAGE_SHIFT), call.firmware.memory
    check(not start & PAGE_MASK and pages, Status.INVALID_PARAMETER, f"{start:#x} is no page's")
    given = all(
        region.type in GIVEN or region.type >= FIRST_OWN_TYPE
        for region in memory.regions
        if region.start < end and start < region.end
    )
    inside = memory.is_all(start, end, {region.type for region in memory.regions})
    check(given and inside, Status.NOT_FOUND, f"{start:#x}-{end:#x} was not all given out")
    check(not memory.is_full, Status.OUT_OF_RESOURCES, "the memory map has too many regions")
    memory.take(start, pages, MemoryType.CONVENTIONAL)


@service("AllocatePool", "INN")
def allocate_pool(call: Call, kind: int, size: int, pointer: int) -> None:
    _check_type(kind)
    call.write_word(needed(pointer), 0)  # it can be written
    call.write_word(pointer, pool(call, size, kind))


def pool(call: Call, size: int, kind: int = MemoryType.BOOT_SERVICES_DATA) -> int:
    """A piece of memory that the guest gives back by FreePool."""
    at = call.firmware.memory.allocate_pool(kind, size, call.width.mask)
    if at is None:
        raise EfiError(Status.OUT_OF_RESOURCES, f"there is no room for {size} bytes")
    return at


@service("FreePool", "N")
def free_pool(call: Call, at: int) -> None:
    known = call.firmware.memory.free_pool(at)
    check(known, Status.INVALID_PARAMETER, f"nothing in the pool begins at {at:#x}")


@service("GetMemoryMap", "NNNNN")
def get_memory_map(
    call: Call, size_at: int, buffer: int, key_at: int, descriptor_at: int, version_at: int
) -> None:
    memory, room = call.firmware.memory, call.read_word(needed(size_at))
    size = len(memory.regions) * MEMORY_DESCRIPTOR_SIZE
    call.write_word(size_at, size)
    if descriptor_at:
        call.write_word(descriptor_at, MEMORY_DESCRIPTOR_SIZE)
    if version_at:
        call.write_word(version_at, MEMORY_DESCRIPTOR_VERSION, "I")
    check(room >= size, Status.BUFFER_TOO_SMALL, f"the memory map has {size} bytes")
    packed = b"".join(
        DESCRIPTOR.pack(region.type, region.start, 0, region.pages, _attributes(region.type))
        for region in memory.regions
    )
    call.write(needed(buffer), packed)
    if key_at:
        call.write_word(key_at, memory.key)


def _attributes(kind: int) -> int:
    return MEMORY_WB | (MEMORY_RUNTIME if kind in RUNTIME else 0)


@service("CopyMem", "NNN")
def copy_mem(call: Call, to: int, source: int, size: int) -> None:
    _check_span(size)
    backwards = source < to < source + size
    starts = range(0, size, PIECE)
    for offset in reversed(starts) if backwards else starts:
        n = min(PIECE, size - offset)
        call.write(to + offset, call.read(source + offset, n))
        take_time(call, n)


@service("SetMem", "NNB")
def set_mem(call: Call, to: int, size: int, value: int) -> None:
    _check_span(size)
    for offset in range(0, size, PIECE):
        n = min(PIECE, size - offset)
        call.write(to + offset, bytes([value]) * n)
        take_time(call, n)


@service("CalculateCrc32", "NNN")
def calculate_crc32(call: Call, data: int, size: int, crc_at: int) -> None:
    check(data and size and crc_at, Status.INVALID_PARAMETER, "there is nothing to sum up")
    _check_span(size)
    crc = 0
    for offset in range(0, size, PIECE):
        n = min(PIECE, size - offset)
        crc = zlib.crc32(call.read(data + offset, n), crc)
        take_time(call, n)
    call.write_word(crc_at, crc, "I")


def _check_span(size: int) -> None:
    # DIVERGES: firmware would go on for as long as it takes.
    check(size <= MAX_SPAN, Status.INVALID_PARAMETER, f"{size} bytes are too many for a call")


def take_time(call: Call, size: int) -> None:
    """Let the time pass that it takes to go over so many bytes."""
    call.cpu.spend(max(1, size // PAGE_SIZE) * WORK_NS)
