"""The stream in which libxenguest saves a domain: two headers, and records.

All numbers have the byte order of the host that saved, which is x86, except for those of the first
header. A record's body is filled up to 8 bytes.

In Xen: docs/specs/libxc-migration-stream.pandoc
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final

from xenemu.abi.version import XEN_VERSION
from xenemu.x86.paging import PAGE_SHIFT

MARKER: Final = (1 << 64) - 1
IDENT: Final = 0x58454E46  # "XENF"
VERSION: Final = 3
VERSIONS: Final = (2, VERSION)  # that can be read
OPTION_BIG_ENDIAN: Final = 1
IMAGE_HEADER: Final = struct.Struct(">QIIHHI")
DOMAIN_HEADER: Final = struct.Struct("<IHHII")
RECORD_HEADER: Final = struct.Struct("<II")
OPTIONAL: Final = 1 << 31  # of a record's type: who does not know it may ignore it
ALIGNMENT: Final = 8
LONGEST: Final = (128 << 20) - 1  # bytes of a record (REC_LENGTH_MAX)

Put = Callable[[bytes], object]


class StreamError(Exception):
    """A stream cannot be used: `str()` says why, and where if that is known."""


class Kind(IntEnum):
    """What a stream has a domain of."""

    PV = 1
    HVM = 2


class Record(IntEnum):
    """The types of records."""

    END = 0
    PAGE_DATA = 1
    X86_PV_INFO = 2
    X86_PV_P2M_FRAMES = 3
    X86_PV_VCPU_BASIC = 4
    X86_PV_VCPU_EXTENDED = 5
    X86_PV_VCPU_XSAVE = 6
    SHARED_INFO = 7
    X86_TSC_INFO = 8
    HVM_CONTEXT = 9
    HVM_PARAMS = 10
    TOOLSTACK = 11
    X86_PV_VCPU_MSRS = 12
    VERIFY = 13
    CHECKPOINT = 14
    CHECKPOINT_DIRTY_PFN_LIST = 15
    STATIC_DATA_END = 16
    X86_CPUID_POLICY = 17
    X86_MSR_POLICY = 18


# Writing.


def put_headers(put: Put, kind: Kind) -> None:
    """Begin a stream."""
    put(IMAGE_HEADER.pack(MARKER, IDENT, VERSION, 0, 0, 0))
    put(DOMAIN_HEADER.pack(kind, PAGE_SHIFT, 0, XEN_VERSION >> 16, XEN_VERSION & 0xFFFF))


def put_record_header(put: Put, kind: int, size: int) -> None:
    """Begin a record."""
    put(RECORD_HEADER.pack(kind, size))


def put_record(put: Put, kind: Record, *parts: bytes | memoryview) -> None:
    """Write a record, whose body is these parts."""
    body = b"".join(parts)
    put_record_header(put, kind, len(body))
    put(body + bytes(-len(body) % ALIGNMENT))


# Reading.


def read_headers(data: memoryview) -> tuple[Kind, int, memoryview]:
    """What a stream has a domain of, its version, and what follows. StreamError."""
    size = IMAGE_HEADER.size + DOMAIN_HEADER.size
    if len(data) < size:
        raise StreamError("it ends within its headers")
    marker, ident, version, options, *reserved = IMAGE_HEADER.unpack(data[: IMAGE_HEADER.size])
    if (marker, ident) != (MARKER, IDENT):
        raise StreamError("it is no stream of Xen's")
    if version not in VERSIONS:
        raise StreamError(f"a stream of version {version}; version 2 or 3 can be read")
    if options & OPTION_BIG_ENDIAN:
        raise StreamError("it was saved on a big-endian host")
    if options or any(reserved):
        raise StreamError("its header has a reserved bit")
    kind, page_shift, zero, _major, _minor = DOMAIN_HEADER.unpack(data[IMAGE_HEADER.size : size])
    if kind not in tuple(Kind):
        raise StreamError(f"a domain of type {kind}; 1 is x86 PV, 2 is x86 HVM")
    if page_shift != PAGE_SHIFT or zero:
        raise StreamError("its domain header makes no sense")
    return Kind(kind), version, data[size:]


def read_records(data: memoryview) -> Iterator[tuple[Record, memoryview]]:
    """The records, each with its body; that of END is what comes after it. StreamError."""
    at = 0
    while True:
        if len(data) - at < RECORD_HEADER.size:
            raise StreamError(f"it ends at byte {at} of its records, without an END")
        number, size = RECORD_HEADER.unpack(data[at : at + RECORD_HEADER.size])
        at += RECORD_HEADER.size
        end = at + size + -size % ALIGNMENT
        if size > LONGEST or end > len(data):
            raise StreamError(f"a record of type {number:#x} has {size} bytes, more than there are")
        if any(data[at + size : end]):
            raise StreamError(f"a record of type {number:#x} is filled up with other than zeroes")
        body, at = data[at : at + size], end
        if number == Record.END:
            if size:
                raise StreamError(f"its END has {size} bytes")
            yield Record.END, data[at:]
            return
        if number in tuple(Record):
            yield Record(number), body
        elif not number & OPTIONAL:
            raise StreamError(f"a record of type {number:#x}, which is not known")
