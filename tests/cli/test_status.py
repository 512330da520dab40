"""The status line: where it is drawn, and that it gives way to the console."""

from __future__ import annotations

import io
import re

import pytest

from xenemu.cli.status import ERASE, INTERVAL_S, Status


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return io.StringIO()


def test_speed_is_that_since_the_last_look(screen):
    clock = Clock()
    status = Status(screen, clock=clock)
    status.measure = lambda: (1_500_000_000, 50_000_000)
    clock.now_s += INTERVAL_S
    status.progress("running")
    assert screen.getvalue() == (f"{ERASE}running, virtual time 1.500 s, 200 M instructions/s\r")


def test_it_is_drawn_at_intervals(screen):
    clock = Clock()
    status = Status(screen, clock=clock)
    status.progress("one")
    status.progress("two")
    clock.now_s += INTERVAL_S
    status.progress("three")
    assert re.findall("one|two|three", screen.getvalue()) == ["one", "three"]


def test_it_gives_way_to_the_console(screen):
    status = Status(screen)
    status.phase("loading")
    status.make_room()
    status.make_room()
    assert screen.getvalue() == f"{ERASE}loading\r{ERASE}"


def test_it_fits_the_line(screen):
    Status(screen).phase("x" * 200)
    assert screen.getvalue() == f"{ERASE}{'x' * 79}\r"


@pytest.mark.parametrize(
    ("shared", "printed", "drawn"),
    [(True, b"/ # ", False), (True, b"done\n", True), (False, b"/ # ", True)],
)
def test_it_never_writes_over_a_line_of_the_console(screen, shared, printed, drawn):
    status = Status(screen, shared=shared)
    status.printed(printed)
    status.phase("running")
    assert bool(screen.getvalue()) is drawn


def test_it_is_gone_once_a_person_types_on_the_same_terminal(screen):
    status = Status(screen, shared=True)
    status.typed()
    status.phase("running")
    assert screen.getvalue() == ""


def test_what_follows_begins_a_line(screen):
    status = Status(screen, shared=True)
    assert status.end() == ""
    status.printed(b"/ # ")
    assert status.end() == "\n"


def test_without_a_terminal_there_is_nothing():
    status = Status(None)
    status.phase("loading")
    status.progress("running")
    assert status.end() == ""
