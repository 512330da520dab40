"""Which code of a kernel ran, by function and by line.

It gives the functions in the order in which they first ran, and files that say so. A block of code
is noted when it first runs (native/coverage.c). So this costs a boot next to nothing, but nobody
knows how often a block ran. Two kinds of file are written. drcov's has blocks, and disassemblers
read it. lcov's has functions, and lines where the kernel has debug information; `genhtml` shows it.

If vcpus are told apart, lcov's has a test name for each. drcov's form has no place for that: as it
is with threads, each vcpu has a file.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.image.lines import LineTable
from xenemu.kaslr import as_mapped
from xenemu.peek import Code
from xenemu.records import dataclass

LCOV_SUFFIX: Final = ".info"
MAX_OFFSET: Final = 1 << 32  # of drcov's blocks, in bytes from their module's start


class Block(Protocol):
    """See `cpu.coverage.Block`."""

    @property
    def pc(self) -> int: ...
    @property
    def at(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def vcpu(self) -> int: ...


class Function(NamedTuple):
    """A function that ran; `module` is empty for the kernel's own."""

    name: str
    vaddr: int
    size: int
    module: str
    at: int  # how many instructions had run before it first did

    @property
    def label(self) -> str:
        """Its name, as a report has it."""
        return f"{self.name} [{self.module}]" if self.module else self.name


@dataclass(frozen=True)
class Coverage:
    """What ran.

    `ranges` are of bytes, at the kernel's own addresses, ascending and apart from each other;
    `functions` are in the order in which they first ran. Programs are not in it.
    """

    functions: tuple[Function, ...]
    ranges: tuple[range, ...]

    @classmethod
    def of(cls, blocks: Iterable[Block], image: Image, code: Code) -> Coverage:
        """What the blocks of a log (`Machine.record_blocks`) mean for a kernel."""
        functions: dict[tuple[str, int], Function] = {}
        pieces, parts = [], code.symbols.parts
        starts = [vaddr for vaddr, _, _ in code.symbols.items()]
        known = set()  # parts of the kernel, and after how many symbols in it: functions that ran
        for block in blocks:
            vaddr = linked(block.pc, image)
            place = _index(vaddr, parts), bisect_right(starts, vaddr)
            if place not in known:
                found = _function(vaddr, block.at, code)
                if found is None:
                    continue
                functions.setdefault((found.module, found.vaddr), found)
                if place[0] is not None:
                    known.add(place)
            pieces.append((vaddr, vaddr + block.size))
        return cls(tuple(functions.values()), tuple(_merged(sorted(pieces))))

    @property
    def bytes(self) -> int:
        """How much code ran."""
        return sum(map(len, self.ranges))


def linked(pc: int, image: Image) -> int:
    """The kernel's own address of code that may run where it was loaded, before it maps itself."""
    if _index(pc, image.symbols.parts) is not None:
        return pc
    for segment in image.segments:
        if 0 <= pc - segment.paddr < segment.memsz:
            return segment.vaddr + pc - segment.paddr
    return pc


def _index(vaddr: int, parts: Iterable[range]) -> int | None:
    """Which part an address is in."""
    for number, part in enumerate(parts):
        if part.start <= vaddr < part.stop:  # `in` is slower
            return number
    return None


def _function(vaddr: int, at: int, code: Code) -> Function | None:
    symbol, module = code.symbols.lookup(vaddr), ""
    if symbol is None and code.modules is not None and (found := code.modules.find(vaddr)):
        symbol, module = found.symbols.lookup(vaddr), found.name
    return Function(symbol.name, symbol.vaddr, symbol.size, module, at) if symbol else None


def _merged(pieces: Iterable[tuple[int, int]]) -> Iterator[range]:
    start = end = 0
    for first, last in pieces:
        if first > end:
            if end > start:
                yield range(start, end)
            start = first
        end = max(end, last)
    if end > start:
        yield range(start, end)


# ---- the files ----


class Log(Protocol):
    """See `cpu.coverage.BlockLog`."""

    @property
    def ended(self) -> int | None: ...
    def blocks(self) -> Sequence[Block]: ...


class Recorder(Protocol):
    """A `Machine`."""

    @property
    def current(self) -> Current: ...
    def record_blocks(self, by_vcpu: bool = False) -> Log: ...


class Recording:
    """Notes what a machine runs from now on, for files; which vcpu runs it, if `by_vcpu`.

    What the files want of the disk is read now: a run that is confined opens nothing later.
    """

    def __init__(self, machine: Recorder, image: Image, lcov: bool, by_vcpu: bool = False) -> None:
        self._machine, self._image, self._lcov = machine, image, lcov
        self._by_vcpu = by_vcpu
        self._lines = LineTable.read(Path(image.symbol_file.path)) if lcov else None
        self._log = machine.record_blocks(by_vcpu)

    def files(self) -> list[bytes]:
        """After the run: the file, and after it, in drcov's form, that of each vcpu if asked."""
        current = self._machine.current
        mapped = as_mapped(current, self._image)
        code, blocks = Code(mapped, current), self._log.blocks()
        parts = _of_each(blocks, len(current.domain.vcpus)) if self._by_vcpu else []
        if self._lcov:
            return [lcov(parts or [blocks], mapped, code, self._lines, self._by_vcpu).encode()]
        return [drcov(part, mapped, code) for part in (blocks, *parts)]

    @property
    def missing(self) -> str:
        """What is not in the file, in words, if the guest ran too much; empty if all is."""
        return missing(self._log)


def missing(log: Log) -> str:
    """What a log does not have, in words, if the guest ran too much; empty if it has all."""
    if log.ended is None:
        return ""
    return f"the guest makes too much code: none is noted after {log.ended} instructions"


def _of_each(blocks: Iterable[Block], vcpus: int) -> list[list[Block]]:
    """The blocks of each vcpu."""
    parts: list[list[Block]] = [[] for _ in range(vcpus)]
    for block in blocks:
        parts[block.vcpu].append(block)
    return parts


def merged(files: Iterable[str]) -> str:
    """One file of lcov's form out of several: how many boots ran each function and each line."""
    # By test name and source: functions by name, with their line and how many ran them; and lines.
    functions: dict[tuple[str, str], dict[str, list[int]]] = {}
    lines: dict[tuple[str, str], dict[int, int]] = {}
    for text in files:
        test, at = "", ("", "")
        for entry in text.splitlines():
            kind, _, rest = entry.partition(":")
            first, _, second = rest.partition(",")
            if kind == "TN":
                test = rest
            elif kind == "SF":
                at = (test, rest)
                functions.setdefault(at, {}), lines.setdefault(at, {})
            elif kind == "FN":
                functions[at].setdefault(second, [int(first), 0])
            elif kind == "FNDA":
                functions[at][second][1] += int(first)
            elif kind == "DA":
                number = int(first)
                lines[at][number] = lines[at].get(number, 0) + int(second)
    return "".join(
        _record(*at, [(line, name, ran) for name, (line, ran) in own.items()], lines[at])
        for at, own in sorted(functions.items())
    )


def drcov(blocks: Iterable[Block], image: Image, code: Code) -> bytes:
    """drcov's file: a table of modules, the kernel first, and one of blocks.

    A block is (offset, size, module).
    """
    kernel = image.symbols.parts
    placed = [(linked(block.pc, image), block.size) for block in blocks]
    parts = [(image.path, part) for part in kernel]
    above = min((part.start for part in kernel), default=0)
    if code.modules and any(v >= above and _index(v, kernel) is None for v, _ in placed):
        parts += [(m.name, part) for m in code.modules.loaded() for part in m.parts]
    ranges, table = [part for _, part in parts], []
    for vaddr, size in placed:
        number = _index(vaddr, ranges)
        if number is not None and vaddr - ranges[number].start < MAX_OFFSET:
            table.append(struct.pack("<IHH", vaddr - ranges[number].start, size, number))
    head = [
        "DRCOV VERSION: 2",
        "DRCOV FLAVOR: xenemu",
        f"Module Table: version 2, count {len(parts)}",
        "Columns: id, base, end, entry, path",
    ]
    head += [
        f"{number:3}, {part.start:#x}, {part.stop:#x}, 0x0, {_on_one_line(path)}"
        for number, (path, part) in enumerate(parts)
    ]
    head.append(f"BB Table: {len(table)} bbs")
    return "".join(f"{line}\n" for line in head).encode() + b"".join(table)


def lcov(
    parts: Sequence[Sequence[Block]],
    image: Image,
    code: Code,
    lines: LineTable | None,
    by_vcpu: bool = False,
) -> str:
    """lcov's file of what ran. If `by_vcpu`, each part of it is a vcpu's, in their order."""
    return "".join(
        _test(f"vcpu{n}" if by_vcpu else "", Coverage.of(part, image, code), image, lines)
        for n, part in enumerate(parts)
        if part or n == 0
    )


def _test(test: str, coverage: Coverage, image: Image, lines: LineTable | None) -> str:
    ran = {function.vaddr for function in coverage.functions if not function.module}
    own = [(vaddr, name) for vaddr, name, is_code in image.symbols.items() if is_code]
    if lines is None:
        numbered = [(n, name, vaddr in ran) for n, (vaddr, name) in enumerate(own, 1)]
        return _record(test, image.path, numbered, {})
    moved = image.offset  # the lines are those of linked addresses
    table = lines.of([range(ran.start - moved, ran.stop - moved) for ran in coverage.ranges])
    text = []
    for source, hits in sorted(table.items()):
        functions = [
            (place.line, name, vaddr in ran)
            for vaddr, name in own
            if (place := lines.places.get(vaddr - moved)) and place.source == source
        ]
        text.append(_record(test, source, functions, hits))
    return "".join(text)


def _on_one_line(name: str) -> str:
    """A file's name, which may have any character, even bytes that are no text."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)


def _record(
    test: str, source: str, functions: Sequence[tuple[int, str, int]], lines: Mapping[int, int]
) -> str:
    """What lcov's manual, geninfo(1), calls a section: of one source file, in one test."""
    said = [f"TN:{test}", f"SF:{_on_one_line(source)}"]
    said += [f"FN:{line},{name}" for line, name, _ in functions]
    said += [f"FNDA:{hit:d},{name}" for _, name, hit in functions]
    said += [f"FNF:{len(functions)}", f"FNH:{sum(bool(hit) for _, _, hit in functions)}"]
    said += [f"DA:{line},{hit:d}" for line, hit in sorted(lines.items())]
    if lines:
        said += [f"LF:{len(lines)}", f"LH:{sum(map(bool, lines.values()))}"]
    return "".join(f"{line}\n" for line in [*said, "end_of_record"])
