"""gdb/history: which checkpoints are kept, and when they are of no use any more."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from xenemu.gdb.copies import Copy, Lost
from xenemu.gdb.history import EVERY_S, FEWEST, MOST, NEAR, NEAR_ONES, History

MIB = 1 << 20


class Fake(SimpleNamespace):
    """A machine whose snapshots are numbers, and a clock of the process."""

    def __init__(self):
        engine = SimpleNamespace(instructions=0, now_ns=0, rip=0, regs=[0] * 16)
        super().__init__(
            engine=engine, current=SimpleNamespace(vcpu=SimpleNamespace(vcpu_id=0)), disturbed=0,
            printed=0, restored=None, now_s=0.0, copies=[],
            domain=SimpleNamespace(memory=SimpleNamespace(bytes=range(256 * MIB))),
        )  # fmt: skip

    def snapshot(self):
        return self.engine.instructions

    def restore(self, snapshot):
        self.restored = snapshot

    def copy(self, _):
        made = FakeCopy(self.engine.instructions)
        self.copies.append(made)
        return made


class FakeCopy(Copy):
    def __init__(self, snapshot):
        self.snapshot, self.fetched, self.lives, self.waited = snapshot, 0, True, False

    def fetch(self):
        if not self.lives:
            raise Lost
        self.fetched += 1
        return self.snapshot

    def end(self):
        self.lives = False

    def has_ended(self):
        return False

    def wait(self):
        assert not self.lives
        self.waited = True


@pytest.fixture
def machine():
    return Fake()


@pytest.fixture
def history(machine):
    return history_of(machine)


def history_of(machine, **more):
    return History(machine, clock=lambda: machine.now_s, copy=machine.copy, **more)


def note(history, machine, done, after_s=2 * EVERY_S, goal=None):
    """Come so far, in so much time of the process."""
    machine.engine.instructions = done
    machine.now_s += after_s
    history.note(goal)
    return places(history)


def places(history):
    return [kept.place.instructions for kept in history.checkpoints]


def test_one_is_taken_at_once_and_others_when_the_process_has_worked(history, machine):
    assert note(history, machine, 5, 0) == [5]
    assert note(history, machine, 1 << 40, EVERY_S / 2) == [5]
    assert note(history, machine, 2 << 40, EVERY_S / 2) == [5, 2 << 40]
    assert all(isinstance(kept.kept, FakeCopy) for kept in history.checkpoints)


def test_copies_that_take_long_are_rare(machine):
    def copy(_):
        machine.now_s += EVERY_S
        return machine.copy(_)

    history = History(machine, clock=lambda: machine.now_s, copy=copy)
    note(history, machine, 0)
    assert note(history, machine, 1, 100 * EVERY_S) == [0]
    assert note(history, machine, 2, 100 * EVERY_S) == [0, 2]


def test_one_near_a_goal_is_here_already(history, machine):
    note(history, machine, 0)
    goal = 10 * NEAR
    assert note(history, machine, 8 * NEAR, EVERY_S / 2, goal) == [0]
    near = goal - NEAR // 2
    assert note(history, machine, near, 0, goal) == [0, near]
    assert history.checkpoints[1].kept == near and len(machine.copies) == 1
    assert note(history, machine, near + 1, 0, goal) == [0, near]


def test_few_near_ones_are_kept_and_those_that_are_near(history, machine):
    note(history, machine, 0)
    for n in range(1, 6):
        goal = n * 100 * NEAR
        note(history, machine, goal - 1, EVERY_S / 2, goal)
    assert places(history) == [0, 4 * 100 * NEAR - 1, 5 * 100 * NEAR - 1]
    assert len(history.checkpoints) == 1 + NEAR_ONES


def test_the_first_is_kept_and_the_older_the_farther_from_each_other(history, machine):
    for n in range(200):
        kept = note(history, machine, n * NEAR)
    assert len(kept) == 8 and kept[0] == 0 and kept[-1] == 199 * NEAR
    gaps = [b - a for a, b in pairwise(kept)]
    assert all(older >= newer for older, newer in pairwise(gaps)), gaps
    alive = [copy.snapshot for copy in machine.copies if copy.lives]
    assert alive == kept


@pytest.mark.parametrize(("mib", "most"), [(16, MOST), (256, 8), (1024, FEWEST)])
def test_a_large_guest_has_fewer(machine, mib, most):
    machine.domain.memory.bytes = range(mib * MIB)
    history = history_of(machine)
    for n in range(40):
        note(history, machine, n * NEAR)
    assert len(history.checkpoints) == most


def test_on_the_way_that_was_gone_already_none_is_next_to_another(history, machine):
    for n in range(3):
        note(history, machine, n * 10 * NEAR)
    history.go_back(history.checkpoints[0])
    assert note(history, machine, 5 * NEAR) == [0, 5 * NEAR, 10 * NEAR, 20 * NEAR]
    assert note(history, machine, 10 * NEAR - 1) == [0, 5 * NEAR, 10 * NEAR, 20 * NEAR]
    # It passes one: the next is due so much later.
    assert note(history, machine, 12 * NEAR)[2:] == [10 * NEAR, 20 * NEAR]
    assert note(history, machine, 15 * NEAR)[2:] == [10 * NEAR, 15 * NEAR, 20 * NEAR]


def test_without_processes_snapshots_do(machine):
    def refused(_):
        raise OSError

    history = History(machine, clock=lambda: machine.now_s, copy=refused)
    assert note(history, machine, 7) == [7]
    assert history.checkpoints[0].kept == 7


def test_the_last_one_before(history, machine):
    note(history, machine, 5)
    note(history, machine, 5 + NEAR)
    assert history.before(4) is None
    assert history.before(5) is history.before(4 + NEAR) is history.checkpoints[0]
    assert history.before(5 + NEAR) is history.checkpoints[1]


def test_none_is_of_use_after_something_came(history, machine):
    note(history, machine, 5)
    history.marks.append(history.checkpoints[0].place)
    machine.disturbed += 1
    assert note(history, machine, 9) == [9] and not history.marks
    machine.disturbed += 1
    history.settle()
    assert history.checkpoints == []
    assert not any(copy.lives for copy in machine.copies)
    history.close()
    assert all(copy.waited for copy in machine.copies)


def test_a_large_guest_has_none_and_says_so(machine):
    assert history_of(machine).limit == "from here on the run can be repeated, and not before"
    machine.domain.memory.bytes = range(1 << 31)
    history = history_of(machine)
    assert note(history, machine, 5) == []
    assert "more than 1 GiB" in history.limit


def test_what_cannot_go_back_says_why(machine):
    history = history_of(machine, obstacle="because")
    assert note(history, machine, 5) == [] and history.limit == "because"


def test_it_goes_back_and_what_was_printed_by_then_goes_with_it(history, machine):
    machine.printed = 3
    note(history, machine, 5)
    machine.printed = 8
    for _ in range(2):
        history.go_back(history.checkpoints[0])
        assert (machine.restored, machine.printed) == (5, 3)
    assert machine.copies[0].fetched == 1


def test_a_copy_that_is_gone_is_forgotten(history, machine):
    note(history, machine, 5)
    note(history, machine, 5 + NEAR)
    machine.copies[1].lives = False
    with pytest.raises(Lost):
        history.go_back(history.checkpoints[1])
    assert machine.restored is None and places(history) == [5]
    assert "is its memory full?" in history.limit
