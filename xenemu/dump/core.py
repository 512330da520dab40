"""Writes a guest's core file.

Each of the guest's frames is in the file once. A segment says where in the file some frames are,
and their physical and their virtual addresses. A kernel maps most frames more than once, so several
segments share the same bytes: those of the kernel's linear map come first, then those that it maps
elsewhere (its code, modules, vmalloc). These are found by walking the guest's own page tables. So
no reader of the file needs to translate an address, and a PV kernel's file is read as any other,
although its page tables hold machine addresses.

In Linux: Documentation/admin-guide/kdump/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, Protocol

from xenemu.dump import elfcore
from xenemu.dump.elfcore import NO_ADDRESS, Load, Thread
from xenemu.dump.frames import Mapping, Run, kernel_begins, mappings, runs
from xenemu.hv.cpu import Seg
from xenemu.hv.current import Current
from xenemu.hv.state.vcpu import Vcpu
from xenemu.image import Image
from xenemu.kaslr import as_mapped
from xenemu.linux import Linux
from xenemu.peek import Pages, has_begun, kernel_tables, returned
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE

MAX_LOADS: Final = 1 << 14  # ELF's count of segments has 16 bits, and readers search them in turn
ZERO_PAGE: Final = bytes(PAGE_SIZE)
PIECE: Final = 256  # pages that are written at once


class Sink(Protocol):
    """Where the file goes."""

    def write(self, data: bytes) -> None:
        """Write all of it; OutputError."""

    def skip(self, size: int) -> None:
        """Write so many zeroes, or leave a hole; OutputError."""


@dataclass(frozen=True)
class Core:
    """What was written: bytes of the guest's memory, and what a person may want to know of it.

    * `is_known`: it has the kernel's VMCOREINFO, without which crash and drgn do not read it.
    * `moved`: how far the kernel is from where it was linked.
    * `left_out`: how many mappings there was no room for; `is_whole`: all others were found.
    * `thread`: gdb's number of the vcpu that ran last, if there are several.
    """

    size: int
    is_known: bool
    moved: int
    left_out: int
    is_whole: bool
    thread: int | None

    @property
    def remarks(self) -> str:
        """What a person has to know before opening it, to be put after a sentence."""
        found = []
        if self.thread:
            found.append(f"gdb's thread {self.thread} is the vcpu that ran last")
        if self.moved:
            found.append(f"gdb must be told where the kernel is: symbol-file -o {self.moved:#x}")
        if not self.is_known:
            found.append("it has no VMCOREINFO, so crash and drgn do not open it, but gdb does")
        if self.left_out:
            found.append(f"{self.left_out} mappings at low addresses are left out")
        if not self.is_whole:
            found.append("it has more page tables than were looked at")
        return "".join(f"; {each}" for each in found)


def write(current: Current, image: Image, sink: Sink) -> Core:
    """Write a guest's core file; OutputError. It changes nothing of the guest's."""
    mapped = as_mapped(current, image)
    found = kernel_tables(current, mapped)
    linux = Linux(current, mapped, Pages(current, found))
    have = runs(current)
    mapped_frames, is_whole = mappings(current, found, have, kernel_begins(mapped))
    loads = _loads(have, mapped_frames)
    wide = image.elf_class == 64
    notes = [elfcore.prstatus(_thread(current, vcpu), wide) for vcpu in current.domain.vcpus]
    info = linux.vmcoreinfo()
    if info:
        notes.append(elfcore.note(b"VMCOREINFO", 0, info))
    sink.write(elfcore.head(loads[:MAX_LOADS], notes, wide))
    memory = current.domain.memory.mapping
    for run in have:
        _write_run(memory.__getitem__, run, sink)
    moved = mapped.segments[0].vaddr - image.segments[0].vaddr if image.segments else 0
    size = sum(run.pages for run in have) << PAGE_SHIFT
    several = len(current.domain.vcpus) > 1
    thread = current.vcpu.vcpu_id + 1 if several else None
    return Core(size, bool(info), moved, len(loads[MAX_LOADS:]), is_whole, thread)


def _write_run(read: Callable[[slice], bytes], run: Run, sink: Sink) -> None:
    """Write the frames of a run; those that are all zeroes are skipped."""
    start, end = run.mfn << PAGE_SHIFT, run.mfn + run.pages << PAGE_SHIFT
    for piece in range(start, end, PIECE * PAGE_SIZE):
        stop = min(piece + PIECE * PAGE_SIZE, end)
        data = read(slice(piece, stop))
        filled = [data[at : at + PAGE_SIZE] != ZERO_PAGE for at in range(0, len(data), PAGE_SIZE)]
        at = 0
        while at < len(filled):
            next_at = at + 1
            while next_at < len(filled) and filled[next_at] == filled[at]:
                next_at += 1
            if filled[at]:
                sink.write(data[at * PAGE_SIZE : next_at * PAGE_SIZE])
            else:
                sink.skip((next_at - at) * PAGE_SIZE)
            at = next_at


def _loads(have: list[Run], mapped: list[Mapping]) -> list[Load]:
    """The segments.

    First come those of the linear map, in which most frames are as far from their addresses, and
    the frames that it has not. Then come the others, those at the highest addresses first.
    """
    loads = [_load(mapping) for mapping in mapped]
    distances: Counter[int] = Counter()
    for load in loads:
        if load.paddr != NO_ADDRESS:
            distances[load.vaddr - load.paddr] += load.size
    linear = max(distances, key=lambda distance: distances[distance], default=0)
    first = [load for load in loads if load.vaddr - load.paddr == linear]
    rest = [load for load in loads if load.vaddr - load.paddr != linear]
    first += _unmapped(have, first)
    first.sort(key=lambda load: load.offset)
    rest.sort(key=lambda load: -load.vaddr)
    return first + rest


def _load(mapping: Mapping) -> Load:
    run, into = mapping.run, mapping.into
    paddr = NO_ADDRESS if run.pfn is None else run.pfn + into << PAGE_SHIFT
    return Load(mapping.vaddr, paddr, run.before + into << PAGE_SHIFT, mapping.pages << PAGE_SHIFT)


def _unmapped(have: list[Run], loads: list[Load]) -> Iterator[Load]:
    """Segments for the frames that none of `loads` has; they have a physical address only."""
    covered = sorted((load.offset, load.offset + load.size) for load in loads)
    number = 0
    for run in have:
        if run.pfn is None:
            continue
        at, end = run.before << PAGE_SHIFT, run.before + run.pages << PAGE_SHIFT
        base = (run.pfn << PAGE_SHIFT) - at
        while at < end:
            while number < len(covered) and covered[number][1] <= at:
                number += 1
            start, stop = covered[number] if number < len(covered) else (end, end)
            if start > at:
                yield Load(NO_ADDRESS, base + at, at, min(start, end) - at)
            at = stop


def _thread(current: Current, vcpu: Vcpu) -> Thread:
    """A vcpu's registers; a vcpu that has not begun has none."""
    thread = Thread(vcpu.vcpu_id + 1)
    if not has_begun(current, vcpu):
        return thread
    seen = current if vcpu is current.vcpu else replace(current, vcpu=vcpu, cpu=vcpu.saved)
    cpu = seen.cpu
    rip, general = returned(seen)
    return replace(
        thread,
        general=general,
        rip=rip,
        rflags=cpu.rflags,
        selectors=[cpu.selector(which) for which in Seg],
        fs_base=cpu.segment(Seg.FS).base,
        gs_base=cpu.segment(Seg.GS).base,
    )
