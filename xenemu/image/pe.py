"""PE/COFF programs, as EFI loads them: headers, sections, relocations.

Microsoft's "PE Format"; UEFI specification 2.10, section 2.1.1.
"""

from __future__ import annotations

import struct
from typing import Final

from xenemu.errors import ImageError
from xenemu.records import dataclass

MACHINES: Final = {0x8664: "x86_64", 0x14C: "i386"}
EFI_APPLICATION, EFI_BOOT_SERVICE_DRIVER, EFI_RUNTIME_DRIVER = 10, 11, 12
SUBSYSTEMS: Final = {
    EFI_APPLICATION: "EFI application",
    EFI_BOOT_SERVICE_DRIVER: "EFI boot service driver",
    EFI_RUNTIME_DRIVER: "EFI runtime driver",
}
COMPAT: Final = b".compat\0"  # the section that says where other machines begin
COMPAT_ENTRY: Final = struct.Struct("<BBHI")  # type 1, its size, the machine, the entry
MAX_SIZE: Final = 1 << 30
MAX_SECTIONS: Final = 96  # as in Windows
MAX_RELOCATIONS: Final = 1 << 20  # each is Python's work

_LFANEW: Final = 0x3C
_COFF: Final = struct.Struct("<4sHH12xHH")  # signature, machine, sections, header size, flags
_SECTION: Final = struct.Struct("<8s4I16x")  # name, virtual size, address, raw size, raw pointer
_RELOCATION_DIRECTORY: Final = 5
_STRIPPED: Final = 1 << 0  # there are no relocations: it runs at its ImageBase only
_ABSOLUTE, _HIGHLOW, _DIR64 = 0, 3, 10  # types of relocations


@dataclass(frozen=True)
class _Format:
    """Where the optional header of one of the two formats has what."""

    magic: int
    image_base: str
    image_base_at: int
    directories: int  # their number; they follow


_FORMATS: Final = {0x20B: _Format(0x20B, "<Q", 24, 108), 0x10B: _Format(0x10B, "<I", 28, 92)}


@dataclass(frozen=True)
class Section:
    name: bytes  # 8 bytes
    address: int  # from where the image is loaded
    size: int
    data: memoryview

    @property
    def memsz(self) -> int:
        return max(self.size, len(self.data))


@dataclass(frozen=True)
class Pe:
    """A program: all addresses are from where it is loaded."""

    machine: str
    subsystem: int
    entry: int
    image_base: int
    size: int
    relocatable: bool
    sections: tuple[Section, ...]  # the first is that of the headers
    relocations: tuple[int, int]  # address and size of the directory
    compat: dict[str, int]  # entries for other machines, which Linux's kernels have

    @property
    def bits(self) -> int:
        return 64 if self.machine == "x86_64" else 32

    @property
    def kind(self) -> str:
        """What EFI takes it for, by its subsystem."""
        return SUBSYSTEMS.get(self.subsystem, f"subsystem {self.subsystem}")

    def load(self, base: int) -> bytearray:
        """The image as it is in memory at `base`; ImageError if it cannot be there."""
        image = bytearray(self.size)
        for section in self.sections:
            image[section.address : section.address + len(section.data)] = section.data
        self._relocate(image, base - self.image_base)
        return image

    def _relocate(self, image: bytearray, delta: int) -> None:
        if delta and not self.relocatable:
            raise ImageError(f"the program runs only at {self.image_base:#x}")
        at, size = self.relocations
        end = at + size
        if size > 2 * MAX_RELOCATIONS:
            raise ImageError(f"the relocations at {at:#x} have {size} bytes, which is too many")
        while delta and at + 8 <= end:
            page, block = struct.unpack_from("<II", image, at)
            if not 8 <= block <= end - at:
                raise ImageError(f"the relocations at {at:#x} are a block of {block} bytes")
            for (entry,) in struct.iter_unpack("<H", image[at + 8 : at + (block & ~1)]):
                _apply(image, entry >> 12, page + (entry & 0xFFF), delta)
            at += block


def _apply(image: bytearray, kind: int, at: int, delta: int) -> None:
    size = {_ABSOLUTE: 0, _HIGHLOW: 4, _DIR64: 8}.get(kind)
    if size is None or at + size > len(image):
        raise ImageError(f"a relocation of type {kind} at {at:#x} cannot be done")
    value = int.from_bytes(image[at : at + size], "little") + delta
    image[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def is_pe(view: memoryview) -> bool:
    """Whether a file has a PE header, whatever that says."""
    return _header(view) is not None


def _header(view: memoryview) -> int | None:
    if len(view) < _LFANEW + 4 or bytes(view[:2]) != b"MZ":
        return None
    (at,) = struct.unpack_from("<I", view, _LFANEW)
    if at + _COFF.size > len(view) or bytes(view[at : at + 4]) != b"PE\0\0":
        return None
    return int(at)


def parse(view: memoryview) -> Pe | None:
    """Read a program's headers; None if it has none, ImageError if they are wrong."""
    at = _header(view)
    if at is None:
        return None
    _, machine, count, header_size, flags = _COFF.unpack_from(view, at)
    optional = at + _COFF.size
    form = None
    if header_size >= 2 and optional + header_size <= len(view):
        form = _FORMATS.get(struct.unpack_from("<H", view, optional)[0])
    if form is None or header_size < form.directories + 4 or count > MAX_SECTIONS:
        raise ImageError("the PE header is cut off, or of no known format")
    if machine not in MACHINES:
        raise ImageError(f"the PE header is for machine {machine:#x}, which is no x86")
    (entry,) = struct.unpack_from("<I", view, optional + 16)
    size, headers = struct.unpack_from("<II", view, optional + 56)
    (subsystem,) = struct.unpack_from("<H", view, optional + 68)
    (image_base,) = struct.unpack_from(form.image_base, view, optional + form.image_base_at)
    if not entry < size <= MAX_SIZE:
        raise ImageError(f"the PE header has the entry {entry:#x} in an image of {size:#x} bytes")
    sections = [Section(bytes(8), 0, headers, view[:headers])]
    sections += _sections(view, optional + header_size, count)
    for section in sections:
        if section.address + section.memsz > size:
            raise ImageError(f"the PE section at {section.address:#x} reaches out of the image")
    return Pe(
        MACHINES[machine],
        subsystem,
        entry,
        image_base,
        size,
        not flags & _STRIPPED,
        tuple(sections),
        _relocations(view, optional, header_size, form, size),
        _compat(sections, size),
    )


def _sections(view: memoryview, at: int, count: int) -> list[Section]:
    if at + count * _SECTION.size > len(view):
        raise ImageError("the PE sections are cut off")
    sections = []
    for n in range(count):
        name, size, address, raw_size, raw = _SECTION.unpack_from(view, at + n * _SECTION.size)
        taken = min(size or raw_size, raw_size)
        if raw + taken > len(view):
            raise ImageError(f"the PE section at {address:#x} is cut off by the end of the file")
        sections.append(Section(name, address, size or raw_size, view[raw : raw + taken]))
    return sections


def _compat(sections: list[Section], image_size: int) -> dict[str, int]:
    """The entries that the section .compat has; what it has beside them says nothing."""
    entries = {}
    for section in sections:
        data = section.data if section.name == COMPAT else memoryview(b"")
        while len(data) >= COMPAT_ENTRY.size and data[0] and data[1] >= 2:
            kind, _, machine, entry = COMPAT_ENTRY.unpack_from(data)
            if kind == 1 and machine in MACHINES and entry < image_size:
                entries[MACHINES[machine]] = entry
            data = data[data[1] :]
    return entries


def _relocations(
    view: memoryview, optional: int, header_size: int, form: _Format, image_size: int
) -> tuple[int, int]:
    """Where the relocations are, and how many bytes: 0 if there are none."""
    (directories,) = struct.unpack_from("<I", view, optional + form.directories)
    place = form.directories + 4 + _RELOCATION_DIRECTORY * 8
    if directories <= _RELOCATION_DIRECTORY or place + 8 > header_size:
        return 0, 0
    address, size = struct.unpack_from("<II", view, optional + place)
    if address + size > image_size:
        raise ImageError(f"the PE relocations at {address:#x} reach out of the image")
    return address, size
