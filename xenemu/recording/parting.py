"""Where two runs part: the first line, the first hypercall, and the first instruction.

Two runs of one kernel are compared turn by turn: when each vcpu got its turn, where it was, and its
general registers. The first turn that differs is then searched, in both runs at once, for the
instruction before which they were the same. Runs of different kernels have no instructions in
common; they are compared by what they print, and by what they ask.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final, TypeVar

from xenemu.recording.probe import Ask, Call, Line, Log, Sample, Samples, Turn, View, Views
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SIZE

WAYS: Final = 16  # into which a search divides what is left
STAMP: Final = re.compile(r"^\[ *\d+\.\d+\] ")  # of Linux: when it was printed
T = TypeVar("T", Line, Call)


@dataclass
class Peer:
    """A run that can be asked. `samples` and `views` look at it; its log is of all of it."""

    name: str
    log: Log
    samples: Callable[[Ask], Samples]
    views: Callable[[Ask], Views]


@dataclass(frozen=True)
class Instruction:
    """Where two runs part: as they were before, and after the next instruction, if there is one."""

    before: tuple[View, View]
    after: tuple[View | None, View | None]


@dataclass(frozen=True)
class Parting:
    """Where two runs part; None where they do not. `turn` is the first that differs, in each."""

    lines: tuple[Line | None, Line | None] | None
    calls: tuple[Call | None, Call | None] | None
    turn: tuple[Turn, Turn] | None = None
    instruction: Instruction | None = None
    ends: tuple[str, str] | None = None

    @property
    def is_one(self) -> bool:
        """Whether there is any difference."""
        return any((self.lines, self.calls, self.turn, self.ends))


def part(first: Peer, second: Peer, one_kernel: bool) -> Parting:
    """Compare two runs; `one_kernel`: instruction by instruction."""
    a, b = first.log, second.log
    lines = _first(a.lines, b.lines, lambda line: STAMP.sub("", line.text))
    ends = (a.end, b.end) if a.end != b.end else None
    if not one_kernel:
        return Parting(lines, _first(a.calls, b.calls, lambda call: call.name), ends=ends)
    calls = _first(a.calls, b.calls, lambda call: (call.name, call.args, call.result))
    at = _first_turn(a.turns, b.turns)
    if at is None:
        return Parting(lines, calls, ends=ends)
    if a.turns[at].place == b.turns[at].place:  # one ends there, and the other goes on
        return Parting(lines, calls, ends=(a.end, b.end))
    turn = a.turns[at], b.turns[at]
    return Parting(lines, calls, turn, _Search(first, second, at).find(), ends)


def _first(
    first: Sequence[T], second: Sequence[T], key: Callable[[T], object]
) -> tuple[T | None, T | None] | None:
    """The first two that differ; None stands for a run that had no more."""
    for a, b in zip_longest(first, second):
        if a is None or b is None or key(a) != key(b):
            return a, b
    return None


def _first_turn(a: Sequence[Turn], b: Sequence[Turn]) -> int | None:
    """The first turn that differs; the last of a run is its end, which another may go beyond."""
    for at, (one, other) in enumerate(zip(a, b, strict=False)):
        if one.place != other.place:
            return at
    return None if len(a) == len(b) else min(len(a), len(b)) - 1


class _Search:
    """Looks for the instruction after which two runs part that differ in turn `at`, not before."""

    def __init__(self, first: Peer, second: Peer, at: int) -> None:
        self._peers, self._at = (first, second), at
        self._memory = False  # whether that counts

    def find(self) -> Instruction | None:
        """The instruction; None if one of the runs ends before."""
        begins = 0
        self._memory = self._is_same_in(begins, memory=True)
        if self._memory:
            # Then it lasts from where it began. In registers alone, it may come and go.
            ends = self._at
            while ends - begins > 1:
                middle = (begins + ends) // 2
                if self._is_same_in(middle, memory=True):
                    begins = middle
                else:
                    ends = middle
        else:
            begins, ends = max(0, self._at - 1), self._at
        return self._within(begins, ends)

    def _is_same_in(self, turn: int, memory: bool) -> bool:
        low = self._peers[0].log.turns[turn].instructions
        return self._compare(turn, [low], memory) == [True]

    def _within(self, begins: int, ends: int) -> Instruction | None:
        """The instruction in turn `begins`, before `ends`; or between two turns."""
        logs = [peer.log.turns for peer in self._peers]
        low, high = logs[0][begins].instructions, min(log[ends].instructions for log in logs)
        if ends == 0 or not self._is_same_in(begins, self._memory):
            return self._views(begins, low, low)
        ways = 2 if self._memory else WAYS  # to look at all of memory takes a while
        while high - low > 1:
            points = sorted({low + (high - low) * n // ways for n in range(1, ways)} - {low})
            same = self._compare(begins, points, self._memory)
            differs = next((n for n, each in enumerate(same) if not each), len(points))
            high = points[differs] if differs < len(points) else high
            low = points[differs - 1] if differs else low
        return self._views(begins, low, high)

    def _compare(self, turn: int, points: list[int], memory: bool) -> list[bool]:
        """At which points, of which none is before this turn, the two are the same."""
        first, second = (
            peer.samples(self._ask(peer, turn, points, memory)) for peer in self._peers
        )
        return [one is not None and one == other for one, other in zip(first, second, strict=True)]

    def _ask(
        self, peer: Peer, turn: int, points: list[int], memory: bool, closely: bool = False
    ) -> Ask:
        return Ask(peer.log.turns[turn].turns - 1, points, memory, closely)  # one when it begins

    def _views(self, turn: int, low: int, high: int) -> Instruction | None:
        points = [low, high] if high > low else [low]
        views = [
            peer.views(self._ask(peer, turn, points, self._memory, closely=True))
            for peer in self._peers
        ]
        before = views[0][0], views[1][0]
        if before[0] is None or before[1] is None:
            return None
        after = (views[0][1], views[1][1]) if high > low else (None, None)
        return Instruction((before[0], before[1]), after)


# In words.


def tell(parting: Parting, names: tuple[str, str]) -> list[str]:
    """Say where two runs part."""
    if not parting.is_one:
        return ["The two runs are the same: every turn, every hypercall, every line."]
    found: list[str] = []
    if parting.instruction is not None:
        found += _tell_instruction(parting.instruction, names)
    elif parting.turn is not None:
        found += ["The first turn that differs", *_both(names, [*map(_tell_turn, parting.turn)])]
    if parting.calls is not None:
        found += ["The first hypercall that differs", *_both(names, [*map(_call, parting.calls)])]
    else:
        found += ["All hypercalls are the same."]
    if parting.lines is not None:
        found += ["The first line that differs", *_both(names, [*map(_line, parting.lines)])]
    else:
        found += ["All lines of the console are the same."]
    if parting.ends is not None:
        found += ["They end in different ways", *_both(names, parting.ends)]
    return found


def _both(names: tuple[str, str], texts: Sequence[str]) -> list[str]:
    width = max(map(len, names))
    return [f"  {name:<{width}}  {text}" for name, text in zip(names, texts, strict=True)]


def _tell_turn(turn: Turn) -> str:
    return f"{_when(turn)}, vcpu {turn.vcpu} at {turn.rip:#x}"


def _when(place: Turn | Sample | Line) -> str:
    return f"after {place.instructions} instructions, at {place.now_ns / 1e9:.9f} s"


def _call(call: Call | None) -> str:
    if call is None:
        return "no more"
    args = ", ".join(f"{value:#x}" for value in call.args)
    result = "?" if call.result is None else f"{call.result:#x}"
    return f"{call.name}({args}) = {result}, after {call.instructions} instructions"


def _line(line: Line | None) -> str:
    return "no more" if line is None else f"{line.text!r}, {_when(line)}"


def _tell_instruction(found: Instruction, names: tuple[str, str]) -> list[str]:
    one, other = found.before
    lines = [f"They part {_when(one.sample)}"]
    if one.sample == other.sample:
        lines += [f"  vcpu {one.sample.vcpu} in both, at {one.where}: {one.code}"]
    else:
        places = [f"vcpu {v.sample.vcpu} at {v.where}: {v.code}" for v in found.before]
        lines += ["  between two turns: what came from outside, or a timer, was another"]
        lines += _both(names, places)
    one_after, other_after = found.after
    ahead = one_after or one, other_after or other
    if any(found.after):
        lines += ["  and then", *_both(names, [*map(_tell_after, found.after)])]
    lines += _register_lines(*ahead, names)
    lines += _page_lines(*found.before)
    if one.calls == other.calls:
        return [*lines, "  The last hypercalls, in both", *(f"    {call}" for call in one.calls)]
    for name, view in zip(names, found.before, strict=True):
        lines += [f"  The last hypercalls of {name}", *(f"    {call}" for call in view.calls)]
    return lines


def _tell_after(view: View | None) -> str:
    if view is None:
        return "the run is over"
    return f"vcpu {view.sample.vcpu} at {view.where}, at {view.sample.now_ns / 1e9:.9f} s"


def _register_lines(one: View, other: View, names: tuple[str, str]) -> list[str]:
    differ = [
        f"    {name:<8} {one.registers[name]:016x}  {other.registers[name]:016x}"
        for name in one.registers
        if one.registers[name] != other.registers.get(name, one.registers[name])
    ]
    heading = f"  Registers that differ ({names[0]}, {names[1]})"
    return [heading, *differ] if differ else ["  No register differs."]


def _page_lines(one: View, other: View) -> list[str]:
    """How much of memory was already another before they part."""
    sums = array("I", one.pages), array("I", other.pages)
    differ = [n for n, (a, b) in enumerate(zip(*sums, strict=False)) if a != b]
    if not differ:
        return ["  Memory was the same in both before that."]
    first = ", ".join(f"{n * PAGE_SIZE:#x}" for n in differ[:4])
    more = ", ..." if differ[4:] else ""
    return [f"  Memory differed already in {len(differ)} pages: machine address {first}{more}"]
