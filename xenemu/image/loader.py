"""Read a kernel file: bzImage, ELF, a compressed ELF, or a PE program for EFI.

In Xen: tools/libs/guest/xg_dom_elfloader.c, common/libelf/libelf-loader.c
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Final, Literal, TypeVar

from xenemu.errors import ImageError
from xenemu.image import bzimage, compression, elf, pe
from xenemu.image.bsdsyms import BsdSymbols, bsd_symbols
from xenemu.image.btf import Btf
from xenemu.image.bzimage import BzImage
from xenemu.image.files import map_file
from xenemu.image.notes import DRAFT_NOTES, DraftNotes, XenNotes, read_notes
from xenemu.image.orc import Orc
from xenemu.image.ownfile import own
from xenemu.image.pe import Pe
from xenemu.image.symbols import Symbols, load_symbols
from xenemu.image.unpacked import Kept, forget, unpacked
from xenemu.records import dataclass

MAX_SPAN: Final = 1 << 30  # bytes of memory from the first segment to the end of the last piece
MAX_SEGMENTS: Final = 256
BSD_INTERPRETER: Final = "/red/herring"  # of FreeBSD's kernels, so that they are linked in full


@dataclass(frozen=True, eq=False)
class Payload:
    """How the ELF was packed. `protocol` and `kernel_version` are a bzImage's."""

    compression: str
    compressed_size: int
    size: int
    protocol: tuple[int, int] | None = None
    kernel_version: str | None = None


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of the image to load: `data`, then zeros up to `memsz`."""

    paddr: int
    vaddr: int
    memsz: int
    data: memoryview


@dataclass(frozen=True, eq=False)
class SymbolFile:
    """An ELF with a kernel's symbols; the file at `path` may have debug information, too."""

    path: str
    elf: memoryview


@dataclass(frozen=True, eq=False)
class Image:
    """A kernel, unpacked and checked; nothing in it is copied out of `elf`.

    What is in it stays, whatever becomes of the file at `path`.
    """

    path: str
    format: Literal["bzImage", "ELF", "PE"]
    payload: Payload | None
    elf_class: int  # 64 or 32
    machine: str  # "x86_64" or "i386"
    type: str  # "EXEC" or "DYN"; of a PE program, what EFI takes it for
    interpreter: str | None  # a dynamic linker, as ordinary programs and BSD kernels have one
    entry: int  # e_entry
    segments: tuple[Segment, ...]  # in the file's order; never empty
    elf: memoryview
    notes: XenNotes
    bsd_symbols: BsdSymbols | None  # what is loaded after the segments, if the notes ask for it
    separate: SymbolFile | None = None  # symbols that the kernel's own file has not
    linked: Image | None = None  # what this is a moved copy of: see `moved`
    draft_notes: DraftNotes = DRAFT_NOTES  # the types of notes that Xen has not
    bzimage: BzImage | None = None  # what `elf` came in, in the file itself: not for later
    program: Pe | None = None  # of the format PE: its `elf` has nothing in it

    @property
    def is_program(self) -> bool:
        """Whether this is an ordinary program, and no kernel."""
        return self.notes.source is None and self.interpreter not in (None, BSD_INTERPRETER)

    @property
    def pstart(self) -> int:
        """The lowest p_paddr."""
        return min(segment.paddr for segment in self.segments)

    @property
    def pend(self) -> int:
        """The end of the kernel by p_paddr: of the highest segment, or of the symbols after it."""
        return self.bsd_symbols.end if self.bsd_symbols else _end(self.segments)

    @property
    def symbol_file(self) -> SymbolFile:
        """The file to take names from: the separate one, else the kernel itself."""
        return self.separate or SymbolFile(self.path, self.elf)

    @cached_property
    def symbols(self) -> Symbols:
        """The names of its addresses, read at the first question."""
        if self.linked:
            return self.linked.symbols.moved(self.offset)
        return load_symbols(self.symbol_file.elf, self.segments)

    @cached_property
    def orc(self) -> Orc | None:
        """How to unwind its stack, if it says so."""
        if self.linked:
            return self.linked.orc and self.linked.orc.moved(self.offset)
        orc = Orc(self.elf)
        return orc if len(orc) else None

    @cached_property
    def btf(self) -> Btf:
        """The types of its structs, as far as it says them."""
        headers = elf.parse(self.elf)
        found = Btf(headers)
        if found or not self.segments:
            return found
        start, stop = (self.symbols.address(f"__{end}_BTF") or 0 for end in ("start", "stop"))
        part = next((s for s in self.segments if s.vaddr <= start < s.vaddr + len(s.data)), None)
        if part is None:
            return found
        loaded = bytes(part.data[start - part.vaddr : max(start, stop) - part.vaddr])
        return Btf(headers, loaded)

    @property
    def offset(self) -> int:
        """How far a moved copy is from where it was linked."""
        linked = self.linked or self
        return max(s.vaddr for s in self.segments) - max(s.vaddr for s in linked.segments)

    def moved(self, virtual: int, physical: int) -> Image:
        """A copy as if it were linked elsewhere: so many bytes after where it is.

        x86-64 Linux's per-CPU template, which is linked at 0, stays there.
        """
        low = min(part.start for part in self.symbols.parts)
        segments = [
            replace(s, vaddr=s.vaddr + virtual * (s.vaddr >= low), paddr=s.paddr + physical)
            for s in self.segments
        ]
        return replace(self, segments=tuple(segments), linked=self)

    def contents(self) -> Iterator[tuple[int, memoryview]]:
        """Yield what goes into memory: each piece's p_paddr and bytes."""
        for segment in self.segments:
            yield segment.paddr, segment.data
        if self.bsd_symbols:
            yield from self.bsd_symbols.pieces

    def forget_pages(self) -> None:
        """Let the host take back the memory of files: what was in them has been loaded."""
        if self.payload:
            forget(self.elf)
        if self.bzimage:
            forget(self.bzimage.file)


def load(path: Path) -> Image:
    """Read and unpack the kernel at `path`.

    Raises `ImageError`, one line that names the file and its fault, unless the file is a
    well-formed x86 ELF, packed or not, or a PE program for x86. An `Image` may still have no way to
    boot: ask `boot.verdicts`.
    """
    return _of(path, lambda: _load(path, map_file(path)))


def load_later(path: Path) -> Callable[[], Image]:
    """Load the kernel at `path` when it is first asked for; then no file is opened any more.

    Raises what `load` raises if the file cannot be read, or is not packed as Linux is.
    """
    view = _of(path, lambda: map_file(path))
    if not bzimage.is_bzimage(view):
        loaded = load(path)
        return lambda: loaded
    kept = Kept.of(_of(path, lambda: bzimage.parse(view)).compressed)
    if kept.whole is None:
        loaded = load(path)
        return lambda: loaded
    return cache(lambda: _of(path, lambda: _load(path, view, kept)))


T = TypeVar("T")


def _of(path: Path, work: Callable[[], T]) -> T:
    """Do what may find a fault in the file at `path`: ImageError, with the file's name."""
    try:
        return work()
    except ImageError as fault:
        raise ImageError(f"{path}: {fault}") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None


def _load(path: Path, view: memoryview, kept: Kept | None = None) -> Image:
    payload = outer = None
    if bzimage.is_bzimage(view):
        outer = bzimage.parse(view)
        view = unpacked(outer.compressed, outer.unpack, outer.size, kept)
        forget(outer.file)  # all of it has been read, for its digest at the least
        payload = Payload(
            outer.compression,
            len(outer.compressed),
            len(view),
            outer.protocol,
            outer.kernel_version,
        )
    elif name := compression.detect(view):
        packed = view
        view = unpacked(packed, lambda: compression.decompress(packed, name))
        payload = Payload(name, len(packed), len(view))
    elif program := pe.parse(memoryview(bytes(view)) if pe.is_pe(view) else view):
        return _pe_image(path, program)
    if bytes(view[:4]) != elf.MAGIC:
        raise ImageError(_not_a_kernel(view, payload))
    parsed = elf.parse(view)
    if payload is None:
        parsed = own(parsed)
    segments, notes = _segments(parsed), read_notes(parsed)
    return Image(
        str(path),
        "bzImage" if outer else "ELF",
        payload,
        parsed.elf_class,
        parsed.machine,
        parsed.type,
        parsed.interpreter,
        parsed.entry,
        segments,
        parsed.view,
        notes,
        _bsd_symbols(parsed, segments) if notes.bsd_symtab else None,
        bzimage=outer,
    )


def _pe_image(path: Path, program: Pe) -> Image:
    """A PE program that is nothing else; its addresses begin where it is loaded."""
    return Image(
        str(path),
        "PE",
        None,
        program.bits,
        program.machine,
        program.kind,
        None,
        program.entry,
        tuple(Segment(s.address, s.address, s.memsz, s.data) for s in program.sections),
        memoryview(elf.without_contents(program.bits)),
        XenNotes(),
        None,
        program=program,
    )


def _not_a_kernel(view: memoryview, payload: Payload | None) -> str:
    from xenemu.snapfile import MAGIC, RECORDING_MAGIC  # noqa: PLC0415 (not for a kernel)

    if payload:
        return f"the {payload.compression} payload is not an ELF"
    if bytes(view[: len(MAGIC)]) == MAGIC:
        return "a snapshot, not a kernel: xenemu resume goes on from it"
    if bytes(view[: len(RECORDING_MAGIC)]) == RECORDING_MAGIC:
        return "a recording, not a kernel: xenemu replay repeats its run"
    if bytes(view[:2]) == b"#!":
        return "a script, not a kernel"
    if bytes(view[:2]) == b"MZ":
        return "a program of DOS's: it has no PE header that EFI could load it by"
    kinds = "neither an ELF, nor a bzImage, nor a compressed ELF"
    start = bytes(view[:4096])
    if b"=" in start and b"\0" not in start:
        return f"not a kernel: {kinds}; only xenemu run and inspect take xl's configurations"
    return f"not a kernel: {kinds}"


def _segments(parsed: elf.Elf) -> tuple[Segment, ...]:
    segments = tuple(_loadable(parsed))
    if not segments:
        raise ImageError("the ELF has no segment to load")
    if len(segments) > MAX_SEGMENTS:
        raise ImageError(f"the ELF has {len(segments)} segments to load; {MAX_SEGMENTS} at most")
    ordered = sorted(segments, key=lambda segment: segment.paddr)
    for low, high in itertools.pairwise(ordered):
        # DIVERGES: in Xen the later of the two overwrites the other.
        if low.paddr + low.memsz > high.paddr:
            raise ImageError(
                f"the ELF's segments at {low.paddr:#x} ({low.memsz:#x} bytes) and"
                f" {high.paddr:#x} overlap"
            )
    span = ordered[-1].paddr + ordered[-1].memsz - ordered[0].paddr
    if span > MAX_SPAN:
        raise ImageError(f"the ELF's segments span {span:#x} bytes of memory, over {MAX_SPAN:#x}")
    return segments


def _end(segments: tuple[Segment, ...]) -> int:
    return max(segment.paddr + segment.memsz for segment in segments)


def _bsd_symbols(parsed: elf.Elf, segments: tuple[Segment, ...]) -> BsdSymbols | None:
    pstart = min(segment.paddr for segment in segments)
    symbols = bsd_symbols(parsed, pstart, _end(segments))
    if symbols and symbols.end - pstart > MAX_SPAN:
        raise ImageError(
            f"the ELF's symbols, for BSD_SYMTAB, take {symbols.end - symbols.start:#x} bytes:"
            f" with the segments over {MAX_SPAN:#x}"
        )
    return symbols


def _loadable(parsed: elf.Elf) -> Iterator[Segment]:
    top = 1 << parsed.elf_class
    for index, header in enumerate(parsed.program_headers):
        # As in libelf, a segment without any permission is not loaded.
        if header.type != elf.PT_LOAD or not header.flags & elf.PF_RWX or not header.memsz:
            continue
        where = f"the ELF's segment {index} at {header.paddr:#x}"
        if header.filesz > header.memsz:
            raise ImageError(f"{where} has more bytes in the file than in memory")
        if header.offset + header.filesz > len(parsed.view):
            raise ImageError(f"{where} is cut off by the end of the file")
        if header.paddr + header.memsz > top:
            raise ImageError(f"{where} does not fit in the address space")
        data = parsed.view[header.offset : header.offset + header.filesz]
        yield Segment(header.paddr, header.vaddr, header.memsz, data)
