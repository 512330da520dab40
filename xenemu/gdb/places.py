"""Places that a person names: marks, counts of instructions, times; and the way to one of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from xenemu.gdb.history import History, Place
from xenemu.gdb.target import Refused
from xenemu.gdb.travel import Goal, RunTo, RunUntil, way_to
from xenemu.machine import Machine

GOAL: Final = re.compile(
    r"#(?P<mark>\d{1,9})|(?P<count>\d{1,19})|(?P<time>\d{1,9}(\.\d{1,9})?)(?P<unit>s|ms|us|ns)"
)
FRACTION: Final = re.compile(r"\d{1,9}\.\d{1,9}")
UNITS_NS: Final = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


class Places:
    """The marks of a run, and where the person wants to go. `name` writes an address."""

    def __init__(self, machine: Machine, history: History, name: Callable[[int], str]) -> None:
        self._machine, self._history, self._name = machine, history, name
        self._goal: Goal | None = None

    def mark(self) -> list[str]:
        """Mark the present."""
        self._history.settle()
        place = Place.of(self._machine)
        if place not in self._history.marks:
            self._history.marks.append(place)
        return [self._line(self._history.marks.index(place) + 1, place)]

    def show(self) -> list[str]:
        """The marks, and how far back the guest can go."""
        self._history.settle()
        lines = [self._line(number, place) for number, place in enumerate(self._history.marks, 1)]
        return [*(lines or ["none; `monitor checkpoint` makes one"]), self._reach()]

    def go(self, text: str) -> list[str]:
        """Go there when the guest goes on. ValueError, Refused: there is no such place."""
        self._history.settle()
        found = GOAL.fullmatch(text)
        if not found and FRACTION.fullmatch(text):
            raise Refused(f"{text} is no count of instructions; for a time, say {text}s")
        if not found:
            raise ValueError(text)
        if found["mark"]:
            number = int(found["mark"])
            if not 0 < number <= len(self._history.marks):
                raise Refused(f"there is no checkpoint #{number}; `monitor checkpoints` lists them")
            self._goal, told = self._history.marks[number - 1], f"checkpoint #{number}"
        elif found["count"]:
            self._goal, told = RunTo(int(found["count"])), f"instruction {found['count']}"
        else:
            whole, _, part = found["time"].partition(".")
            unit_ns = UNITS_NS[found["unit"]]
            self._goal = RunUntil(
                int(whole) * unit_ns + int(part or 0) * unit_ns // 10 ** len(part)
            )
            told = text
        way = way_to(self._goal)
        told += " (ahead: the guest runs on until then, or to its end)" * (
            way.left(self._machine) > 0
        )
        return [f"`continue` goes to {told}, past all breakpoints; monitor goto off: it does not"]

    def stay(self) -> list[str]:
        """Go nowhere."""
        self._goal = None
        return []

    @property
    def is_leaving(self) -> bool:
        """Whether the person wants to go somewhere."""
        return self._goal is not None

    def take_goal(self) -> Goal | None:
        """Where the person wants to go, once."""
        goal, self._goal = self._goal, None
        return goal

    def _line(self, number: int, place: Place) -> str:
        return f"#{number}  {place}, vcpu {place.vcpu_id} at {self._name(place.rip)}"

    def _reach(self) -> str:
        checkpoints = self._history.checkpoints
        if not checkpoints:
            return self._history.limit
        place = checkpoints[0].place
        return f"gdb can go back to instruction {place.instructions}, at {place.now_ns / 1e9:.9f} s"
