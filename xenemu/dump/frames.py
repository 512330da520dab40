"""Which frames a guest has, and where its kernel has them mapped.

Frames are numbered as the guest's page tables number them (Gfn): a PVH guest's by its own physical
addresses, a PV guest's by the machine's. The physical address that a PV kernel itself knows a frame
by is what Xen's machine-to-physical table says.

Tables may lead in circles, or map one page a thousand times (as KASAN's shadow does). So each table
is looked at in the first few places where it is met, and is passed over in the others. A PV Linux
has its code twice through the same tables.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.peek import LONG, Tables, machine_frame
from xenemu.records import dataclass
from xenemu.x86.paging import ADDR, PAGE_SHIFT, PAGE_SIZE, PSE, Maddr, P

MAX_PFN: Final = 1 << 40  # what is beyond is no address
MAX_PLACES: Final = 4  # in which a table is looked at
MAX_TABLES: Final = 1 << 15  # that are looked at: what maps 64 GiB by pages
MAX_MAPPINGS: Final = 1 << 18
UPPER_HALF: Final = 1 << 63
GIGABYTE: Final = 1 << 30


@dataclass(frozen=True)
class Run:
    """`pages` frames that follow each other in every numbering, from `gfn` on.

    `pfn` is the guest's own number of the first one; None for frames of Xen's that a PV guest may
    map, such as shared_info. `before` is how many frames all runs before this one have.
    """

    gfn: int
    mfn: int
    pfn: int | None
    pages: int
    before: int


@dataclass(frozen=True)
class Mapping:
    """`pages` pages from `vaddr` on, which are frames of a run, after the first `into` ones."""

    vaddr: int
    run: Run
    into: int
    pages: int


Leaf = tuple[int, int, int]  # an address, the frame that is mapped there, and how many pages follow


def runs(current: Current) -> list[Run]:
    """All frames that the guest has, in the order of their numbers."""
    p2m = current.domain.p2m
    if p2m is None:
        return list(_joined(_pv_frames(current)))
    return list(_joined(sorted((gfn, mfn, gfn) for gfn, mfn in p2m.places())))


def _pv_frames(current: Current) -> Iterator[tuple[int, int, int | None]]:
    frames, memory = current.domain.frames, current.domain.memory
    size = memory.nr_frames * frames.m2p_width
    base = frames.m2p_base or Maddr(0)
    m2p = memory.bytes[base : base + size].cast("Q" if frames.m2p_width == 8 else "I")
    domid, seen = current.domain.domid, set[int]()
    for mfn, (owner, pfn) in enumerate(zip(frames.owner, m2p, strict=True)):
        if owner == domid:
            is_known = pfn < min(MAX_PFN, (1 << 8 * frames.m2p_width) - 1) and pfn not in seen
            seen.add(pfn)
            yield mfn, mfn, pfn if is_known else None


def _joined(frames: Iterable[tuple[int, int, int | None]]) -> Iterator[Run]:
    first: tuple[int, int, int | None] = (-1, -1, None)
    expected, pages, before = first, 0, 0
    for frame in frames:
        if frame != expected:
            if pages:
                yield Run(*first, pages, before)
            first, before, pages = frame, before + pages, 0
        gfn, mfn, pfn = frame
        expected = (gfn + 1, mfn + 1, None if pfn is None else pfn + 1)
        pages += 1
    if pages:
        yield Run(*first, pages, before)


def kernel_begins(image: Image) -> int:
    """From which address on there is the kernel, with nothing of its programs' above."""
    lowest = min((part.vaddr for part in image.segments), default=0)
    return lowest & (UPPER_HALF if image.elf_class == 64 else -GIGABYTE)


def mappings(
    current: Current, found: Tables | None, have: list[Run], lowest: int
) -> tuple[list[Mapping], bool]:
    """What the tables map from `lowest` on of the frames that the guest has, by address.

    Each mapping lies within one run. The second value says whether that is all: a hostile guest
    may have more than anybody wants to know. While paging is off, each address is its own.
    """
    if found is None:
        return [Mapping(run.gfn << PAGE_SHIFT, run, 0, run.pages) for run in have], True
    starts = [run.gfn for run in have]
    result: list[Mapping] = []
    places: Counter[int] = Counter()
    for vaddr, gfn, pages in _adjoined(_leaves(current, found, lowest, places)):
        number = max(0, bisect_right(starts, gfn) - 1)
        while number < len(have) and have[number].gfn < gfn + pages:
            run = have[number]
            low, high = max(gfn, run.gfn), min(gfn + pages, run.gfn + run.pages)
            if low < high:
                at = vaddr + (low - gfn << PAGE_SHIFT)
                result.append(Mapping(at, run, low - run.gfn, high - low))
            number += 1
        if len(result) > MAX_MAPPINGS:
            return result, False
    return result, places.total() < MAX_TABLES


def _adjoined(leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    vaddr = gfn = pages = 0
    for leaf in leaves:
        if leaf[:2] == (vaddr + (pages << PAGE_SHIFT), gfn + pages):
            pages += leaf[2]
            continue
        if pages:
            yield vaddr, gfn, pages
        vaddr, gfn, pages = leaf
    if pages:
        yield vaddr, gfn, pages


def _leaves(current: Current, found: Tables, lowest: int, places: Counter[int]) -> Iterator[Leaf]:
    """What the tables map; `places` counts how often each table is looked at."""
    domain = current.domain
    memory, size = domain.memory, found.entry_size
    left = MAX_TABLES

    def below(table: int, level: int, vaddr: int) -> Iterator[Leaf]:
        mfn = machine_frame(current, table)
        if mfn is None or domain.frames.owner[mfn] != domain.domid:
            return
        nonlocal left
        if places[mfn] == MAX_PLACES or not left:
            return
        places[mfn] += 1
        left -= 1
        shift = found.shifts[-level]
        count = PAGE_SIZE // size
        if level == len(found.shifts) and found.shifts != LONG:
            count = min(count, 1 << 32 - shift)
        start = (mfn << PAGE_SHIFT) + (table & PAGE_SIZE - 1)
        entries = memory.bytes[start : start + count * size].cast("Q" if size == 8 else "I")
        for index, entry in enumerate(entries.tolist()):
            if not entry & P:
                continue
            at = vaddr + (index << shift)
            if level == len(LONG) and index >= count // 2:
                at += (1 << 64) - (1 << 48)
            if at + (1 << shift) <= lowest:
                continue
            if level == 1:
                yield at, (entry & ADDR) >> PAGE_SHIFT, 1
            elif entry & PSE:
                whole = 1 << shift
                yield at, (entry & ADDR & -whole) >> PAGE_SHIFT, whole >> PAGE_SHIFT
            else:
                yield from below(entry & ADDR, level - 1, at)

    return below(found.root, len(found.shifts), 0)
