"""Of a console, the lines that tell are kept, however long it gets."""

from __future__ import annotations

from xenemu.smoke.headlines import FIRST, LAST, MAX_LINE, Headlines


def fed(*pieces):
    headlines = Headlines()
    for piece in pieces:
        headlines.feed(piece)
    return headlines.lines


def test_banners_and_panics_are_kept():
    console = "Linux version 6.1\none\n[ 1.0] Kernel panic - not syncing: x\ntwo\npanic: y\n"
    told = ["Linux version 6.1", "[ 1.0] Kernel panic - not syncing: x", "panic: y", ""]
    assert fed(console) == fed(*console) == told


def test_the_last_line_may_be_open():
    assert fed("one\nKernel pa", "nic") == ["Kernel panic"]


def test_the_first_and_the_last_are_kept():
    lines = fed("".join(f"panic {number}\n" for number in range(1000)))
    assert lines[:FIRST] == [f"panic {number}" for number in range(FIRST)]
    assert lines[FIRST:-1] == [f"panic {number}" for number in range(1000 - LAST, 1000)]


def test_a_line_has_no_more_than_so_many_characters():
    (line,) = fed("panic", *["x" * 600] * 9)
    assert len(line) == MAX_LINE
