"""When a person is told that a guest's console shows nothing, by a clock that the test turns."""

from __future__ import annotations

import pytest

from xenemu.cli.expect import Expectations
from xenemu.cli.silence import PATIENCE_NS, Silence
from xenemu.cli.status import Status
from xenemu.cli.terminal import HostTerminal


class Guest:
    """A clock, an advice that counts how often it is asked for, and what the person is told."""

    def __init__(self):
        self.now_ns, self.asked, self.told, self.words = 0, 0, [], "do this"
        self.silence = Silence(lambda: self.now_ns, self.advice, self.told.append)

    def advice(self):
        self.asked += 1
        return self.words

    def look(self, now_ns):
        self.now_ns = now_ns
        self.silence.look()


@pytest.fixture
def guest():
    return Guest()


def test_it_is_told_once_after_a_while(guest):
    guest.look(PATIENCE_NS - 1)
    assert (guest.asked, guest.told, guest.silence.told) == (0, [], "")
    guest.look(PATIENCE_NS)
    guest.look(2 * PATIENCE_NS)
    assert (guest.asked, guest.told, guest.silence.told) == (1, ["do this"], "do this")


def test_nobody_asks_about_a_guest_that_has_spoken(guest):
    guest.silence.spoke()
    guest.look(PATIENCE_NS)
    assert (guest.asked, guest.told, guest.silence.told) == (0, [], "")


def test_nobody_is_told_nothing(guest):
    guest.words = ""
    guest.look(PATIENCE_NS)
    assert (guest.asked, guest.told, guest.silence.told) == (1, [], "")


def test_a_terminal_looks_and_listens(guest):
    terminal = HostTerminal(None, None, Expectations(()), Status(None), silence=guest.silence)
    guest.now_ns = PATIENCE_NS
    terminal.check()
    assert guest.told == ["do this"]
    other = Guest()
    terminal = HostTerminal(None, None, Expectations(()), Status(None), silence=other.silence)
    other.now_ns = PATIENCE_NS
    terminal.write(b"hello")
    terminal.check()
    assert other.asked == 0
