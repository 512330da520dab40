"""gdb/history: which checkpoints are kept, and when they are of no use any more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from xenemu.gdb.history import EVERY, KEPT, NEAR, History


class Fake(SimpleNamespace):
    """A machine whose snapshots are numbers."""

    def __init__(self):
        engine = SimpleNamespace(instructions=0, now_ns=0, rip=0, regs=[0] * 16)
        super().__init__(
            engine=engine, current=SimpleNamespace(vcpu=SimpleNamespace(vcpu_id=0)), disturbed=0,
            printed=0, restored=None,
            domain=SimpleNamespace(memory=SimpleNamespace(bytes=range(1 << 20))),
        )  # fmt: skip

    def snapshot(self):
        return self.engine.instructions

    def restore(self, snapshot):
        self.restored = snapshot


@pytest.fixture
def machine():
    return Fake()


@pytest.fixture
def history(machine):
    return History(machine)


def note(history, machine, done, goal=None):
    machine.engine.instructions = done
    history.note(goal)
    return [kept.place.instructions for kept in history.checkpoints]


def test_one_is_enough_on_the_way_forward(history, machine):
    assert note(history, machine, 5) == [5]
    assert note(history, machine, 100 * EVERY) == [5]


def test_more_are_taken_on_the_way_back_and_one_near_the_goal(history, machine):
    note(history, machine, 0)
    assert note(history, machine, EVERY, 3 * EVERY) == [0, EVERY]
    assert note(history, machine, EVERY + NEAR, 3 * EVERY) == [0, EVERY]
    goal = EVERY + 2 * NEAR
    near = goal - NEAR // 2
    assert note(history, machine, near, goal) == [0, EVERY, near]
    assert note(history, machine, near + 1, goal) == [0, EVERY, near]


def test_the_first_is_kept_and_those_far_from_each_other(history, machine):
    for n in range(2 * KEPT):
        places = note(history, machine, n * EVERY, 1 << 60)
    assert len(places) == KEPT
    assert places == sorted(places) and places[0] == 0 and places[-1] == (2 * KEPT - 1) * EVERY


def test_the_last_one_before(history, machine):
    note(history, machine, 5)
    note(history, machine, 5 + EVERY, 1 << 60)
    assert history.before(4) is None
    assert history.before(5).snapshot == history.before(4 + EVERY).snapshot == 5
    assert history.before(5 + EVERY).snapshot == 5 + EVERY


def test_none_is_of_use_after_something_came(history, machine):
    note(history, machine, 5)
    machine.disturbed += 1
    assert note(history, machine, 9) == [9]
    machine.disturbed += 1
    history.settle()
    assert history.checkpoints == []


def test_a_large_guest_has_none_and_says_so(history, machine):
    assert history.limit == "from here on the run can be repeated, and not before"
    machine.domain.memory.bytes = range(1 << 31)
    assert note(history, machine, 5) == []
    assert "more than 1 GiB" in history.limit


def test_what_was_printed_by_then_goes_with_it(history, machine):
    machine.printed = 3
    note(history, machine, 5)
    machine.printed = 8
    history.go_back(history.checkpoints[0])
    assert (machine.restored, machine.printed) == (5, 3)
