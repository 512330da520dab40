"""Limits in the guest's time, by a clock that the test turns."""

from __future__ import annotations

import pytest

from xenemu.cli.expect import Expectations
from xenemu.cli.patience import Patience
from xenemu.cli.status import Status
from xenemu.cli.terminal import HostTerminal
from xenemu.errors import UsageError
from xenemu.outcome import End

S = 1_000_000_000


class Clock:
    now_ns = 0

    def __call__(self):
        return self.now_ns


def test_a_run_ends_when_so_much_of_the_guests_time_has_passed():
    clock = Clock()
    clock.now_ns = 5 * S  # it goes on from a snapshot
    patience = Patience.parse("1.5", None)
    patience.begin(clock)
    assert (patience.due_ns, patience.check()) == (6.5 * S, None)
    clock.now_ns = 6_500_000_000
    outcome = patience.check()
    assert (outcome.end, outcome.reason) == (
        End.TIMEOUT, "still running after 1.5 s of its own time",
    )  # fmt: skip


def test_silence_counts_from_what_was_printed_last():
    clock, patience = Clock(), Patience.parse("9", "2")
    patience.begin(clock)
    ours = HostTerminal(None, None, Expectations(()), Status(None), patience=patience)
    clock.now_ns = S
    ours.write(b"x")
    assert (ours.due_ns, ours.check()) == (3 * S, None)
    clock.now_ns = 3 * S
    assert ours.check().reason == "it printed nothing for 2 s of its own time"


def test_without_limits_there_are_none():
    assert Patience.parse(None, None) is None


@pytest.mark.parametrize("text", ["0", "-1", "x", "2000000"])
def test_what_is_no_limit(text):
    with pytest.raises(UsageError, match="--virtual-timeout"):
        Patience.parse(text, None)
    with pytest.raises(UsageError, match="--quiet-timeout"):
        Patience.parse(None, text)
