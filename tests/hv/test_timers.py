"""hv/timers: deadlines in virtual time."""

from __future__ import annotations

import pytest

from fakes import make_current
from xenemu.hv.state.timers import NEVER_NS, Timers
from xenemu.hv.timers import fire_due, join

A, B, C = ("a", 0), ("b", 0), ("b", 1)


@pytest.fixture
def timers() -> Timers:
    return Timers()


def test_the_next_deadline_is_the_earliest(timers: Timers) -> None:
    assert timers.next_ns() is None
    timers.set(A, 30)
    timers.set(B, 20)
    assert timers.next_ns() == 20


def test_what_is_due_comes_once_and_earliest_first(timers: Timers) -> None:
    timers.set(A, 30)
    timers.set(B, 20)
    timers.set(C, 31)
    assert timers.pop_due(30) == [B, A]
    assert timers.pop_due(30) == []
    assert timers.next_ns() == 31


def test_a_timer_is_moved_not_doubled(timers: Timers) -> None:
    timers.set(A, 30)
    timers.set(A, 10)
    assert timers.pop_due(100) == [A]


def test_ties_are_broken_by_the_order_of_setting(timers: Timers) -> None:
    timers.set(A, 5)
    timers.set(B, 5)
    timers.set(A, 5)
    assert timers.pop_due(5) == [B, A]


def test_a_cancelled_timer_does_not_come(timers: Timers) -> None:
    timers.set(A, 5)
    timers.cancel(A)
    timers.cancel(B)
    assert timers.pop_due(10) == []


def test_the_run_loop_hears_of_a_timer_that_was_set(timers: Timers) -> None:
    assert not timers.moved
    timers.set(A, 5)
    assert timers.moved


def test_a_deadline_is_signed_as_in_xen(timers: Timers) -> None:
    """A guest may name any 64 bits: from 2^63 on it is a time long past."""
    timers.set(A, (1 << 64) - 1)
    assert timers.pop_due(0) == [A]


def test_a_deadline_behind_the_end_of_time_never_comes(timers: Timers) -> None:
    timers.set(A, 20)
    timers.set(A, (1 << 63) - 1)
    assert timers.next_ns() is None
    timers.set(A, NEVER_NS - 1)
    assert timers.next_ns() == NEVER_NS - 1


def test_what_a_due_timer_is_for_its_owner_says() -> None:
    current, fired = make_current(), []
    owners = join(
        {"a": lambda _, number: fired.append(("a", number))},
        {"b": lambda _, number: fired.append(("b", number))},
    )
    for when, key in ((30, A), (20, C), (41, B)):
        current.domain.timers.set(key, when)
    current.cpu.now_ns = 40
    fire_due(current, owners)
    assert fired == [C, A]
    assert current.domain.timers.next_ns() == 41


def test_a_kind_of_timer_has_one_owner() -> None:
    with pytest.raises(ValueError, match="two owners"):
        join({"a": print}, {"a": print})
