"""The ring of a block device, and what is in its slots.

The layouts for 8 and 4 bytes are those of the protocols x86_64-abi and x86_32-abi.

Header: public/io/blkif.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import S16, U8, U16, U32, U64, Struct, blob
from xenemu.records import dataclass

BLKIF_OP_READ: Final = 0
BLKIF_OP_WRITE: Final = 1
BLKIF_OP_WRITE_BARRIER: Final = 2
BLKIF_OP_FLUSH_DISKCACHE: Final = 3
BLKIF_OP_DISCARD: Final = 5
BLKIF_OP_INDIRECT: Final = 6

BLKIF_RSP_EOPNOTSUPP: Final = -2
BLKIF_RSP_ERROR: Final = -1
BLKIF_RSP_OKAY: Final = 0

BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8

VDISK_CDROM: Final = 1
VDISK_REMOVABLE: Final = 2
VDISK_READONLY: Final = 4

SECTOR_SHIFT: Final = 9  # of sector numbers, whatever the device's own sectors are


@dataclass
class blkif_request_segment(Struct, size=(8, 8)):
    """A part of a granted page; both sectors are in it."""

    gref: U32
    first_sect: U8
    last_sect: U8


@dataclass
class blkif_request(Struct, size=(112, 108)):
    """BLKIF_OP_READ, _WRITE, _WRITE_BARRIER and _FLUSH_DISKCACHE; of others, the first two."""

    operation: U8
    nr_segments: U8
    handle: U16
    id: U64
    sector_number: U64
    seg: Annotated[bytes, blob(8 * BLKIF_MAX_SEGMENTS_PER_REQUEST, 4)]


@dataclass
class blkif_request_discard(Struct, size=(32, 28)):
    """BLKIF_OP_DISCARD."""

    operation: U8
    flag: U8
    handle: U16
    id: U64
    sector_number: U64
    nr_sectors: U64


@dataclass
class blkif_request_indirect(Struct, size=(64, 64)):
    """BLKIF_OP_INDIRECT: the segments are in granted pages; in 32 bits, 8 bytes follow."""

    operation: U8
    indirect_op: U8
    nr_segments: U16
    id: U64
    sector_number: U64
    handle: U16
    indirect_grefs: Annotated[bytes, blob(4 * BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST, 4, 40)]


@dataclass
class blkif_response(Struct, size=(16, 12)):
    """What became of a request."""

    id: U64
    operation: U8
    status: S16
