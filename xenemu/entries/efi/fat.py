"""A disk with the files of --efi-root, for programs that bring a file system of their own.

It is one FAT32 volume without partitions, which is made when it is read: only its metadata take
memory. Each file and each directory is in one piece. Microsoft's "FAT32 File System Specification".
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from xenemu.entries.efi.volume import Directory, File
from xenemu.hv.building import Data
from xenemu.records import dataclass

SECTOR: Final = 512
CLUSTER: Final = 4096
RESERVED: Final = 32  # sectors, with the boot sector, FSInfo and a copy of the boot sector
FEWEST: Final = 65_536  # clusters: with fewer, it would be no FAT32
FIRST: Final = 2  # the number of the first cluster
END_OF_CHAIN: Final = 0x0FFFFFFF
MEDIA: Final = 0xF8
READ_ONLY, VOLUME_ID, DIRECTORY, LONG_NAME = 1, 8, 0x10, 0xF
LABEL: Final = b"EFI        "
DAY: Final = 1 << 5 | 1  # 1980-01-01
BOOT: Final = struct.Struct("<3s8sHBHBHHBHHHIIIHHIHH12xBxBI11s8s")
ENTRY_SIZE: Final = 32
PER_ENTRY: Final = 13  # characters of a long name


@dataclass(frozen=True)
class Disk:
    """Bytes by where they begin, in order; between them are zeroes."""

    starts: list[int]
    pieces: list[Data]
    size: int

    def read(self, at: int, size: int) -> bytes:
        """Bytes that are all on the disk."""
        data = bytearray(size)
        index = max(bisect_right(self.starts, at) - 1, 0)
        while index < len(self.starts) and self.starts[index] < at + size:
            start, piece = self.starts[index], self.pieces[index]
            first, last = max(start, at), min(start + len(piece), at + size)
            if first < last:
                data[first - at : last - at] = piece[first - start : last - start]
            index += 1
        return bytes(data)


def make(root: Directory) -> Disk:
    """A disk with what is in a directory."""
    places, used = _places(root)
    parents = {id(entry): above for above in root.walk() for entry in above.entries.values()}
    count = max(FEWEST, used)
    table_sectors = ((count + FIRST) * 4 + SECTOR - 1) // SECTOR
    begin = (RESERVED + table_sectors) * SECTOR
    boot = _boot_sector(begin // SECTOR + count * (CLUSTER // SECTOR), table_sectors)
    info = _info_sector()
    pieces: dict[int, Data] = {
        0: boot, SECTOR: info, 6 * SECTOR: boot, 7 * SECTOR: info,
        RESERVED * SECTOR: _table(places.values()),
    }  # fmt: skip
    for node, at in _nodes(root, places):
        if at:
            parent = parents.get(id(node))
            data = node.data if isinstance(node, File) else _entries(node, parent, places)
            pieces[begin + (at.start - FIRST) * CLUSTER] = data
    starts = sorted(pieces)
    return Disk(starts, [pieces[start] for start in starts], begin + count * CLUSTER)


Places = dict[int, range]  # the clusters of files and directories, by the identity of these


def _nodes(root: Directory, places: Places) -> Iterator[tuple[File | Directory, range]]:
    for directory in root.walk():
        yield directory, places[id(directory)]
        for entry in directory.entries.values():
            if isinstance(entry, File):
                yield entry, places[id(entry)]


def _places(root: Directory) -> tuple[Places, int]:
    """Where everything goes, and how many clusters that takes; an empty file has none."""
    places, free = {}, FIRST
    for directory in root.walk():
        length = sum(_entries_of(entry.name) for entry in directory.entries.values()) + 2
        nodes: list[tuple[File | Directory, int]] = [(directory, length * ENTRY_SIZE)]
        nodes += [(e, len(e.data)) for e in directory.entries.values() if isinstance(e, File)]
        for node, size in nodes:
            clusters = (size + CLUSTER - 1) // CLUSTER
            places[id(node)] = range(free, free + clusters) if clusters else range(0)
            free += clusters
    return places, free - FIRST


def _table(chains: Iterable[range]) -> bytes:
    """The table of chains, each of which is in one piece."""
    table = [END_OF_CHAIN & ~0xFF | MEDIA, END_OF_CHAIN]
    for chain in chains:
        table += [*chain[1:], END_OF_CHAIN] if chain else []
    return struct.pack(f"<{len(table)}I", *table)


def _boot_sector(sectors: int, table_sectors: int) -> bytes:
    fields = BOOT.pack(
        b"\xeb\x58\x90", b"XENEMU  ", SECTOR, CLUSTER // SECTOR, RESERVED, 1, 0, 0, MEDIA, 0,
        63, 255, 0, sectors, table_sectors, 0, 0, FIRST, 1, 6, 0x80, 0x29, 0, LABEL, b"FAT32   ",
    )  # fmt: skip
    return fields.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _info_sector() -> bytes:
    free = struct.pack("<4sII12x", b"rrAa", 0, 0xFFFFFFFF)
    return b"RRaA".ljust(484, b"\0") + free + b"\0\0\x55\xaa"


def _entries_of(name: str) -> int:
    return 1 + (len(_units(name)) // 2 + PER_ENTRY - 1) // PER_ENTRY


def _units(name: str) -> bytes:
    return name.encode("utf-16-le", "surrogatepass")


def _entries(directory: Directory, parent: Directory | None, places: Places) -> bytes:
    """What a directory has in it; the root has no parent."""
    if parent is None:
        data = _entry(LABEL, VOLUME_ID, 0, 0)
    else:
        start = places[id(parent)].start
        above = 0 if start == FIRST else start  # of the root, which is first, one says 0
        data = _entry(b".          ", DIRECTORY, places[id(directory)].start, 0)
        data += _entry(b"..         ", DIRECTORY, above, 0)
    for number, entry in enumerate(directory.entries.values()):
        short = b"%08X   " % number  # unique, and seen by nobody who knows long names
        start = places[id(entry)].start
        data += _long_name(entry.name, short)
        if isinstance(entry, File):
            data += _entry(short, READ_ONLY, start, len(entry.data))
        else:
            data += _entry(short, DIRECTORY, start, 0)
    return data


def _entry(short: bytes, attributes: int, start: int, size: int) -> bytes:
    low = start & 0xFFFF
    return struct.pack("<11sB6xHHHHHI", short, attributes, 0, start >> 16, 0, DAY, low, size)


def _long_name(name: str, short: bytes) -> bytes:
    """The entries of a long name, the last part first."""
    total = 0
    for byte in short:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    units, size = _units(name), 2 * PER_ENTRY
    parts = [units[n : n + size] for n in range(0, len(units), size)]
    if len(parts[-1]) < size:
        parts[-1] = (parts[-1] + b"\0\0").ljust(size, b"\xff")
    last, entries = 0x40, b""
    for number, part in reversed(list(enumerate(parts, 1))):
        entries += struct.pack(
            "<B10sBBB12sH4s", number | last, part[:10], LONG_NAME, 0, total, part[10:22], 0,
            part[22:],
        )  # fmt: skip
        last = 0
    return entries
