"""kallsyms tables of every layout are found, and whatever contradicts itself is not believed."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenemu.image.kallsyms import read_kallsyms

BASE64, BASE32 = 0xFFFF_FFFF_8100_0000, 0xC100_0000
SIZE = 0x10_0000
COUNT = 700
PERCPU = 5  # of them, where a layout has any
# Every printable character stands for itself, 0x80 for "sys_", the rest for something.
TOKENS = [chr(i) if 0x21 <= i < 0x7F else f"<{i:02x}>" for i in range(256)]
TOKENS[0x80] = "sys_"
NAMES = [f"{'sys_' if i % 3 else 'do_'}call{i}" for i in range(COUNT)]
assert len(NAMES[-1]) == 10
NAMES[300] = "x" * 200  # a length of two bytes


@dataclass(frozen=True)
class Layout:
    """When the tables lay so, and what their offsets mean."""

    width: int = 8
    align: int = 8
    offsets_first: bool = False
    sequence: int = 0  # bytes per entry of seqs_of_names in front of the tokens
    meaning: str = "relative"


LAYOUTS = {
    "5.10 x86-64": Layout(offsets_first=True, meaning="percpu"),
    "5.10 i386": Layout(4, 4, offsets_first=True),
    "6.1 x86-64": Layout(offsets_first=True, sequence=3, meaning="percpu"),
    "6.1 i386": Layout(4, 4, offsets_first=True, sequence=3),
    "6.1 long seqs": Layout(offsets_first=True, sequence=4, meaning="percpu"),
    "6.4 x86-64": Layout(meaning="percpu"),
    "6.15 x86-64": Layout(),
    "6.4 i386": Layout(4, 4),
    "7.0 x86-64": Layout(align=4, meaning="place"),
    "7.0 i386": Layout(4, 4, meaning="place"),
    "7.0 i386 fixed": Layout(4, 4, meaning="absolute"),
}


@dataclass(frozen=True)
class Segment:
    vaddr: int
    data: memoryview
    memsz: int = SIZE


def base(layout):
    return BASE64 if layout.width == 8 else BASE32


def addresses(layout):
    percpu = PERCPU if layout.meaning == "percpu" else 0
    return [8 * i if i < percpu else base(layout) + 16 * (i - percpu) for i in range(COUNT)]


def offsets(layout, place):
    for i, vaddr in enumerate(addresses(layout)):
        yield {
            "relative": vaddr - base(layout),
            "percpu": vaddr if vaddr < base(layout) else base(layout) - 1 - vaddr,
            "place": vaddr - place - 4 * i,
            "absolute": vaddr,
        }[layout.meaning] & 0xFFFF_FFFF


def letter(i):
    return "TtWDdBbRrVA"[i % 11]


def words(values):
    return b"".join(struct.pack("<I", value) for value in values)


def build(layout, change=lambda table, name: table):
    """Return a segment's bytes; `change` may spoil one of the tables, given its name."""
    data = bytearray(b"\x01" * 64)

    def add(name, table):
        data.extend(bytes(-len(data) % layout.align) + change(table, name))

    def add_offsets():
        data.extend(bytes(-len(data) % layout.align))
        add("offsets", words(offsets(layout, base(layout) + len(data))))
        if layout.meaning in ("relative", "percpu"):
            add("base", base(layout).to_bytes(layout.width, "little"))

    names, markers = bytearray(), []
    for i, name in enumerate(NAMES):
        if i % 256 == 0:
            markers.append(len(names))
        code = (letter(i) + name).encode().replace(b"sys_", b"\x80")
        size = len(code)
        names += bytes([size] if size < 0x80 else [size & 0x7F | 0x80, size >> 7]) + code
    table = [token.encode() + b"\0" for token in TOKENS]
    index = [sum(map(len, table[:i])) for i in range(256)]

    if layout.offsets_first:
        add_offsets()
    add("count", words([COUNT]))
    add("names", bytes(names))
    add("markers", words(markers))
    if layout.sequence:
        order = "big" if layout.sequence == 3 else "little"
        add("seqs", b"".join(i.to_bytes(layout.sequence, order) for i in reversed(range(COUNT))))
    add("tokens", b"".join(table))
    add("index", struct.pack("<256H", *index))
    if not layout.offsets_first:
        add_offsets()
        add("seqs", b"\x55" * 3 * COUNT)
    return bytes(data) + b"\x02" * 64


def read(data, layout):
    segment = Segment(base(layout), memoryview(data))
    found = read_kallsyms([segment], [range(segment.vaddr, segment.vaddr + SIZE)], layout.width)
    return list(zip(found.vaddrs, found.names, found.code(), strict=True)) if found else []


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read(layout):
    assert read(build(layout), layout) == [
        (vaddr, name, letter(i) in "TtW")
        for i, (vaddr, name) in enumerate(zip(addresses(layout), NAMES, strict=True))
    ]


def spoil(layout, wanted, edit):
    def change(table, name):
        return edit(table) if name == wanted else table

    sound, spoilt = build(layout), build(layout, change)
    assert sound != spoilt
    return read(spoilt, layout)


SPOILS = {
    "a count that needs other markers": ("count", lambda t: words([COUNT + 256])),
    "a count beside the names": ("count", lambda t: words([COUNT + 1])),
    "a marker that no name starts at": ("markers", lambda t: t[:4] + words([600]) + t[8:]),
    "a name of no length": ("names", lambda t: b"\0" + t[1:]),
    "a name of 16383 tokens": ("names", lambda t: b"\xff\x7f" + t[2:]),
    "a name without letters": ("names", lambda t: b"\1" + t[1:]),
    "names that overrun the table": ("names", lambda t: t[:-12] + b"\x7f" + t[-11:]),
    "tokens that do not print": ("tokens", lambda t: t.replace(b"sys_", b"s\x1b[_")),
    "an index that disagrees": ("index", lambda t: t[:-2] + b"\xff\xff"),
    "addresses that descend": ("offsets", lambda t: t[:40] + t[48:52] + t[44:]),
    "addresses outside the image": ("offsets", lambda t: t[:-4] + b"\0\0\0\x70"),
    "a base outside the image": ("base", lambda t: bytes(len(t))),
}


@pytest.mark.parametrize("layout", ["5.10 i386", "6.15 x86-64"])
@pytest.mark.parametrize("spoilt", SPOILS.values(), ids=SPOILS)
def test_a_contradiction_yields_nothing(spoilt, layout):
    assert spoil(LAYOUTS[layout], *spoilt) == []


def test_a_truncated_table_yields_nothing():
    layout = LAYOUTS["6.15 x86-64"]
    data = build(layout)
    last = len(data) - 64 - 3 * COUNT  # of relative_base and padding
    assert read(data[: last + 64], layout) != []
    assert [read(data[:size], layout) for size in range(0, last - 16, 97)] == [
        [] for _ in range(0, last - 16, 97)
    ]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), max_size=4))
def test_damage_yields_a_sound_table_or_none(damage):
    layout = LAYOUTS["6.1 x86-64"]
    data = bytearray(build(layout))
    for at, junk in damage:
        start = at % (len(data) - 8)
        data[start : start + len(junk)] = junk
    found = read(data, layout)
    assert not found or len(found) == COUNT
    assert [vaddr for vaddr, *_ in found] == sorted(vaddr for vaddr, *_ in found)
    assert all(name.isprintable() and name.isascii() for _, name, _ in found)


@pytest.mark.parametrize(
    "data",
    [
        bytes(1 << 20),
        b"".join(b"%d\0" % (i % 10) for i in range(1 << 17)),
        b"".join(token.encode() + b"\0" for token in TOKENS) * 100,
    ],
    ids=["zeros", "digits", "tokens"],
)
def test_a_hostile_segment_yields_nothing(data):
    assert read(data, LAYOUTS["6.15 x86-64"]) == []


def test_markers_among_zeros_are_not_searched_for_ever():
    """A sound token table after zeros, each of which could be the first marker."""
    table = b"".join(token.encode() + b"\0" for token in TOKENS)
    index = [sum(len(token) + 1 for token in TOKENS[:i]) for i in range(256)]
    data = bytes(1 << 22) + table + bytes(-len(table) % 8) + struct.pack("<256H", *index)
    assert read(data, LAYOUTS["6.15 x86-64"]) == []


def test_the_segment_with_the_table_is_found():
    layout = LAYOUTS["6.15 x86-64"]
    other = Segment(BASE64 - SIZE, memoryview(bytes(4096)))
    segment = Segment(BASE64, memoryview(build(layout)))
    image = [range(BASE64 - SIZE, BASE64 + SIZE)]
    assert len(read_kallsyms([other, segment], image, 8).names) == COUNT
    assert read_kallsyms([other], image, 8) is None
