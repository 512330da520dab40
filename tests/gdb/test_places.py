"""gdb/places: the marks of a person, and where he may want to go."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from xenemu.gdb.history import Place
from xenemu.gdb.places import Places
from xenemu.gdb.target import Refused
from xenemu.gdb.travel import RunTo, RunUntil


@pytest.fixture
def machine():
    engine = SimpleNamespace(instructions=7, now_ns=1_500_000_000, rip=0x1000, regs=[0] * 16)
    return SimpleNamespace(engine=engine, current=SimpleNamespace(vcpu=SimpleNamespace(vcpu_id=1)))


@pytest.fixture
def history():
    return SimpleNamespace(marks=[], checkpoints=[], limit="no further", settle=lambda: None)


@pytest.fixture
def places(machine, history):
    return Places(machine, history, hex)


def test_a_mark_has_a_number_and_only_one(places, machine):
    assert places.show() == ["none; `monitor checkpoint` makes one", "no further"]
    (first,) = places.mark()
    assert first == "#1  after 7 instructions, at 1.500000000 s, vcpu 1 at 0x1000"
    assert places.mark() == [first]
    machine.engine.instructions = 9
    (second,) = places.mark()
    assert second.startswith("#2  after 9 ")
    assert places.show() == [first, second, "no further"]


def test_it_says_how_far_back_the_guest_can_go(places, history):
    history.checkpoints.append(SimpleNamespace(place=Place(5, 6, 0, 0, 0)))
    assert places.show()[-1] == "gdb can go back to instruction 5, at 0.000000006 s"


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("131048306", RunTo(131048306)),
        ("0", RunTo(0)),
        ("2s", RunUntil(2_000_000_000)),
        ("0.7s", RunUntil(700_000_000)),
        ("1.000000001s", RunUntil(1_000_000_001)),
        ("1.5ms", RunUntil(1_500_000)),
        ("20us", RunUntil(20_000)),
        ("3ns", RunUntil(3)),
    ],
)
def test_a_goal_is_a_count_or_a_time(places, text, goal):
    places.go(text)
    assert places.is_leaving
    assert places.take_goal() == goal
    assert not places.is_leaving and places.take_goal() is None


def test_a_goal_is_a_mark(places, machine):
    places.mark()
    there = Place.of(machine)
    machine.engine.instructions = 100
    assert "checkpoint #1" in places.go("#1")[0]
    assert places.take_goal() == there


def test_a_goal_that_is_ahead_is_said_to_be(places, machine):
    places.mark()
    machine.engine.instructions = 100
    for text in ("101", "1.500000001s"):
        assert "(ahead: the guest runs on until then, or to its end)" in places.go(text)[0]
    for text in ("100", "99", "#1", "1.5s", "1s"):
        assert "ahead" not in places.go(text)[0]


def test_a_goal_can_be_given_up(places):
    places.go("5")
    places.stay()
    assert not places.is_leaving


@pytest.mark.parametrize("text", ["", "x", "-1", "s", "1.s", "1h", "#", "#x", "1 2", "9" * 20])
def test_what_is_no_place_is_refused(places, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        places.go(text)
    assert not places.is_leaving


def test_a_fraction_without_a_unit_is_refused(places):
    with pytest.raises(Refused, match=r"for a time, say 1\.5s$"):
        places.go("1.5")
    assert not places.is_leaving


@pytest.mark.parametrize("text", ["#0", "#1", "#999999999"])
def test_a_mark_that_is_not_there_is_refused(places, text):
    with pytest.raises(Refused, match="there is no checkpoint"):
        places.go(text)
    assert not places.is_leaving
