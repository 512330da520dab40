"""Expectations: what of the console counts as seen."""

from __future__ import annotations

import pytest

from xenemu.cli.expect import WINDOW, Expectations
from xenemu.errors import UsageError


def seen(pattern: str, *pieces: bytes) -> bool:
    expectations = Expectations([pattern])
    for piece in pieces:
        expectations.feed(piece)
    return expectations.met


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        ("INIT-OK", (b"INIT", b"-OK\n")),
        (r"^login:", (b"Debian\r\nlogin: ",)),
        (r"^one$\n^two$", (b"one\r", b"\ntwo\r\n")),
        (r"grub> $", (b"\r\ngrub> ",)),
        (r"\[ OK \] done", (b"[\x1b[0;32m O", b"K \x1b", b"[", b"0m] done",)),
        ("é", (b"\xc3", b"\xa9")),
        (r"\ufffd!", (b"\xff!",)),
    ],
)  # fmt: skip
def test_seen(pattern, pieces):
    assert seen(pattern, *pieces)


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        ("login:", (b"Login:\n",)),
        (r"^OK", (b"INIT-OK\n",)),
        (r"a.b", (b"a\nb",)),
        ("(?s)a.*b", (b"a", b"-" * WINDOW * 2, b"b")),
        (r"^x+b", (b"x" * 3 * WINDOW, b"xb")),  # the cut is not the start of a line
        (r"\[6n", (b"/ # \x1b[6n",)),
    ],
)
def test_not_seen(pattern, pieces):
    assert not seen(pattern, *pieces)


def test_all_must_be_met_in_any_order():
    expectations = Expectations(["one", "two", "three"])
    expectations.feed(b"two\n")
    assert (expectations.met, expectations.unmet) == (False, ["one", "three"])
    expectations.feed(b"three one\n")
    assert (expectations.met, expectations.unmet) == (True, [])


def test_none_are_never_met():
    expectations = Expectations([])
    expectations.feed(b"anything\n")
    assert not expectations.met


def test_what_is_kept_is_bounded():
    expectations = Expectations(["never"])
    for _ in range(4):
        expectations.feed(b"\x1b[" + b"1" * WINDOW)
    assert len(expectations.tail) == WINDOW + 1


def test_no_regular_expression():
    with pytest.raises(UsageError, match=r"--expect 'foo\(' is no regular expression: missing \)"):
        Expectations(["foo("])
