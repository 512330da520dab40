"""A request to a block device: what is in its slot, and what can be wrong with it.

All sector numbers are of 512 bytes, as in Linux, whatever the device's own sectors are.

Header: public/io/blkif.h
In Xen: Linux's drivers/block/xen-blkback/blkback.c
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xenemu.abi.io.blkif import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    SECTOR_SHIFT,
    blkif_request,
    blkif_request_discard,
    blkif_request_indirect,
    blkif_request_segment,
)
from xenemu.hv.grant_copy import Part
from xenemu.x86.paging import PAGE_SIZE

MAX_INDIRECT_SEGMENTS: Final = 256
SEGMENTS_PER_PAGE: Final = PAGE_SIZE // blkif_request_segment.sizeof(8)
FLUSHES: Final = (BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE_BARRIER)
TRANSFERS: Final = (BLKIF_OP_READ, BLKIF_OP_WRITE, *FLUSHES)
SECTOR_SIZE: Final = 1 << SECTOR_SHIFT
_SEGMENT: Final = "IBBxx"  # blkif_request_segment, as the struct module has it
_SEGMENT_SIZE: Final = blkif_request_segment.sizeof(8)
_SECTORS_PER_PAGE: Final = PAGE_SIZE >> SECTOR_SHIFT
_WHOLE_PAGE: Final = ((0, PAGE_SIZE),)


class BadRequestError(Exception):
    """A request gets BLKIF_RSP_ERROR: `str()` says why."""


class UnknownRequestError(Exception):
    """A request gets BLKIF_RSP_EOPNOTSUPP."""


@dataclass(slots=True)
class Request:
    """A request: `operation` is what is to be done, with bytes of the disk.

    Of the granted pages with these `refs`, it is about these `parts`.
    """

    id: int
    operation: int
    offset: int
    size: int
    refs: tuple[int, ...] = ()
    parts: tuple[Part, ...] = ()


def identify(width: int, slot: bytes) -> tuple[int, int]:
    """The id of a request, and the operation that its response must name."""
    head = blkif_request.unpack(width, slot[: blkif_request.sizeof(width)])
    indirect = head.operation == BLKIF_OP_INDIRECT
    return head.id, head.nr_segments if indirect else head.operation  # where indirect_op lies


def decode(width: int, slot: bytes, read_page: Callable[[int, int], bytes]) -> Request:
    """Take a slot apart; `read_page` reads so many bytes of a granted page.

    BadRequestError, UnknownRequestError; and what `read_page` raises.
    """
    operation = slot[0]
    if operation == BLKIF_OP_DISCARD:
        discard = _unpack(blkif_request_discard, width, slot)
        offset, size = discard.sector_number << SECTOR_SHIFT, discard.nr_sectors << SECTOR_SHIFT
        return Request(discard.id, operation, offset, size)
    if operation == BLKIF_OP_INDIRECT:
        indirect = _unpack(blkif_request_indirect, width, slot)
        operation, count = indirect.indirect_op, indirect.nr_segments
        if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE):
            raise BadRequestError(f"invalid indirect operation ({operation})")
        _check_count(operation, count, MAX_INDIRECT_SEGMENTS)
        pages = (count + SEGMENTS_PER_PAGE - 1) // SEGMENTS_PER_PAGE
        refs = struct.unpack_from(f"<{pages}I", indirect.indirect_grefs)
        sizes = [PAGE_SIZE] * pages
        sizes[-1] = (count - (pages - 1) * SEGMENTS_PER_PAGE) * _SEGMENT_SIZE
        return _transfer(indirect, operation, count, b"".join(map(read_page, refs, sizes)))
    if operation in TRANSFERS:
        request = blkif_request.unpack(width, slot)
        _check_count(operation, request.nr_segments, BLKIF_MAX_SEGMENTS_PER_REQUEST)
        return _transfer(request, operation, request.nr_segments, request.seg)
    raise UnknownRequestError(f"there is no operation {operation}")


def check(request: Request, disk_size: int, sector_size: int, read_only: bool) -> None:
    """BadRequestError unless the disk can do it."""
    if read_only and request.operation != BLKIF_OP_READ:
        raise BadRequestError("access denied: the disk is read-only")
    if request.size and request.offset + request.size > disk_size:
        raise BadRequestError(
            f"access denied: bytes {request.offset:#x} to {request.offset + request.size:#x} of"
            f" a disk of {disk_size:#x}"
        )
    if sector_size == SECTOR_SIZE or not request.parts:
        return
    sizes = [size for _, size in request.parts]
    if any(number % sector_size for number in (request.offset, *sizes)):
        raise BadRequestError(f"misaligned: the disk's sectors have {sector_size} bytes")


def _unpack(kind: type, width: int, slot: bytes):  # type: ignore[no-untyped-def]
    return kind.unpack(width, slot[: kind.sizeof(width)])  # type: ignore[attr-defined]


def _check_count(operation: int, count: int, most: int) -> None:
    if count > most or (not count and operation not in FLUSHES):
        raise BadRequestError(f"bad number of segments in request ({count})")


def _transfer(
    request: blkif_request | blkif_request_indirect, operation: int, count: int, packed: bytes
) -> Request:
    refs: tuple[int, ...] = ()
    parts: tuple[Part, ...] = ()
    size = 0
    if count:
        fields = struct.unpack_from("<" + _SEGMENT * count, packed)
        refs, firsts, lasts = fields[::3], fields[1::3], fields[2::3]
        if not any(firsts) and lasts.count(_SECTORS_PER_PAGE - 1) == count:
            parts, size = _WHOLE_PAGE * count, count * PAGE_SIZE
        else:
            parts = tuple(map(_part, firsts, lasts))
            size = sum(length for _, length in parts)
    sector = request.sector_number
    return Request(request.id, operation, sector << SECTOR_SHIFT, size, refs, parts)


def _part(first: int, last: int) -> Part:
    if last >= _SECTORS_PER_PAGE or last < first:
        raise BadRequestError(f"a segment has the sectors {first} to {last} of a page")
    return first << SECTOR_SHIFT, last - first + 1 << SECTOR_SHIFT
