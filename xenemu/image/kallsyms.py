"""Linux's own symbol table, found in a kernel that was stripped of every other one.

A kernel with CONFIG_KALLSYMS carries these tables in .rodata. All are little endian. Each is
aligned to a pointer (to 4 bytes since 7.0). None has a header or a magic number:

==================== ==============================================================
num_syms             u32
names                per symbol: length (ULEB128 of one or two bytes), then token numbers;
                     the first character of the expanded name is nm's type letter
markers              u32: offset into names of every 256th symbol
seqs_of_names        per symbol, 3 bytes (4 in some 6.1.y): the order by name; not used here
token_table          256 NUL-terminated strings
token_index          u16[256]: where each string starts
offsets              u32 per symbol
relative_base        a pointer
==================== ==============================================================

The search begins at the token table, and goes outwards. The order of the tables is

* 5.10 .. 6.3: offsets, relative_base, num_syms, names, markers, [seqs], token table and index
* 6.4 .. 6.x: num_syms, names, markers, token table and index, offsets, relative_base, seqs
* 7.0 ..: the same without relative_base

An offset may mean one of three things. Exactly one reading yields ascending addresses in the image:

* relative_base + offset: i386, and x86-64 since 6.15
* x86-64 SMP before that: negative, relative_base - 1 - offset; else a per-CPU offset, as is
* 7.0 ..: the offset's own address + offset; on an i386 that cannot be relocated, an address

Each step accepts one candidate by a strict rule and never goes back. The whole table must then
agree with itself. So a hostile image costs little time and yields no symbols.

In Linux: scripts/kallsyms.c, kernel/kallsyms.c.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Protocol, overload

from xenemu.records import dataclass

MAX_SYMBOLS = 1 << 20  # five times what Debian's kernels have
MAX_NAME = 512  # KSYM_NAME_LEN, with the type letter
MAX_NAMES_BYTES = 1 << 26
MAX_ATTEMPTS = 16
MARKED = 256  # symbols per marker
FIRST_MARKER = bytes(4)
MIN_NAME = 2
CODE = frozenset("TtWw")  # nm's letters for it; a weak object would be V
MIN_BLOCK = MARKED * MIN_NAME
MAX_BLOCK = MARKED * (MAX_NAME + 2)
MAX_PADDING = 8
SEQ_SIZES = (0, 3, 4)
MAX_MARKERS_DISTANCE = 4 * (MAX_SYMBOLS + MAX_SYMBOLS // MARKED) + 2 * MAX_PADDING
TOKENS = 256
INDEX_SIZE = 2 * TOKENS
# Every kernel has each digit in some name, so their tokens stand for themselves.
_DIGITS = re.compile(rb"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")
_PRINTABLE = re.compile(r"[!-~]*", re.ASCII)


class LoadedSegment(Protocol):
    """What this module needs of a loaded segment."""

    @property
    def vaddr(self) -> int: ...
    @property
    def memsz(self) -> int: ...
    @property
    def data(self) -> memoryview: ...


@dataclass(frozen=True)
class _Tokens:
    """The token table [start, end) and, at `index`, the token index that agrees with it."""

    start: int
    index: int
    strings: list[str]


@dataclass(frozen=True)
class _Markers:
    start: int
    offsets: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + 4 * len(self.offsets)

    def fits(self, count: int) -> bool:
        """Tell whether `count` symbols need exactly this many markers."""
        return 0 < count <= MAX_SYMBOLS and -(-count // MARKED) == len(self.offsets)


class Names(Sequence[str]):
    """Names that are expanded when they are asked for, the letters before them apart."""

    def __init__(self, stream: bytes, places: Sequence[int], tokens: _Tokens) -> None:
        self._stream, self._places, self._tokens = stream, places, tokens.strings

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        return self._whole(index)[1:]

    def __iter__(self) -> Iterator[str]:
        return (self._whole(n)[1:] for n in range(len(self)))

    def _whole(self, index: int) -> str:
        """A name with its letter."""
        size, at = _length(self._stream, self._places[index])
        return "".join(map(self._tokens.__getitem__, self._stream[at : at + size]))

    def are_code(self) -> list[bool]:
        """Of each name, whether its letter says that it is code's."""
        first = [token[:1] in CODE for token in self._tokens]
        stream = self._stream
        return [first[stream[at + 1 + (stream[at] >> 7)]] for at in self._places]


@dataclass(frozen=True)
class Kallsyms:
    """Each symbol's address, ascending, and its name."""

    vaddrs: Sequence[int]
    names: Names

    def code(self) -> list[bool]:
        """Whether each is code."""
        return self.names.are_code()


def read_kallsyms(
    segments: Sequence[LoadedSegment], image: Sequence[range], width: int
) -> Kallsyms | None:
    """Return every symbol; None when there is no table.

    `image` is where the kernel's addresses may lie, `width` the bytes of a pointer. Per-CPU symbols
    of kernels that link them at 0 have their offset for an address.
    """
    for segment in segments:
        tokens = _find_tokens(segment.data)
        if tokens is not None:
            return _read_tables(segment, tokens, image, width)
    return None


def _read_tables(
    segment: LoadedSegment, tokens: _Tokens, image: Sequence[range], width: int
) -> Kallsyms | None:
    markers = _find_markers(segment.data, tokens.start)
    if markers is None:
        return None
    found = _find_names(segment.data, markers)
    if found is None:
        return None
    names_at, count = found
    names = _find_each_name(segment.data[names_at : markers.start], count, markers, tokens)
    addresses = _find_addresses(segment, tokens, names_at, count, image, width)
    if names is None or not addresses:
        return None
    return Kallsyms(addresses, names)


def _find_tokens(data: memoryview) -> _Tokens | None:
    for match in islice(_DIGITS.finditer(data), MAX_ATTEMPTS):
        digits = match.start()
        tail = bytes(data[digits : digits + 0x10000]).split(b"\0", TOKENS - ord("0"))
        if len(tail) <= TOKENS - ord("0"):
            continue
        end = digits + sum(len(token) + 1 for token in tail[:-1])
        for index in range(end, end + 8):
            tokens = _check_tokens(data, digits, end, index)
            if tokens is not None:
                return tokens
    return None


def _check_tokens(data: memoryview, digits: int, end: int, index: int) -> _Tokens | None:
    if index + INDEX_SIZE > len(data):
        return None
    offsets = struct.unpack_from(f"<{TOKENS}H", data, index)
    start = digits - offsets[ord("0")]
    if start < 0 or offsets[0] != 0 or any(data[end:index]):
        return None
    strings = bytes(data[start : end - 1]).decode("latin-1").split("\0")
    if len(strings) != TOKENS or not all(_PRINTABLE.fullmatch(s) for s in strings):
        return None
    expected = 0
    for string, offset in zip(strings, offsets, strict=True):
        if offset != expected:
            return None
        expected += len(string) + 1
    return _Tokens(start, index, strings)


def _find_markers(data: memoryview, tokens_at: int) -> _Markers | None:
    """Find the markers in front of the token table, with or without seqs_of_names between."""
    first = max(0, tokens_at - MAX_MARKERS_DISTANCE) & -4
    window = bytes(data[first:tokens_at])
    at = len(window)
    for _ in range(MAX_ATTEMPTS):
        at = window.rfind(FIRST_MARKER, 0, at) & -4
        if at < 0:
            break
        if window.startswith(FIRST_MARKER, at):
            markers = _Markers(first + at, tuple(_ascending(data[first + at : tokens_at])))
            if len(markers.offsets) > 1 and _gap_fits(markers, tokens_at):
                return markers
    return None


def _ascending(data: memoryview) -> Iterator[int]:
    """Yield 0, which `data` starts with, and the words after it that can be markers."""
    yield (last := 0)
    for (marker,) in struct.iter_unpack("<I", data[4 : len(data) & ~3]):
        if not MIN_BLOCK <= marker - last <= MAX_BLOCK:
            return
        yield (last := marker)


def _gap_fits(markers: _Markers, tokens_at: int) -> bool:
    gap = tokens_at - markers.end
    most = MARKED * len(markers.offsets)
    return any(size * (most - MARKED) <= gap <= size * most + 2 * MAX_PADDING for size in SEQ_SIZES)


def _find_names(data: memoryview, markers: _Markers) -> tuple[int, int] | None:
    """Find (position of names, number of symbols): where the last names end at the markers.

    The number is the word before the names, or before the padding between them.
    """
    stream = bytes(data[max(0, markers.start - MAX_BLOCK) : markers.start])
    first = markers.start - len(stream)
    nearest = (markers.start - markers.offsets[-1] - MIN_NAME) & -4
    farthest = nearest - MAX_BLOCK - MAX_PADDING
    for names_at in range(nearest, max(farthest, 8) - 1, -4):
        before, last = struct.unpack_from("<II", data, names_at - 8)
        count, at = last or before, names_at + markers.offsets[-1] - first
        if at >= 0 and markers.fits(count) and _ends(stream, at, (count - 1) % MARKED + 1):
            return names_at, count
    return None


def _ends(stream: bytes, at: int, count: int) -> bool:
    """Tell whether `count` names from `at` fill the stream, but for padding."""
    for _ in range(count):
        if at + 1 >= len(stream):
            return False
        size, at = _length(stream, at)
        at += size
    return 0 <= len(stream) - at < MAX_PADDING


def _length(stream: bytes, at: int) -> tuple[int, int]:
    """Decode a name's length at `at`; return it and where the name starts."""
    size = stream[at]
    if size < 0x80:
        return size, at + 1
    return size & 0x7F | stream[at + 1] << 7, at + 2  # before 6.1 no name was long enough


def _find_each_name(
    data: memoryview, count: int, markers: _Markers, tokens: _Tokens
) -> Names | None:
    """Find where each name is; None if markers or the end disagree, or a name cannot be one."""
    stream = bytes(data) + bytes(1 + MAX_NAME)
    lengths = [len(token) for token in tokens.strings]
    shortest, longest = min(lengths), max(lengths)
    room, at, end = MAX_NAMES_BYTES, 0, len(data)
    places = array("I")
    for number in range(count):
        if number % MARKED == 0 and at != markers.offsets[number // MARKED]:
            return None
        places.append(at)
        size = stream[at]
        at += 1
        if size >= 0x80:
            size, at = _length(stream, at - 1)
        if size * longest > MAX_NAME or size * shortest < 2:  # or there is no need to count
            expanded = sum(map(lengths.__getitem__, stream[at : at + size]))
            if size > MAX_NAME or not 1 < expanded <= MAX_NAME:
                return None
        at += size
        room -= size * longest
        if at > end:
            return None
    if end - at >= MAX_PADDING or (room < 0 and _expanded(stream, lengths) > MAX_NAMES_BYTES):
        return None
    return Names(stream, places, tokens)


def _expanded(stream: bytes, lengths: Sequence[int]) -> int:
    """How long all names are together, at most."""
    return sum(map(lengths.__getitem__, stream))


def _find_addresses(
    segment: LoadedSegment,
    tokens: _Tokens,
    names_at: int,
    count: int,
    image: Sequence[range],
    width: int,
) -> list[int]:
    """Read the offsets where and how they give ascending addresses in the image."""
    data, size = segment.data, -(-4 * count // width) * width
    after = tokens.index + INDEX_SIZE
    before = names_at - 2 * width - size
    for at, base_at in ((after, after + size), (before, before + size)):
        if at < 0 or base_at + width > len(data):
            continue
        offsets = struct.unpack_from(f"<{count}i", data, at)
        base = int.from_bytes(data[base_at : base_at + width], "little")
        for read in _READINGS:
            addresses = read(offsets, base, segment.vaddr + at)
            if _plausible(addresses, image):
                return addresses
    return []


def _relative(offsets: Sequence[int], base: int, _place: int) -> list[int]:
    if offsets[0] != 0:  # the base is the lowest symbol
        return []
    return [base + (offset & 0xFFFFFFFF) for offset in offsets]


def _relative_or_percpu(offsets: Sequence[int], base: int, _place: int) -> list[int]:
    if -1 not in offsets:  # as is the lowest but for per-CPU ones
        return []
    return [offset if offset >= 0 else base - 1 - offset for offset in offsets]


def _place_relative(offsets: Sequence[int], _base: int, place: int) -> list[int]:
    if offsets[0] >= 0:  # code lies below .rodata
        return []
    return [place + 4 * i + offset for i, offset in enumerate(offsets)]


def _absolute(offsets: Sequence[int], _base: int, _place: int) -> list[int]:
    return [offset & 0xFFFFFFFF for offset in offsets]


_READINGS: Sequence[Callable[[Sequence[int], int, int], list[int]]] = (
    _relative,
    _relative_or_percpu,
    _place_relative,
    _absolute,
)


def _plausible(addresses: list[int], image: Sequence[range]) -> bool:
    """Tell whether addresses ascend and lie in the image, but for per-CPU offsets at first."""
    if not addresses:
        return False
    first, last = addresses[0], addresses[-1]
    inside = any(first in part for part in image) or first == 0
    ends = any(part.start <= last <= part.stop for part in image)
    return inside and ends and all(a <= b for a, b in pairwise(addresses))
