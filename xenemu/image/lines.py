"""Source lines of a kernel's code, from its DWARF.

Only the units that an asked address lies in are read, as far as `.debug_aranges` tells: to read a
whole kernel's lines takes minutes.

DWARF 5, section 6.2 (line numbers) and 6.1.2 (addresses).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import field
from io import BytesIO
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self, TypeVar

from xenemu.image.files import map_file
from xenemu.records import dataclass

Item = TypeVar("Item")


class Place(NamedTuple):
    """A line of a source file."""

    source: str
    line: int


@dataclass
class LineTable:
    """The lines of one file's code. `places` grows with each question: lines by address."""

    dwarf: Any  # elftools.dwarf.dwarfinfo.DWARFInfo
    places: dict[int, Place] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The table of an ELF at `path`; None if it has no line numbers, or cannot be read."""
        from elftools.elf.elffile import ELFFile  # noqa: PLC0415 (nobody else pays for it)

        def information(path: Path) -> Any:
            file = ELFFile(BytesIO(map_file(path)))
            return file.get_dwarf_info(follow_links=False) if file.has_dwarf_info() else None

        dwarf = next(_sound(map(information, [path])), None)
        return cls(dwarf) if dwarf is not None and dwarf.debug_line_sec else None

    def of(self, ran: Sequence[range]) -> dict[str, dict[int, bool]]:
        """Each source file of the units that code which ran is in: its lines, and which ran.

        `ran` is ascending, its ranges apart. Lines that broken DWARF has are left out.
        """
        starts = [part.start for part in ran]
        lines: dict[str, dict[int, bool]] = {}
        for unit in self._units(ran):
            for start, end, place in _sound(self._rows(unit)):
                self.places.setdefault(start, place)
                before = bisect_right(starts, end - 1)
                hit = before > 0 and ran[before - 1].stop > start
                of_file = lines.setdefault(place.source, {})
                of_file[place.line] = of_file.get(place.line, False) or hit
        return lines

    def _units(self, ran: Sequence[range]) -> Iterator[Any]:
        ranges = next(_sound(get() for get in [self.dwarf.get_aranges]), None)
        if ranges is None:
            yield from _sound(self.dwarf.iter_CUs())
            return
        starts = [part.start for part in ran]
        touched = set()
        for entry in ranges.entries:
            before = bisect_right(starts, entry.begin_addr + entry.length - 1)
            if before and ran[before - 1].stop > entry.begin_addr:
                touched.add(entry.info_offset)
        for offset in sorted(touched):
            yield from _sound(map(self.dwarf.get_CU_at, [offset]))

    def _rows(self, unit: Any) -> Iterator[tuple[int, int, Place]]:
        """The first address and the end of each row of a unit's table, and its line."""
        program = self.dwarf.line_program_for_CU(unit)
        if program is None:
            return
        names = _names(program, unit)
        states = [entry.state for entry in program.get_entries() if entry.state is not None]
        for row, following in pairwise(states):
            if not row.end_sequence and row.line > 0 and following.address > row.address:
                yield row.address, following.address, Place(names(row.file), row.line)


def _sound(items: Iterator[Item]) -> Iterator[Item]:
    """The items up to the first that cannot be read.

    pyelftools raises exceptions of nearly every class, its own and Python's, over broken DWARF.
    """
    try:
        yield from items
    except MemoryError:
        raise
    except Exception:
        return


def _names(program: Any, unit: Any) -> Any:
    """A function from a number of a file to its path."""
    header = program.header
    has_zero = header.version >= 5  # files and directories count from 0, not from 1
    top = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    home = PurePosixPath(_text(top.value)) if top else PurePosixPath()
    directories = [home / _text(name) for name in header.include_directory]
    if not has_zero:
        directories.insert(0, home)
    known: dict[int, str] = {}

    def name(number: int) -> str:
        if number not in known:
            entry = header.file_entry[number - (not has_zero)]
            known[number] = str(directories[entry.dir_index] / _text(entry.name))
        return known[number]

    return name


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
