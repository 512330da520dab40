"""entries/efi: the files of --efi-root, by the simple file system and as blocks of a disk."""

from __future__ import annotations

import struct

import pytest
from efiguest import SCRATCH, EfiGuest

from xenemu.entries.efi import abi, fat
from xenemu.entries.efi.abi import Status
from xenemu.entries.efi.volume import File, of_tree, resolve
from xenemu.entries.efi.width import IA32, X64
from xenemu.hv.snapshot import DomainSnapshot

LONG = "A name that FAT alone would not have, with ümläuts.conf"
TREE = {
    "EFI/BOOT/bootx64.efi": b"a loader",
    "loader/": b"",
    f"loader/{LONG}": b"title\n",
    "vmlinuz": bytes(range(256)) * 40,
    "empty": b"",
}
OPEN, CLOSE, DELETE, READ, WRITE, GET_POSITION, SET_POSITION, GET_INFO, SET_INFO, FLUSH = range(10)
SIZE, BUFFER, NEW = SCRATCH + 0x80, SCRATCH + 0x1000, SCRATCH + 0x90


@pytest.fixture(params=[X64, IA32], ids=["x64", "ia32"])
def guest(load, request):
    return EfiGuest(load, width=request.param, efi_root=TREE)


def method(guest, protocol: int, index: int, *args: int) -> Status:
    """Call a function of a protocol whose table begins with a revision."""
    function = guest.native(protocol + 8 + guest.width.word * index)
    return guest.status(guest.jump(function, protocol, *args))


def open_root(guest) -> int:
    assert method(guest, guest.find(abi.SIMPLE_FILE_SYSTEM), 0, NEW) == Status.SUCCESS
    return guest.native(NEW)


def open_path(guest, path: str, start: int = 0) -> int:
    start = start or open_root(guest)
    name = guest.text(SCRATCH + 0x200, path)
    assert method(guest, start, OPEN, NEW, name, 1, 0) == Status.SUCCESS
    return guest.native(NEW)


def read(guest, file: int, room: int) -> bytes:
    guest.put(SIZE, room)
    assert method(guest, file, READ, SIZE, BUFFER) == Status.SUCCESS
    return guest.current.read(BUFFER, guest.native(SIZE)) if guest.native(SIZE) else b""


def info_of(data: bytes) -> tuple[str, int, int]:
    """The name, the size and the attributes in an EFI_FILE_INFO."""
    total, size, _ = struct.unpack_from("<QQQ", data)
    assert total == len(data)
    (attributes,) = struct.unpack_from("<Q", data, 72)
    return data[80:].decode("utf-16-le").rstrip("\0"), size, attributes


def test_a_file_is_read_piece_by_piece(guest):
    file = open_path(guest, "vmlinuz")
    assert read(guest, file, 100) == TREE["vmlinuz"][:100]
    assert method(guest, file, GET_POSITION, SIZE) == Status.SUCCESS and guest.word(SIZE) == 100
    assert read(guest, file, 0x10000) == TREE["vmlinuz"][100:]
    assert read(guest, file, 100) == b""
    assert method(guest, file, SET_POSITION, 10) == Status.SUCCESS
    assert read(guest, file, 3) == TREE["vmlinuz"][10:13]
    assert method(guest, file, SET_POSITION, (1 << 64) - 1) == Status.SUCCESS
    assert method(guest, file, GET_POSITION, SIZE) == Status.SUCCESS
    assert guest.word(SIZE) == len(TREE["vmlinuz"])
    assert method(guest, file, SET_POSITION, 1 << 40) == Status.SUCCESS
    guest.put(SIZE, 1)
    assert method(guest, file, READ, SIZE, BUFFER) == Status.DEVICE_ERROR
    assert method(guest, file, CLOSE) == Status.SUCCESS
    assert method(guest, file, GET_POSITION, SIZE) == Status.INVALID_PARAMETER


def test_paths_are_as_on_fat(guest):
    ways = (r"\EFI\BOOT\BOOTX64.EFI", r"efi\.\boot\bootx64.efi", r"loader\..\EFI\\boot\bootx64.efi")
    for path in ways:
        assert read(guest, open_path(guest, path), 100) == b"a loader"


def test_a_path_begins_at_the_directory_or_beside_the_file(guest):
    loader = open_path(guest, r"EFI\BOOT\bootx64.efi", open_path(guest, "."))
    assert read(guest, open_path(guest, r"..\..\vmlinuz", loader), 2) == b"\0\1"
    assert resolve(r"EFI\BOOT", r"..\..\..\x") == "x"


def test_a_directory_is_read_entry_by_entry(guest):
    root = open_root(guest)
    entries = []
    while data := read(guest, root, 0x1000):
        entries.append(info_of(data))
    assert entries == [
        ("EFI", 0, 0x11), ("empty", 0, 1), ("loader", 0, 0x11), ("vmlinuz", 10240, 1)
    ]  # fmt: skip
    assert method(guest, root, SET_POSITION, 1) == Status.UNSUPPORTED
    assert method(guest, root, SET_POSITION, 0) == Status.SUCCESS
    guest.put(SIZE, 80)
    assert method(guest, root, READ, SIZE, BUFFER) == Status.BUFFER_TOO_SMALL
    assert guest.native(SIZE) == 80 + 2 * len("EFI\0")
    assert info_of(read(guest, root, 0x1000))[0] == "EFI"
    assert method(guest, root, GET_POSITION, SIZE) == Status.UNSUPPORTED


def test_what_is_told_of_a_file_and_of_the_volume(guest):
    file = open_path(guest, rf"loader\{LONG}")
    kind = guest.guid(SCRATCH, abi.FILE_INFO)
    guest.put(SIZE, 0)
    assert method(guest, file, GET_INFO, kind, SIZE, BUFFER) == Status.BUFFER_TOO_SMALL
    assert method(guest, file, GET_INFO, kind, SIZE, BUFFER) == Status.SUCCESS
    assert info_of(guest.current.read(BUFFER, guest.native(SIZE))) == (LONG, 6, 1)
    guest.put(SIZE, 0x100)
    kind = guest.guid(SCRATCH, abi.FILE_SYSTEM_INFO)
    assert method(guest, file, GET_INFO, kind, SIZE, BUFFER) == Status.SUCCESS
    size, read_only, volume, free, block = struct.unpack("<QB7xQQI", guest.current.read(BUFFER, 36))
    assert (size, read_only, free, block) == (44, 1, 0, 4096)
    assert volume == guest.efi.disk.size
    kind = guest.guid(SCRATCH, abi.FILE_SYSTEM_VOLUME_LABEL)
    guest.put(SIZE, 0x100)
    assert method(guest, file, GET_INFO, kind, SIZE, BUFFER) == Status.SUCCESS
    assert guest.current.read(BUFFER, 8).decode("utf-16-le") == "EFI\0"
    kind = guest.guid(SCRATCH, bytes(16))
    assert method(guest, file, GET_INFO, kind, SIZE, BUFFER) == Status.UNSUPPORTED


def test_nothing_can_be_changed(guest):
    before = dict(guest.efi.volume.entries)
    root, file = open_root(guest), open_path(guest, "vmlinuz")
    name = guest.text(SCRATCH + 0x200, "vmlinuz")
    assert method(guest, root, OPEN, NEW, name, 3, 0) == Status.WRITE_PROTECTED
    name = guest.text(SCRATCH + 0x200, "new")
    assert method(guest, root, OPEN, NEW, name, 1, 0) == Status.NOT_FOUND
    assert method(guest, root, OPEN, NEW, name, 3 | 1 << 63, 0) == Status.WRITE_PROTECTED
    assert method(guest, root, OPEN, NEW, name, 2, 0) == Status.INVALID_PARAMETER
    guest.put(SIZE, 1)
    assert method(guest, file, WRITE, SIZE, BUFFER) == Status.WRITE_PROTECTED
    assert method(guest, file, FLUSH) == Status.WRITE_PROTECTED
    kind = guest.guid(SCRATCH, abi.FILE_INFO)
    assert method(guest, file, SET_INFO, kind, 8, BUFFER) == Status.WRITE_PROTECTED
    delete = guest.native(file + 8 + guest.width.word * DELETE)
    assert guest.jump(delete, file) == 2  # a warning: the file was closed, and is there
    assert method(guest, file, CLOSE) == Status.INVALID_PARAMETER
    assert dict(guest.efi.volume.entries) == before


# ---- blocks ----


def test_the_disk_is_read_by_blocks(guest):
    blocks = guest.find(abi.BLOCK_IO)
    media = guest.native(blocks + 8)
    fields = guest.width.unpack("IBBBBBIIQ", guest.current.read(media, 32))
    assert fields[:7] == (0, 0, 1, 0, 1, 0, 512)
    last = fields[8]
    assert last == guest.efi.disk.size // 512 - 1

    def transfer(index: int, *args: int) -> Status:
        function = guest.native(blocks + 8 + guest.width.word * (1 + index))
        return guest.status(guest.jump(function, blocks, *args))

    assert transfer(1, 0, 0, 1024, BUFFER) == Status.SUCCESS
    sector = guest.current.read(BUFFER, 1024)
    assert sector[510:516] == b"\x55\xaaRRaA" and sector[82:90] == b"FAT32   "
    assert transfer(1, 0, last, 512, BUFFER) == Status.SUCCESS
    assert transfer(1, 0, last, 1024, BUFFER) == Status.INVALID_PARAMETER
    assert transfer(1, 0, 0, 100, BUFFER) == Status.BAD_BUFFER_SIZE
    assert transfer(1, 1, 0, 512, BUFFER) == Status.MEDIA_CHANGED
    assert transfer(1, 0, 0, 512, 0) == Status.INVALID_PARAMETER
    assert transfer(2, 0, 0, 512, BUFFER) == Status.WRITE_PROTECTED
    assert transfer(0, 1) == transfer(3) == Status.SUCCESS


class FatReader:
    """Reads FAT32 as a driver does, from nothing but the disk's blocks."""

    def __init__(self, disk: fat.Disk):
        self.disk = disk
        boot = disk.read(0, 512)
        sector, self.per_cluster, reserved, tables = struct.unpack_from("<HBHB", boot, 11)
        size, self.root = struct.unpack_from("<I4xI", boot, 36)
        assert sector == 512 and tables == 1
        self.table = disk.read(reserved * 512, size * 512)
        self.begin = (reserved + size) * 512
        (sectors,) = struct.unpack_from("<I", boot, 32)
        assert sectors * 512 == disk.size

    def chain(self, cluster: int) -> bytes:
        data = b""
        while cluster < 0x0FFFFFF8:
            assert cluster >= 2
            size = self.per_cluster * 512
            data += self.disk.read(self.begin + (cluster - 2) * size, size)
            (cluster,) = struct.unpack_from("<I", self.table, 4 * cluster)
        return data

    def files(self, cluster: int, path: str = "") -> dict[str, bytes]:
        found, units = {}, b""
        data = self.chain(cluster)
        for at in range(0, len(data), 32):
            entry = data[at : at + 32]
            attributes, first = entry[11], entry[0]
            if not first:
                break
            if attributes == 0xF:
                units = entry[1:11] + entry[14:26] + entry[28:] + units
                continue
            name = units.decode("utf-16-le").split("\0")[0]
            units = b""
            high, low, size = entry[20:22], entry[26:28], int.from_bytes(entry[28:], "little")
            start = int.from_bytes(low + high, "little")
            if attributes & 8 or first == ord("."):
                continue
            if attributes & 0x10:
                found[path + name + "/"] = b""
                found |= self.files(start, path + name + "/")
            else:
                found[path + name] = self.chain(start)[:size] if start else b""
        return found


def test_a_driver_for_fat_finds_the_same_files():
    tree = TREE | {f"many/{n:03}.conf": b"%d" % n for n in range(200)}
    reader = FatReader(fat.make(of_tree(tree)))
    found = reader.files(reader.root)
    assert {path: data for path, data in found.items() if path[-1] != "/"} == {
        path: data for path, data in tree.items() if path[-1] != "/"
    }
    assert {"EFI/", "EFI/BOOT/", "loader/", "many/"} <= found.keys()


def test_a_disk_is_the_same_each_time_and_has_zeroes_between():
    one, other = (fat.make(of_tree(dict(sorted(TREE.items(), reverse=way)))) for way in (0, 1))
    assert (one.starts, one.size) == (other.starts, other.size)
    assert [bytes(p) for p in one.pieces] == [bytes(p) for p in other.pieces]
    assert one.read(one.size - 4096, 4096) == bytes(4096)
    whole = one.read(0, 1 << 20)
    assert b"".join(one.read(at, 100) for at in range(0, 1 << 20, 100))[: 1 << 20] == whole


def test_a_snapshot_has_the_open_files_in_it(guest):
    file = open_path(guest, "vmlinuz")
    read(guest, file, 100)
    snapshot = DomainSnapshot.of(guest.domain)
    read(guest, file, 100)
    method(guest, file, CLOSE)
    firmware = snapshot.restore(guest.domain).arch.firmware.firmware
    assert firmware.files[file].position == 100
    assert firmware.volume.find("VMLINUZ").data == TREE["vmlinuz"]
    assert firmware.disk.read(0, 512) == guest.efi.disk.read(0, 512)


def test_an_empty_root_is_a_volume_without_files(load):
    guest = EfiGuest(load, efi_root={})
    assert read(guest, open_root(guest), 100) == b""
    assert isinstance(of_tree({"x/y": b"z"}).find("X\\Y"), File)
