"""The console as it grows."""

from __future__ import annotations

import re

import pytest

from xenemu.smoke import transcript
from xenemu.smoke.transcript import WINDOW, Transcript


def rx(pattern):
    return re.compile(pattern, re.MULTILINE)


def test_a_line_has_the_time_of_its_first_byte():
    console = Transcript()
    console.feed(b"one\r\ntw", 1_000_000_000)
    assert console.feed(b"o\nthree", 2_500_000_000) == ["two"]
    assert console.stamped() == "    1.000000  one\n    1.000000  two\n    2.500000  three\n"


def test_matches_are_found_in_order():
    console = Transcript()
    console.feed(b"b a b", 0)
    assert console.find(rx("a")).start() == 2
    assert console.find(rx("b")).start() == 4
    assert console.find(rx("b")) is None


def test_a_match_that_is_empty_is_found_once():
    console = Transcript()
    console.feed(b"ab", 0)
    assert [console.find(rx("")).start() for _ in range(2)] == [0, 1]


def test_a_line_start_is_one_after_a_match():
    console = Transcript()
    console.feed(b"ab", 0)
    assert console.find(rx("a"))
    assert console.find(rx("^b")) is None


def test_a_match_may_come_in_pieces():
    console = Transcript()
    console.feed(b"log", 0)
    assert console.find(rx("login:")) is None
    console.feed(b"in:", 0)
    assert console.find(rx("login:"))


def test_what_is_forbidden_is_found_once():
    console = Transcript()
    console.feed(b"bad", 0)
    assert console.has(rx("bad"))
    console.feed(b" good", 0)
    assert not console.has(rx("bad"))
    console.feed(b" b", 0)
    console.feed(b"ad", 0)
    assert console.has(rx("bad"))


def test_the_past_is_bounded():
    console = Transcript()
    console.feed(b"x" * (2 * WINDOW), 0)
    assert console.find(rx("^x")) is None
    assert console.find(rx("x"))
    assert len(console._tail) == WINDOW + 1


def test_a_flood_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(transcript, "LIMIT", 10)
    console = Transcript()
    for _ in range(4):
        console.feed(b"12345\n", 0)
    assert console.raw == b"12345\n1234"
    assert console.stamped().endswith("(14 more bytes were printed, and are not kept)\n")
    assert console.find(rx("12345\n12345\n12345\n12345"))


@pytest.mark.parametrize("data", [b"", b"\x1b[1m", b"\r"])
def test_what_is_not_seen_is_no_line(data):
    console = Transcript()
    assert console.feed(data, 0) == []
    assert console.stamped() == ""


def test_where_the_first_match_of_all_begins():
    console = Transcript()
    assert console.first(rx("")) is None
    console.feed(b"one\ntwo\nthr", 0)
    assert console.find(rx("two"))
    assert console.first(rx("^one")) == (1, "one")
    assert console.first(rx("two\nth")) == (2, "two")
    assert console.first(rx("four")) is None


def test_a_console_goes_on_as_anothers():
    console = Transcript()
    console.feed(b"boot\n# ", 0)
    console.part("base")
    assert not console.has(rx("boot"))
    assert console.find(rx("boot|#")) is None
    console.feed(b"ls\nboot\n", 1_000_000_000)
    assert console.find(rx("^boot"))
    assert console.stamped().splitlines() == [
        *("    0.000000  boot", "(so far, this is base)", "    0.000000  # ls"),
        "    1.000000  boot",
    ]
    assert console.text[console.own :] == ["# ls", "boot"]
