"""The file of `xl save`: xl's header with a configuration, libxl's records, libxenguest's stream.

The stream is in one of libxl's records. Files of `xl save` can be read, and those that begin with
libxl's records or with libxenguest's stream. What is written is as of `xl save`.

In Xen: docs/specs/libxl-migration-stream.pandoc; tools/xl/xl.h (struct save_file_header),
xl_saverestore.c; tools/libs/light/libxl_types.idl
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from xenemu.errors import ImageError, UsageError
from xenemu.image.files import map_file
from xenemu.machine.migration import saved as stream
from xenemu.machine.migration.records import (
    IMAGE_HEADER,
    MARKER,
    RECORD_HEADER,
    Put,
    StreamError,
    put_record_header,
)
from xenemu.machine.migration.saved import PvState, Saved
from xenemu.records import dataclass

XL_MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"
XL_HEADER: Final = struct.Struct("<4I")  # after the magic: byte order, flags, flags, size
BYTE_ORDER: Final = 0x01020304
JSON, STREAM_V2 = 1 << 0, 1 << 1  # mandatory flags
CONFIG_SIZE: Final = struct.Struct("<I")
LIBXL_HEADER: Final = struct.Struct(">QII")
LIBXL_IDENT: Final = 0x4C6962786C466D74  # "LibxlFmt"
LIBXL_VERSION: Final = 2
LIBXL_BIG_ENDIAN, LIBXL_LEGACY = 1 << 0, 1 << 1
LIBXL_END, LIBXC_CONTEXT = 0, 1
NAMED: Final = {2: "device model's", 3: "device model's", 4: "checkpoint's", 5: "checkpoint's"}
OWN: Final = "xenemu"  # of what only xenemu says
LONGEST_CONFIG: Final = 16 << 20
MOST_TIMES: Final = 64  # what the memory may be of what the stream has


@dataclass(frozen=True)
class Told:
    """What xl's configuration of a domain says of it, as far as a restore needs it."""

    name: str
    uuid: bytes
    memory: int  # bytes, at most
    target: int  # bytes that it has, as far as the toolstack knows
    vcpus: int  # online,
    maxvcpus: int  # of so many
    is_shell: bool = False  # its /init is a shell of xenemu's making, which ends with its input


# Writing.


def write(put: Put, saved: Saved, told: Told) -> None:
    """Write a file as `xl save` does."""
    config = json.dumps(_config(told, isinstance(saved.state, PvState)), indent=4).encode() + b"\0"
    optional = CONFIG_SIZE.pack(len(config)) + config
    put(XL_MAGIC + XL_HEADER.pack(BYTE_ORDER, JSON | STREAM_V2, 0, len(optional)) + optional)
    put(LIBXL_HEADER.pack(LIBXL_IDENT, LIBXL_VERSION, 0))
    put_record_header(put, LIBXC_CONTEXT, 0)
    stream.write(put, saved)
    put_record_header(put, LIBXL_END, 0)


def _config(told: Told, is_pv: bool) -> dict[str, Any]:
    kind = "pv" if is_pv else "pvh"
    own = {OWN: {"is_shell": True}} if told.is_shell else {}  # which libxl passes over
    return {
        **own,
        "c_info": {"type": kind, "name": told.name, "uuid": str(UUID(bytes=told.uuid))},
        "b_info": {
            "max_vcpus": told.maxvcpus,
            "avail_vcpus": list(range(told.vcpus)),
            "max_memkb": told.memory >> 10,
            "target_memkb": told.target >> 10,
            f"type.{kind}": {},
        },
    }


# Reading.


def read_file(path: Path) -> tuple[Saved, Told | None]:
    """The domain of a file, and what xl says of it, if anything. UsageError says what is wrong."""
    try:
        return read(map_file(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except StreamError as error:
        raise UsageError(f"{path}: no domain can be restored from it: {error}") from None
    except ImageError as error:
        raise UsageError(f"{path}: {error}") from None


def read(data: memoryview) -> tuple[Saved, Told | None]:
    """The domain in a file's bytes, and what xl says of it. StreamError."""
    told = None
    if bytes(data[: len(XL_MAGIC)]) == XL_MAGIC:
        told, data = _read_xl(data[len(XL_MAGIC) :])
    elif len(data) < IMAGE_HEADER.size:
        raise StreamError("it is too short for a saved domain")
    first = int.from_bytes(data[:8], "big")
    if first == MARKER and told is None:
        saved, rest = stream.read(data)
    elif first == LIBXL_IDENT:
        saved, rest = _read_libxl(data)
    else:
        raise StreamError("it is no saved domain of Xen's")
    if len(rest):
        raise StreamError(f"{len(rest)} bytes follow its end")
    if told is not None and told.memory > MOST_TIMES * max(len(saved.pages.data) << 12, 1 << 20):
        raise StreamError(f"its configuration says {told.memory >> 20} MiB, and it has few of them")
    return saved, told


def _read_xl(data: memoryview) -> tuple[Told, memoryview]:
    if len(data) < XL_HEADER.size:
        raise StreamError("it ends within xl's header")
    order, mandatory, _, size = XL_HEADER.unpack(data[: XL_HEADER.size])
    if order != BYTE_ORDER:
        raise StreamError("it was saved on a host of another byte order")
    if mandatory & ~(JSON | STREAM_V2) or not mandatory & STREAM_V2 or not mandatory & JSON:
        raise StreamError(f"it is of an xl that is too old or too new (flags {mandatory:#x})")
    optional = bytes(data[XL_HEADER.size :][: min(size, LONGEST_CONFIG)])
    if len(optional) != size or size < CONFIG_SIZE.size:
        raise StreamError("xl's configuration in it is not whole")
    (length,) = CONFIG_SIZE.unpack_from(optional)
    config = optional[CONFIG_SIZE.size :][:length]
    if len(config) != length:
        raise StreamError("xl's configuration in it is not whole")
    return _told(config.rstrip(b"\0")), data[XL_HEADER.size + size :]


def _told(config: bytes) -> Told:
    try:
        parsed = json.loads(config)
        created, built = parsed["c_info"], parsed["b_info"]
        maxvcpus = _number(built, "max_vcpus", 1)
        most = _number(built, "max_memkb", None) << 10
        available = built.get("avail_vcpus", [0])
        if not isinstance(available, list):
            available = [0]
        return Told(
            name=str(created.get("name", "guest")),
            uuid=UUID(str(created["uuid"])).bytes,
            memory=most,
            target=_number(built, "target_memkb", most >> 10) << 10,
            vcpus=min(max(len(available), 1), maxvcpus),
            maxvcpus=maxvcpus,
            is_shell=parsed.get(OWN, {}).get("is_shell") is True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StreamError(f"xl's configuration in it makes no sense: {error!r}") from None


def _number(values: Mapping[str, Any], name: str, default: int | None) -> int:
    found = values.get(name, default)
    if type(found) is not int or not 0 < found < 1 << 40:
        raise ValueError(f"{name} is {found!r}")
    return found


def _read_libxl(data: memoryview) -> tuple[Saved, memoryview]:
    if len(data) < LIBXL_HEADER.size:
        raise StreamError("it ends within libxl's header")
    _, version, options = LIBXL_HEADER.unpack(data[: LIBXL_HEADER.size])
    if version != LIBXL_VERSION:
        raise StreamError(f"libxl's records in it are of version {version}, not {LIBXL_VERSION}")
    if options & ~LIBXL_LEGACY:
        raise StreamError("it was saved on a host of another byte order, or by a newer libxl")
    data, found = data[LIBXL_HEADER.size :], None
    while True:
        if len(data) < RECORD_HEADER.size:
            raise StreamError("libxl's records in it have no end")
        kind, size = RECORD_HEADER.unpack(data[: RECORD_HEADER.size])
        data = data[RECORD_HEADER.size :]
        if size > len(data):
            raise StreamError(f"a record of libxl's, of type {kind}, is not whole")
        if kind == LIBXL_END and not size:
            break
        if kind != LIBXC_CONTEXT or found is not None or size:
            what = NAMED.get(kind)
            raise StreamError(
                f"it has a {what} state: only PV and PVH domains can be restored here"
                if what
                else f"it has a record of libxl's, of type {kind}, that makes no sense there"
            )
        found, data = stream.read(data)
    if found is None:
        raise StreamError("it has no LIBXC_CONTEXT")
    return found, data
