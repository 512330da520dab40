"""A person's regular expression that would take for ever is given up, and others are not."""

from __future__ import annotations

import re
import signal

import pytest

from xenemu.cli import searching
from xenemu.cli.expect import Expectations
from xenemu.cli.searching import Searches

ENDLESS = "^((.*)*)*x$"
TEXT = "a line of the console without that letter\n" * 9


def test_a_search_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(searching, "LONGEST_S", 0.01)
    search, before = Searches(), signal.getsignal(signal.SIGALRM)
    assert search(re.compile("letter$", re.MULTILINE), TEXT, 0) and not search.given_up
    assert search(re.compile(ENDLESS, re.MULTILINE), TEXT, 0) is None
    assert search.given_up == ENDLESS
    assert search(re.compile("letter"), TEXT, 0) is None, "the run is to end"
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_handler_ends_the_search_under_way():
    search = Searches()
    before = signal.signal(signal.SIGVTALRM, lambda *_: search.end())
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)
    try:
        assert search(re.compile(ENDLESS, re.MULTILINE), TEXT, 0) is None
    finally:
        signal.signal(signal.SIGVTALRM, before)
    assert search.given_up == ENDLESS


def test_without_a_search_a_handler_ends_nothing():
    Searches().end()


@pytest.mark.parametrize("pattern", [ENDLESS, "letter$"])
def test_expectations_look_in_this_way(monkeypatch, pattern):
    monkeypatch.setattr(searching, "LONGEST_S", 0.01)
    search = Searches()
    monkeypatch.setattr("xenemu.cli.expect.search", search)
    expectations = Expectations([pattern])
    expectations.feed(TEXT.encode())
    assert bool(search.given_up) is (pattern == ENDLESS)
    assert expectations.met is (pattern != ENDLESS)
