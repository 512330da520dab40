"""A map of memory: what each frame counts as, and a picture that is SVG."""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree

import pytest

from fakes import L1, ROOT, enter_long_mode, make_pv_current, make_pvh_current
from xenemu.hv.current import Current
from xenemu.hv.state.grants import Active
from xenemu.views import memory_map as maps
from xenemu.views.memory_map import COLUMNS, Kind, memory_map, rows
from xenemu.x86.paging import Maddr, Mfn

SVG = "{http://www.w3.org/2000/svg}"


def kind_of(current: Current, frame: int) -> Kind:
    return {
        row.first + n: kind for row in rows(current, COLUMNS) for n, kind in enumerate(row.kinds)
    }[frame]


def own(current: Current) -> int:
    """A frame of the guest's that is nothing in particular, and is all zeroes."""
    (row,) = rows(current, COLUMNS)
    return next(n for n, kind in enumerate(row.kinds) if kind is Kind.ZERO)


def test_page_tables_of_a_pv_guest_are_told_by_level() -> None:
    current = make_pv_current()
    assert kind_of(current, ROOT) is Kind.L4
    assert kind_of(current, L1) is Kind.L1


def test_a_frame_is_untouched_until_something_is_in_it() -> None:
    current = make_pv_current()
    frame = own(current)
    current.domain.memory.write(Maddr(frame << 12 | 0xFFF), b"\1")
    assert kind_of(current, frame) in (Kind.DATA, Kind.READ_ONLY)
    current.domain.memory.code[frame] = 1
    assert kind_of(current, frame) is Kind.CODE
    current.domain.grants.active[8] = Active(Mfn(frame), 0, pin=1)
    assert kind_of(current, frame) is Kind.GRANTED
    current.domain.frames.owner[frame] = 0xFFFF
    assert kind_of(current, frame) is Kind.HOLE
    current.domain.frames.owner[frame] = 0
    assert kind_of(current, frame) is Kind.XEN


def test_tables_of_a_pvh_guest_are_those_in_use() -> None:
    current = make_pvh_current()
    domain = current.domain
    assert domain.p2m is not None
    root, *below = [gfn for gfn, _ in sorted(domain.p2m.places())][8:12]
    for upper, lower in zip((root, *below), below, strict=False):
        domain.memory.write_uint(Maddr(domain.p2m.lookup(upper) << 12), 8, lower << 12 | 3)
    enter_long_mode(current, root << 12)
    found = [kind_of(current, gfn) for gfn in (root, *below)]
    assert found == [Kind.L4, Kind.L3, Kind.L2, Kind.L1]


def test_rows_with_nothing_in_them_are_left_out() -> None:
    current = make_pvh_current()
    domain = current.domain
    assert domain.p2m is not None
    frame = domain.p2m.lookup(own(current))
    domain.p2m.set(COLUMNS * 5000 + 3, frame)
    *_, last = rows(current, COLUMNS)
    assert last.first == COLUMNS * 5000
    assert Counter(last.kinds) == {Kind.HOLE: COLUMNS - 1, Kind.ZERO: 1}
    assert f"{last.first << 12:#x}" in memory_map(current, "guest")


@pytest.mark.parametrize("rows_at_most", [320, 1])
def test_the_legend_counts_every_frame(monkeypatch: pytest.MonkeyPatch, rows_at_most: int) -> None:
    monkeypatch.setattr(maps, "ROWS", rows_at_most)
    monkeypatch.setattr(maps, "COLUMNS", 16)
    current = make_pv_current()
    picture = memory_map(current, "<a guest>")
    root = ElementTree.fromstring(picture)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert words[0].startswith("<a guest>: machine memory, a cell is")
    assert root.get("width") == "100%"  # so that the totals are seen, however wide the window
    counted = Counter(kind for row in rows(current, 16) for kind in row.kinds)
    del counted[Kind.HOLE]  # of which rows are left out
    for kind, count in counted.items():
        assert words[words.index(kind.label) + 1] == f"{count} frames"
    drawn = {path.get("class") for path in root.iter(f"{SVG}path")}
    assert drawn <= {kind.name for kind in Kind}
    assert Kind.ZERO.name in drawn
    assert memory_map(current, "<a guest>") == picture
