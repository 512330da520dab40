"""A guest's memory as a picture, frame by frame, by what each is used as: one SVG.

A leak, a fragmented heap or page tables that nobody needs are seen at once. Frames are in rows, by
ascending address: the machine's for a PV guest, and its own for a PVH guest. Rows in which there is
nothing are left out. A cell is one frame, or several if there are too many; then it has the colour
of what most of them are. A frame that is several things counts as the first of them, in the order
of `Kind`.

What a PV guest's page tables are, Xen knows. A PVH guest's are found by a walk from the root that
is in use, so other address spaces' tables count as data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import groupby
from typing import Final

from xenemu.hv.current import Current
from xenemu.hv.frame_table import (
    DOMID_NONE,
    LEVELS,
    PGC_xen_heap,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.peek import machine_frame, tables
from xenemu.records import dataclass
from xenemu.webpage import text
from xenemu.x86.paging import ADDR, PAGE_SHIFT, PAGE_SIZE, PSE, Maddr, P

COLUMNS: Final = 256
ROWS: Final = 320  # at most, unless memory is in many pieces
CELL: Final = 4  # pixels
MARGIN, HEAD, LEFT, LEGEND = 10, 40, 80, 500  # pixels
LINE: Final = 24  # pixels, of the legend
LABELS: Final = 16  # rows from one address to the next, if no gap comes between
GAP: Final = 3  # rows' height, where rows are left out
ZEROES: Final = bytes(PAGE_SIZE)
MAX_TABLES: Final = 1 << 16  # that a walk looks at


class Kind(Enum):
    """What a frame is used as: its name, and its colours on a light and on a dark ground."""

    HOLE = "nobody's", "#e8e8e8", "#2a2d2f"
    XEN = "Xen's own", "#8c8c8c", "#777c80"
    L4 = "page table, level 4", "#7a0177", "#f768a1"
    L3 = "page table, level 3", "#c51b8a", "#fa9fb5"
    L2 = "page table, level 2", "#e7298a", "#dd3497"
    L1 = "page table, level 1", "#f58ec0", "#ae017e"
    DESCRIPTORS = "descriptor table", "#5e3c99", "#b2abd2"
    GRANTED = "granted, and mapped by dom0", "#e6550d", "#fd8d3c"
    CODE = "code that ran", "#d9a400", "#ffd24d"
    DATA = "data", "#3b6ea5", "#6baed6"
    READ_ONLY = "data, not mapped writable", "#2c8c8c", "#66c2a4"
    ZERO = "untouched: zeroes", "#cfe0f0", "#16324a"

    def __init__(self, label: str, light: str, dark: str) -> None:
        self.label, self.light, self.dark = label, light, dark


TABLES: Final = {1: Kind.L1, 2: Kind.L2, 3: Kind.L3, 4: Kind.L4}


@dataclass(frozen=True)
class Row:
    """Frames that follow each other, from a number on that is a multiple of their count."""

    first: int
    kinds: list[Kind]


def rows(current: Current, size: int) -> list[Row]:
    """The rows of so many frames in which there is something, by ascending address."""
    domain = current.domain
    granted = {int(active.mfn) for active in domain.grants.active.values() if active.pin}
    walked: dict[int, Kind] = {}
    places: Iterable[tuple[int, int]]
    if domain.p2m is None:
        places = ((mfn, mfn) for mfn in range(domain.memory.nr_frames))
    else:
        walked = {mfn: TABLES[level] for mfn, level in _walk(current)}
        places = sorted(domain.p2m.places())
    found = []
    for number, frames in groupby(places, key=lambda place: place[0] // size):
        row = Row(number * size, [Kind.HOLE] * size)
        for frame, mfn in frames:
            row.kinds[frame - row.first] = _kind(current, mfn, granted, walked)
        if any(kind is not Kind.HOLE for kind in row.kinds):
            found.append(row)
    return found


def _kind(current: Current, mfn: int, granted: set[int], walked: dict[int, Kind]) -> Kind:
    domain = current.domain
    frames, memory = domain.frames, domain.memory
    owner, used_as = frames.owner[mfn], frames.type[mfn]
    if frames.flags[mfn] & PGC_xen_heap or owner not in (DOMID_NONE, domain.domid):
        return Kind.XEN
    if owner == DOMID_NONE:
        return Kind.HOLE
    is_typed = frames.type_count[mfn] > 0
    if is_typed and used_as in LEVELS:
        return TABLES[LEVELS[used_as]]
    if mfn in walked:
        return walked[mfn]
    if is_typed and used_as == PGT_seg_desc_page:
        return Kind.DESCRIPTORS
    if mfn in granted:
        return Kind.GRANTED
    if memory.code[mfn]:
        return Kind.CODE
    if memory.read(Maddr(mfn << PAGE_SHIFT), PAGE_SIZE) == ZEROES:
        return Kind.ZERO
    if domain.p2m is None and not (is_typed and used_as == PGT_writable_page):
        return Kind.READ_ONLY
    return Kind.DATA


def _walk(current: Current) -> Iterator[tuple[int, int]]:
    """The machine frames of the page tables in use, each with its level."""
    found = tables(current)
    if found is None:
        return
    memory, seen = current.domain.memory, set[int]()
    left = [(found.root, len(found.shifts))]
    while left and len(seen) < MAX_TABLES:
        table, level = left.pop()
        mfn = machine_frame(current, table)
        if mfn is None or mfn in seen:
            continue
        seen.add(mfn)
        yield mfn, level
        if level == 1:
            continue
        start = (mfn << PAGE_SHIFT) + (table & PAGE_SIZE - 1)
        size = 32 if level == len(found.shifts) == 3 else PAGE_SIZE
        entries = memory.bytes[start : start + size].cast("Q" if found.entry_size == 8 else "I")
        for entry in entries.tolist():
            if entry & P and not (entry & PSE and level < 4):
                left.append((entry & ADDR, level - 1))


def memory_map(current: Current, title: str) -> str:
    """The picture, as an SVG file."""
    domain = current.domain
    whose = "machine" if domain.p2m is None else "guest"
    per_cell = 1
    while domain.memory.nr_frames > COLUMNS * ROWS * per_cell:
        per_cell *= 2
    found = rows(current, COLUMNS * per_cell)
    placed = list(_placed(found, COLUMNS * per_cell))
    bottom = placed[-1][0] + 1 if placed else 0
    width = LEFT + COLUMNS * CELL + LEGEND + 2 * MARGIN
    height = HEAD + max(bottom * CELL, (len(Kind) + 2) * LINE) + MARGIN
    of_cell = "a frame of 4 KiB" if per_cell == 1 else f"{per_cell} frames of 4 KiB"
    counts = Counter(kind for row in found for kind in row.kinds)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="100%" style="max-width: {width}px; height: auto">\n<style>{_style()}</style>',
        f'<text class="title" x="{MARGIN}" y="24">{text(title)}: {whose} memory,'
        f" a cell is {of_cell}</text>",
        *_labels(placed),
        f'<g transform="translate({LEFT + MARGIN} {HEAD}) scale({CELL})">',
        *_paths(placed, per_cell),
        "</g>",
        *_legend(counts, LEFT + COLUMNS * CELL + 2 * MARGIN + 10),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _placed(found: Iterable[Row], size: int) -> Iterator[tuple[int, Row]]:
    """Each row with its place, in rows from the top."""
    y, expected = 0, None
    for row in found:
        if expected is not None:
            y += 1 if row.first == expected else GAP
        yield y, row
        expected = row.first + size


def _commonest(frames: Sequence[Kind]) -> Kind:
    if len(frames) == 1:
        return frames[0]
    count = Counter(frames)
    return max(Kind, key=lambda kind: count[kind])


def _paths(placed: Iterable[tuple[int, Row]], per_cell: int) -> Iterator[str]:
    """A path for each kind: the runs of its cells, row by row."""
    pieces: dict[Kind, list[str]] = {kind: [] for kind in Kind}
    for y, row in placed:
        x, all_frames = 0, range(0, len(row.kinds), per_cell)
        for kind, run in groupby(_commonest(row.kinds[at : at + per_cell]) for at in all_frames):
            length = sum(1 for _ in run)
            pieces[kind].append(f"M{x} {y}h{length}v1h-{length}z")
            x += length
    for kind, drawn in pieces.items():
        if drawn:
            label = text(kind.label)
            yield f'<path class="{kind.name}" d="{"".join(drawn)}"><title>{label}</title></path>'


def _labels(placed: Iterable[tuple[int, Row]]) -> Iterator[str]:
    last, told = -GAP, -LABELS
    for y, row in placed:
        if y - told >= LABELS or y - last >= GAP:
            at = f'x="{LEFT}" y="{HEAD + y * CELL + 9}" text-anchor="end"'
            yield f'<text class="at" {at}>{row.first << PAGE_SHIFT:#x}</text>'
            told = y
        last = y


def _legend(counts: Counter[Kind], x: int) -> Iterator[str]:
    whole = counts.total() or 1
    lines = [(kind.name, kind.label, counts[kind]) for kind in Kind if counts[kind]]
    for number, (name, label, count) in enumerate([*lines, ("", "all", counts.total())]):
        y = HEAD + number * LINE
        if name:
            yield f'<rect class="{name}" x="{x}" y="{y}" width="14" height="14"/>'
        yield f'<text x="{x + 22}" y="{y + 12}">{text(label)}</text>'
        cells = (f"{count} frames", f"{count / 256:.2f} MiB", f"{100 * count / whole:.1f}%")
        for column, words in zip((345, 430, 485), cells, strict=True):
            yield f'<text x="{x + column}" y="{y + 12}" text-anchor="end">{words}</text>'


def _style() -> str:
    light = " ".join(f".{kind.name} {{ fill: {kind.light} }}" for kind in Kind)
    dark = " ".join(f".{kind.name} {{ fill: {kind.dark} }}" for kind in Kind)
    return (
        "svg { background: #fff; font: 13px system-ui, sans-serif } text { fill: #222 }\n"
        ".title { font-size: 16px } .at { font: 11px ui-monospace, monospace }\n"
        f"{light}\n@media (prefers-color-scheme: dark) {{ svg {{ background: #181a1b }}"
        f" text {{ fill: #ddd }}\n{dark} }}"
    )
