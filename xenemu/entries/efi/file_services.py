"""The simple file system: the files of --efi-root, to read.

UEFI specification 2.10, sections 13.4 and 13.5.
"""

from __future__ import annotations

import struct
from typing import Final

from xenemu.entries.efi import device_path, tables
from xenemu.entries.efi.abi import (
    FILE_INFO,
    FILE_SERVICES,
    FILE_SYSTEM_INFO,
    FILE_SYSTEM_VOLUME_LABEL,
    Status,
)
from xenemu.entries.efi.call import Call, EfiError, check, needed, service
from xenemu.entries.efi.memory_services import pool, take_time
from xenemu.entries.efi.state import MAX_THINGS, OpenFile
from xenemu.entries.efi.volume import SEPARATOR, Directory, File, resolve
from xenemu.x86.paging import PAGE_SIZE

REVISION: Final = 1 << 16
MODE_READ: Final = 1
READ_ONLY, DIRECTORY = 1, 0x10  # attributes
DELETE_FAILURE: Final = 2  # a warning: its highest bit is clear
END: Final = (1 << 64) - 1
TIME: Final = struct.pack("<H6BIhBB", 1980, 1, 1, 0, 0, 0, 0, 0, 0x7FF, 0, 0)  # the first of FAT
INFO_FIELDS: Final = struct.Struct("<QQQ48sQ")
LABEL: Final = "EFI"


@service("SimpleFileSystem.OpenVolume", "NN")
def open_volume(call: Call, this: int, root_at: int) -> None:
    _open(call, "", root_at)


def _open(call: Call, path: str, pointer: int) -> None:
    firmware = call.firmware
    room = len(firmware.files) < MAX_THINGS
    check(room, Status.OUT_OF_RESOURCES, "there are too many open files")
    call.write_word(needed(pointer), 0)  # it can be written
    interface = REVISION.to_bytes(8, "little") + tables.pointers(firmware, FILE_SERVICES)
    at = pool(call, len(interface))
    call.put(at, interface)
    firmware.files[at] = OpenFile(path)
    call.write_word(pointer, at)


def _file(call: Call, this: int) -> tuple[OpenFile, File | Directory]:
    opened, root = call.firmware.files.get(this), call.firmware.volume
    node = root.find(opened.path) if opened and root else None
    if opened is None or node is None:
        raise EfiError(Status.INVALID_PARAMETER, f"{this:#x} is no open file")
    return opened, node


@service("File.Open", "NNNQQ")
def open_file(call: Call, this: int, new_at: int, name_at: int, mode: int, attributes: int) -> None:
    opened, node = _file(call, this)
    start = opened.path
    if isinstance(node, File):
        start = start.rpartition(SEPARATOR)[0]
    path = resolve(start, call.read_text(name_at))
    check(mode & MODE_READ, Status.INVALID_PARAMETER, f"no file is opened in mode {mode:#x}")
    there = call.firmware.volume and call.firmware.volume.find(path)
    check(there or mode == MODE_READ, Status.WRITE_PROTECTED, "no file can be made")
    check(there, Status.NOT_FOUND, f"there is no {path}")
    check(mode == MODE_READ, Status.WRITE_PROTECTED, f"{path} is to be read only")
    _open(call, path, new_at)


@service("File.Close", "N")
def close_file(call: Call, this: int) -> None:
    _file(call, this)
    del call.firmware.files[this]
    call.firmware.memory.free_pool(this)


@service("File.Delete", "N")
def delete_file(call: Call, this: int) -> int:
    close_file(call, this)
    return DELETE_FAILURE


@service("File.Read", "NNN")
def read_file(call: Call, this: int, size_at: int, buffer: int) -> None:
    opened, node = _file(call, this)
    room = call.read_word(needed(size_at))
    if isinstance(node, Directory):
        entries = list(node.entries.values())
        data = b""
        if opened.position < len(entries):
            data = _info(entries[opened.position])
            if room < len(data):
                call.write_word(size_at, len(data))
                raise EfiError(Status.BUFFER_TOO_SMALL, f"the entry has {len(data)} bytes")
        step = 1
    else:
        check(opened.position <= len(node.data), Status.DEVICE_ERROR, "that is after the end")
        data = bytes(node.data[opened.position : opened.position + room])
        step = len(data)
    call.write_word(size_at, len(data))
    call.write(buffer, data)
    opened.position += step if data else 0
    take_time(call, len(data))


@service("File.Write", "NNN")
def write_file(call: Call, this: int, size_at: int, buffer: int) -> None:
    _refuse(call, this)


@service("File.SetInfo", "NNNN")
def set_info(call: Call, this: int, kind_at: int, size: int, buffer: int) -> None:
    _refuse(call, this)


@service("File.Flush", "N")
def flush_file(call: Call, this: int) -> None:
    _refuse(call, this)


def _refuse(call: Call, this: int) -> None:
    _file(call, this)
    raise EfiError(Status.WRITE_PROTECTED, "the volume is to be read only")


@service("File.GetPosition", "NN")
def get_position(call: Call, this: int, position_at: int) -> None:
    opened, node = _file(call, this)
    check(isinstance(node, File), Status.UNSUPPORTED, "a directory has no position")
    call.write_word(needed(position_at), opened.position, "Q")


@service("File.SetPosition", "NQ")
def set_position(call: Call, this: int, position: int) -> None:
    opened, node = _file(call, this)
    if isinstance(node, Directory):
        check(not position, Status.UNSUPPORTED, "in a directory, one can go to the begin only")
        opened.position = 0
    else:
        opened.position = len(node.data) if position == END else position


@service("File.GetInfo", "NNNN")
def get_info(call: Call, this: int, kind_at: int, size_at: int, buffer: int) -> None:
    _, node = _file(call, this)
    kind, room = call.read_guid(kind_at), call.read_word(needed(size_at))
    if kind == FILE_INFO:
        data = _info(node)
    elif kind == FILE_SYSTEM_INFO:
        label = _text(LABEL)
        fields = struct.pack("<QB7xQQI", 36 + len(label), 1, _volume_size(call), 0, PAGE_SIZE)
        data = fields + label
    elif kind == FILE_SYSTEM_VOLUME_LABEL:
        data = _text(LABEL)
    else:
        raise EfiError(Status.UNSUPPORTED, "there is no such information")
    call.write_word(size_at, len(data))
    check(room >= len(data), Status.BUFFER_TOO_SMALL, f"that has {len(data)} bytes")
    call.write(needed(buffer), data)


def _volume_size(call: Call) -> int:
    disk = call.firmware.disk
    return disk.size if disk else 0


def _text(text: str) -> bytes:
    return (text + "\0").encode("utf-16-le", "surrogatepass")


def _info(node: File | Directory) -> bytes:
    """EFI_FILE_INFO."""
    name, size = _text(node.name), len(node.data) if isinstance(node, File) else 0
    physical = size + PAGE_SIZE - 1 & -PAGE_SIZE
    attributes = READ_ONLY | (DIRECTORY if isinstance(node, Directory) else 0)
    return (
        INFO_FIELDS.pack(INFO_FIELDS.size + len(name), size, physical, TIME * 3, attributes) + name
    )


def load(call: Call, nodes: list[bytes]) -> bytes:
    """The file that the nodes after a volume's own lead to; NOT_FOUND if there is none."""
    path = device_path.file_of(nodes)
    node = call.firmware.volume.find(path) if path and call.firmware.volume else None
    if not isinstance(node, File):
        raise EfiError(Status.NOT_FOUND, f"there is no file {path or 'on that path'}")
    return bytes(node.data)
