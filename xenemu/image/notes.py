"""What a kernel tells Xen about itself: ELF notes, or the older `__xen_guest` string.

Xen looks in three places, and stops at the first that has a note for Xen:

* PT_NOTE segments;
* SHT_NOTE sections, allocated or not;
* the section `__xen_guest`, which only a PV builder reads.

If a note is given twice, the last one counts; FEATURES add up.

In Xen: common/libelf/libelf-dominfo.c
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import IntEnum
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from xenemu.errors import ImageError
from xenemu.image.elf import PT_NOTE, SHT_NOTE, Elf, text
from xenemu.image.notewalk import FoundNote, missed, walk
from xenemu.records import dataclass

MAX_NOTES: Final = 1024  # of any owner; the kernels of distributions have under 20
MAX_DESC: Final = 4096  # libelf's longest string
WORD: Final = (1 << 64) - 1
NUMBER_SIZES: Final = (1, 2, 4, 8)
DRAFT_ENTRY: Final = "draft PADDR_ENTRY"
DRAFT_OFFSET: Final = "draft PADDR_OFFSET"


class ElfNote(IntEnum):
    """Types of notes whose owner is "Xen" (XEN_ELFNOTE_*)."""

    INFO = 0
    ENTRY = 1
    HYPERCALL_PAGE = 2
    VIRT_BASE = 3
    PADDR_OFFSET = 4
    XEN_VERSION = 5
    GUEST_OS = 6
    GUEST_VERSION = 7
    LOADER = 8
    PAE_MODE = 9
    FEATURES = 10
    BSD_SYMTAB = 11
    HV_START_LOW = 12
    L1_MFN_VALID = 13
    SUSPEND_CANCEL = 14
    INIT_P2M = 15
    MOD_START_PFN = 16
    SUPPORTED_FEATURES = 17
    PHYS32_ENTRY = 18
    PHYS32_RELOC = 19


class DraftNotes(NamedTuple):
    """The types of the notes PADDR_ENTRY and PADDR_OFFSET of the PVH draft of 2015.

    Xen has never assigned them. The defaults are the first two after the last that it has.
    """

    entry: int
    offset: int


DRAFT_NOTES: Final = DraftNotes(20, 21)


class Feature(IntEnum):
    """Bits of SUPPORTED_FEATURES, and names in FEATURES (XENFEAT_*)."""

    writable_page_tables = 0
    writable_descriptor_tables = 1
    auto_translated_physmap = 2
    supervisor_mode_kernel = 3
    pae_pgdir_above_4gb = 4
    mmu_pt_update_preserve_ad = 5
    highmem_assist = 6
    gnttab_map_avail_bits = 7
    hvm_callback_vector = 8
    hvm_safe_pvclock = 9
    hvm_pirqs = 10
    dom0 = 11
    grant_map_identity = 12
    memory_op_vnode_supported = 13
    ARM_SMCCC_supported = 14
    linux_rsdp_unrestricted = 15
    not_direct_mapped = 16
    direct_mapped = 17


# The names that libelf understands in a FEATURES string; it refuses others if required.
FEATURE_NAMES: Final = {
    feature.name: feature
    for feature in (
        Feature.writable_page_tables,
        Feature.writable_descriptor_tables,
        Feature.auto_translated_physmap,
        Feature.supervisor_mode_kernel,
        Feature.pae_pgdir_above_4gb,
        Feature.hvm_callback_vector,
        Feature.dom0,
    )
}

# What is read and shown, but changes nothing here, and why.
_IGNORED = {
    "INFO": "it is free text",
    "GUEST_VERSION": "Xen only prints it",
    "GUEST_VER": "Xen only prints it",
    "HV_START_LOW": "Xen's part of the address space is where it is by default",
    "L1_MFN_VALID": "only migration to another host needs it",
    "SUSPEND_CANCEL": "the domain is never suspended from outside",
    "PHYS32_RELOC": "the kernel is loaded where it is linked",
}
_IGNORED_ON = {
    ("PAE_MODE", "x86_64"): "only i386 kernels have the choice",
    ("INIT_P2M", "i386"): "only x86-64 kernels can choose it",
}

Value = int | str | bytes | tuple[int, ...] | tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Note:
    """One note as it stands in the image.

    `type` is None for a `NAME=value` of `__xen_guest`. `value` is decoded if the note is
    Xen's and of a known type; otherwise it is the first 64 raw bytes.
    """

    owner: str
    type: int | None
    name: str
    value: Value
    size: int

    @property
    def is_xen(self) -> bool:
        return self.owner in ("Xen", "__xen_guest")

    @property
    def words(self) -> str | list[str | list[str]]:
        """The value as text; that of several numbers, or of pairs of them, in lists."""
        match self.value:
            case bytes(data):
                return data.hex()
            case int(number):
                return hex(number)
            case str(text):
                return text
        return [
            [hex(part) for part in word] if isinstance(word, tuple) else hex(word)
            for word in self.value
        ]

    @property
    def text(self) -> str:
        """The value on a line: numbers after each other, a pair with a slash between its two."""
        if isinstance(self.words, str):
            return self.words
        return " ".join(word if isinstance(word, str) else "/".join(word) for word in self.words)


@dataclass(frozen=True)
class LostNotes:
    """Notes of Xen's that Xen does not find.

    `astray` is the file offset where Xen takes the bytes of other notes for a note. It is None if
    Xen merely steps over its own notes.
    """

    notes: tuple[Note, ...]
    astray: int | None


@dataclass(frozen=True)
class XenNotes:
    """Xen's notes by field, None where absent; `source` is where Xen would find them."""

    source: str | None = None  # "PT_NOTE", "SHT_NOTE" or "__xen_guest"
    raw: tuple[Note, ...] = ()  # every note of the image that was looked at, in order
    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    xen_version: str | None = None
    guest_os: str | None = None
    guest_version: str | None = None
    loader: str | None = None
    pae_mode: str | None = None
    bsd_symtab: bool = False
    hv_start_low: int | None = None
    l1_mfn_valid: tuple[tuple[int, int], ...] = ()  # (mask, value)
    suspend_cancel: int | None = None
    init_p2m: int | None = None
    mod_start_pfn: bool = False
    phys32_entry: int | None = None
    phys32_reloc: tuple[int, ...] | None = None  # up to alignment, lowest, highest address
    supported: frozenset[Feature] = frozenset()  # by FEATURES and SUPPORTED_FEATURES
    required: frozenset[Feature] = frozenset()
    unknown_required: tuple[str, ...] = ()  # required names that Xen does not know
    lost: LostNotes | None = None

    @property
    def pae(self) -> bool:
        """Whether an i386 kernel can run on PAE page tables."""
        mode = self.pae_mode or ""
        if self.source == "__xen_guest":
            return mode.startswith("yes")
        return mode == "yes" or "bimodal" in mode

    @property
    def extended_cr3(self) -> bool:
        """Whether an i386 kernel's page directories may lie above 4 GiB."""
        if self.source == "__xen_guest":
            return self.pae_mode == "yes[extended-cr3]"
        return self.pae


def read_notes(elf: Elf) -> XenNotes:
    """Read the notes where Xen would.

    Raises `ImageError` for a note of Xen's that runs past the end of the file, for a number that is
    not one, and for a string without an end.
    """
    reader = _Reader(elf.view)
    # Old linkers left p_offset at 0: such a segment says nothing.
    raw = reader.read(
        [
            (header.offset, header.filesz)
            for header in elf.program_headers
            if header.type == PT_NOTE and header.offset
        ]
    )
    if any(note.is_xen for note in raw):
        return replace(_collect("PT_NOTE", raw), lost=reader.lost())
    found = reader.read(
        [
            (header.offset, header.size)
            for header in elf.section_headers[1:]
            if header.type == SHT_NOTE
        ]
    )
    raw = list(dict.fromkeys(raw + found))  # a section may repeat what a segment had
    if any(note.is_xen for note in found):
        return replace(_collect("SHT_NOTE", raw), lost=reader.lost())
    if legacy := elf.section("__xen_guest"):
        pairs = list(_legacy(elf.view, legacy.offset, legacy.size))
        return replace(_collect_legacy(raw, pairs), lost=reader.lost())
    return XenNotes(raw=tuple(raw), lost=reader.lost())


def ignored(note: Note, machine: str) -> str | None:
    """Say why `note` changes nothing for an image of `machine`; None if it is honoured."""
    if not note.is_xen:
        return "it is not Xen's"
    if note.name in (DRAFT_ENTRY, DRAFT_OFFSET):
        return None
    names = _LEGACY_NAMES if note.type is None else ElfNote.__members__
    if note.name not in names:
        return "Xen does not know it"
    return _IGNORED.get(note.name) or _IGNORED_ON.get((note.name, machine))


def as_draft(note: Note, types: DraftNotes) -> Note:
    """Name and decode a note of the draft's, which Xen does not know; others are as they were.

    The value stays bytes if it is no number.
    """
    if note.owner != "Xen" or note.type not in types:
        return note
    value = note.value
    if isinstance(value, bytes) and len(value) == note.size in NUMBER_SIZES:
        value = int.from_bytes(value, "little")
    return replace(
        note, name=DRAFT_ENTRY if note.type == types.entry else DRAFT_OFFSET, value=value
    )


class _Reader:
    """Reads notes as Xen does, and knows those that Xen misses."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._places: list[tuple[int, int]] = []
        self._found: dict[int, FoundNote] = {}  # by offset

    def read(self, places: list[tuple[int, int]]) -> list[Note]:
        """Read the notes of every (offset, size) in `places`."""
        self._places += places
        notes = []
        for found in chain.from_iterable(walk(self._view, *place) for place in places):
            notes.append(self._note(found))
            if len(notes) > MAX_NOTES:
                raise ImageError(f"the image has more than {MAX_NOTES} notes")
            self._found[found.offset] = found
        return notes

    def lost(self) -> LostNotes | None:
        """What Xen misses in the places that were read."""
        places = (missed(self._view, *place, set(self._found)) for place in self._places)
        lost = {found.offset: found for found in chain.from_iterable(places)}
        if not lost:
            return None
        astray = next((found.offset for found in self._found.values() if not found.sound), None)
        notes = tuple(self._note(found, strict=False) for found in islice(lost.values(), MAX_NOTES))
        return LostNotes(notes, astray)

    def _note(self, found: FoundNote, strict: bool = True) -> Note:
        desc = self._view[found.desc_at : found.desc_at + found.desc_size]
        try:
            return _note(text(memoryview(found.owner[:64])), found.type, desc, found.desc_size)
        except ImageError:
            if strict:
                raise
            kind = ElfNote(found.type)
            return Note("Xen", kind, kind.name, bytes(desc[:64]), found.desc_size)


def _note(owner: str, note_type: int, desc: memoryview, size: int) -> Note:
    if owner == "Xen" and note_type in _DECODERS:
        kind = ElfNote(note_type)
        return Note(owner, note_type, kind.name, _DECODERS[kind](kind.name, desc, size), size)
    return Note(owner, note_type, f"type {note_type:#x}", bytes(desc[:64]), size)


def _number(name: str, desc: memoryview, size: int) -> int:
    # DIVERGES: libelf reads a number of any other size as 0, which is never meant.
    if size not in NUMBER_SIZES:
        raise ImageError(f"the note {name} has {size} bytes, which is no number")
    if len(desc) < size:
        raise ImageError(f"the note {name} runs out of the file")
    return int.from_bytes(desc, "little")


def _string(name: str, desc: memoryview, size: int) -> str:
    # Like libelf, go by the NUL: GRUB's i386 image ends in a string that claims 12 bytes
    # and has 4.
    data = desc[:MAX_DESC]
    if 0 not in data and len(data) < size:
        raise ImageError(f"the note {name} is a string without end")
    return text(data)


def _pairs(name: str, desc: memoryview, size: int) -> tuple[tuple[int, int], ...]:
    """Decode mask and value, of 8 bytes each, or 4 from a kernel without PAE."""
    words = _words(name, desc, size, 8 if size % 16 == 0 else 4)
    if len(words) % 2:
        raise ImageError(f"the note {name} has {size} bytes, which are no pairs")
    return tuple(zip(words[::2], words[1::2], strict=True))


def _reloc(name: str, desc: memoryview, size: int) -> tuple[int, ...]:
    return _words(name, desc, size, 4)[:3]


def _words(name: str, desc: memoryview, size: int, width: int) -> tuple[int, ...]:
    if len(desc) < size or size > MAX_DESC or size % width:
        raise ImageError(f"the note {name} has {size} bytes, which are no {width}-byte words")
    return struct.unpack_from(f"<{size // width}{'Q' if width == 8 else 'I'}", desc)


_DECODERS: dict[int, Callable[[str, memoryview, int], Value]] = {
    **dict.fromkeys(ElfNote, _number),
    **dict.fromkeys(
        (
            ElfNote.INFO,
            ElfNote.XEN_VERSION,
            ElfNote.GUEST_OS,
            ElfNote.GUEST_VERSION,
            ElfNote.LOADER,
            ElfNote.PAE_MODE,
            ElfNote.FEATURES,
            ElfNote.BSD_SYMTAB,
        ),
        _string,
    ),
    ElfNote.L1_MFN_VALID: _pairs,
    ElfNote.PHYS32_RELOC: _reloc,
}


class _Features:
    """FEATURES and SUPPORTED_FEATURES, which add up."""

    def __init__(self) -> None:
        self.supported: set[Feature] = set()
        self.required: set[Feature] = set()
        self.unknown_required: list[str] = []

    def add_string(self, words: str) -> None:
        for word in filter(None, words.split("|")):
            name = word.removeprefix("!")
            feature = FEATURE_NAMES.get(name)
            if feature is not None:
                self.supported.add(feature)
            if word.startswith("!"):
                if feature is None:
                    self.unknown_required.append(name)
                else:
                    self.required.add(feature)

    def add_bitmap(self, bits: int) -> None:
        self.supported |= {feature for feature in Feature if bits >> feature & 1}

    def fields(self) -> dict[str, Any]:
        return {
            "supported": frozenset(self.supported),
            "required": frozenset(self.required),
            "unknown_required": tuple(self.unknown_required),
        }


def _collect(source: str, raw: list[Note]) -> XenNotes:
    fields: dict[str, Any] = {}
    features = _Features()
    for note in raw:
        if note.owner != "Xen" or note.type not in _DECODERS or note.type == ElfNote.INFO:
            continue
        match note.type, note.value:
            case ElfNote.FEATURES, str(words):
                features.add_string(words)
            case ElfNote.SUPPORTED_FEATURES, int(bits):
                features.add_bitmap(bits)
            case ElfNote.BSD_SYMTAB, value:
                fields["bsd_symtab"] = value == "yes"
            case ElfNote.MOD_START_PFN, value:
                fields["mod_start_pfn"] = bool(value)
            case _, value:
                fields[note.name.lower()] = value
    return XenNotes(source, tuple(raw), **fields, **features.fields())


# The names of `__xen_guest` that Xen reads, and the notes that replaced them.
_LEGACY_NAMES = {
    "GUEST_OS": "guest_os",
    "GUEST_VER": "guest_version",
    "XEN_VER": "xen_version",
    "LOADER": "loader",
    "PAE": "pae_mode",
    "BSD_SYMTAB": "bsd_symtab",
    "VIRT_BASE": "virt_base",
    "VIRT_ENTRY": "entry",
    "ELF_PADDR_OFFSET": "paddr_offset",
    "HYPERCALL_PAGE": "hypercall_page",
    "FEATURES": "features",
}
_LEGACY_NUMBERS = {"VIRT_BASE", "VIRT_ENTRY", "ELF_PADDR_OFFSET", "HYPERCALL_PAGE"}


def _legacy(view: memoryview, offset: int, size: int) -> Iterator[tuple[str, str]]:
    """Yield the `NAME=value` of the section `__xen_guest`."""
    if offset + size > len(view):
        raise ImageError("the section __xen_guest lies outside the file")
    for item in text(view[offset : offset + min(size, MAX_DESC)]).split(","):
        name, _, value = item.partition("=")
        if name:
            yield name, value


def _collect_legacy(raw: list[Note], pairs: list[tuple[str, str]]) -> XenNotes:
    fields: dict[str, Any] = {}
    features = _Features()
    for name, string in pairs:
        value = _legacy_number(name, string) if name in _LEGACY_NUMBERS else string
        raw.append(Note("__xen_guest", None, name, value, len(string)))
        match name:
            case "FEATURES":
                features.add_string(string)
            case "BSD_SYMTAB":
                fields["bsd_symtab"] = True  # its presence counts, whatever it says
            case _ if name in _LEGACY_NAMES:
                fields[_LEGACY_NAMES[name]] = value
    if "hypercall_page" in fields:  # here it is a page number from the base
        fields["hypercall_page"] <<= 12
        fields["hypercall_page"] += fields.get("virt_base", 0)
        fields["hypercall_page"] &= WORD
    # DIVERGES: Xen stops reading at a required feature that it does not know, yet goes on.
    return XenNotes("__xen_guest", tuple(raw), **fields, **features.fields())


def _legacy_number(name: str, string: str) -> int:
    """Read a C number. DIVERGES: Xen takes what is no number for 0."""
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19}", string):
        raise ImageError(f"the section __xen_guest has {name}={string[:40]}, which is no number")
    return int(string, 16 if string[:2].lower() == "0x" else 10)
