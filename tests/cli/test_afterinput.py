"""What a run does when its input has ended, by a clock that the test turns."""

from __future__ import annotations

import os

import pytest

from xenemu.cli.afterinput import CTRL_D, AfterInput
from xenemu.cli.expect import Expectations
from xenemu.cli.status import Status
from xenemu.cli.terminal import HostTerminal

S = 1_000_000_000


class Clock:
    now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


def typed_at(after, clock, seconds):
    """The seconds at which something is typed, and what."""
    found = {}
    for second in seconds:
        clock.now_ns = second * S
        if data := after.look():
            found[second] = data
    return found


def test_a_shell_gets_ctrl_d_in_silence_more_and_more_seldom(clock):
    after = AfterInput(clock, ends_by_ctrl_d=True)
    assert typed_at(after, clock, range(30)) == {1: CTRL_D, 3: CTRL_D, 9: CTRL_D, 27: CTRL_D}
    after.spoke()  # at 29 s
    assert typed_at(after, clock, range(29, 33)) == {30: CTRL_D, 32: CTRL_D}


def test_a_line_without_an_end_gets_one_first(clock):
    after = AfterInput(clock, ends_by_ctrl_d=True)
    after.typed(b"ls\n")
    after.typed(b"halt")
    assert typed_at(after, clock, range(4)) == {1: b"\n" + CTRL_D, 3: CTRL_D}


def test_of_another_guest_the_person_is_told_once(clock):
    told = []
    after = AfterInput(clock, tell=told.append)
    assert typed_at(after, clock, range(60)) == {} and told == []
    assert typed_at(after, clock, range(60, 300)) == {}
    assert len(told) == 1 and "the input has ended" in told[0]


def test_a_shell_whose_script_waits_gets_no_ctrl_d(clock):
    told = []
    after = AfterInput(clock, ends_by_ctrl_d=True, tell=told.append)
    for clock.now_ns in range(0, 200 * S, S):
        assert after.look(["login:"]) == b""
    assert told == [
        "the input waits for 'login:', and the guest has printed nothing for a minute of its time;"
        " Ctrl-C or --timeout ends the run"
    ]


def test_a_terminal_types_it_when_its_pipe_has_ended(clock):
    reader, writer = os.pipe()
    try:
        os.write(writer, b"ls\n")
        after = AfterInput(clock, ends_by_ctrl_d=True)
        ours = HostTerminal(reader, None, Expectations(()), Status(None), after=after)
        clock.now_ns = 10 * S
        assert (ours.check(), ours.read(9, 0), ours.exhausted) == (None, b"ls\n", False)
        os.close(writer)
        assert ours.read(9, 0) == b"" and ours.exhausted
        ours.check()
        assert ours.exhausted, "it has waited for a second since the last input"
        clock.now_ns = 11 * S
        ours.check()
        assert not ours.exhausted
        assert (ours.read(9, 0), ours.exhausted) == (CTRL_D, True)
    finally:
        os.close(reader)
