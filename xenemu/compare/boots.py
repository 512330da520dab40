"""What boots have in common: the code that ran, its order, and what each asks of the platform.

All boots are of one kernel, by several entries, or of two kernels by the same entry. Functions are
told apart by their names, because two kernels have them at different addresses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import field
from functools import cached_property, reduce
from typing import Final

from xenemu.coverage import Coverage
from xenemu.records import dataclass

MILESTONES: Final = ("start_kernel", "rest_init", "kernel_init", "run_init_process")
NEAR: Final = 50  # functions after a join, ...
MOSTLY: Final = 2 / 3  # ... of which so many are common to all


@dataclass(frozen=True)
class Boot:
    """One boot, by `name`; what it asked of the platform is counted, or listed, by its kind."""

    name: str
    end: str
    instructions: int
    coverage: Coverage
    asked: dict[str, Counter[str]] = field(default_factory=dict)
    memory_map: tuple[str, ...] = ()

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Its functions in the order in which they first ran."""
        return tuple(dict.fromkeys(function.label for function in self.coverage.functions))

    @cached_property
    def first(self) -> dict[str, int]:
        """How many instructions had run before each function."""
        found: dict[str, int] = {}
        for function in self.coverage.functions:
            found.setdefault(function.label, function.at)
        return found

    def until(self, milestone: str | None) -> frozenset[str]:
        """The functions that ran before `milestone` did, or all; none if it never ran."""
        if milestone is None:
            return frozenset(self.order)
        if milestone not in self.first:
            return frozenset()
        return frozenset(self.order[: self.order.index(milestone)])


@dataclass(frozen=True)
class Share:
    """How many functions run in which boots, up to a milestone; to the end if that is None."""

    milestone: str | None
    total: int
    common: int
    by: dict[tuple[str, ...], int]  # the names of exactly those who run them


@dataclass(frozen=True)
class Row:
    """A step in the boots' order: a function that all run there, or what each runs alone."""

    common: str | None
    apart: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Boots beside each other; at least two, of different names."""

    boots: tuple[Boot, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(boot.name for boot in self.boots)

    def share(self, milestone: str | None = None) -> Share:
        """How much of the code is run by all, by some, and by one only."""
        sets = [boot.until(milestone) for boot in self.boots]
        by: Counter[tuple[str, ...]] = Counter()
        for function in frozenset().union(*sets):
            by[
                tuple(name for name, own in zip(self.names, sets, strict=True) if function in own)
            ] += 1
        return Share(milestone, by.total(), by[self.names], dict(sorted(by.items(), key=_most)))

    @property
    def milestones(self) -> list[str]:
        """What every boot reaches, of the well-known stations of a boot of Linux."""
        return [name for name in MILESTONES if all(name in boot.first for boot in self.boots)]

    def only(self, name: str) -> list[str]:
        """What one boot alone runs, in its order."""
        others = frozenset().union(*(b.order for b in self.boots if b.name != name))
        boot = next(boot for boot in self.boots if boot.name == name)
        return [function for function in boot.order if function not in others]

    @cached_property
    def spine(self) -> tuple[str, ...]:
        """What all run in the same order: a long common subsequence of their orders."""
        return reduce(_longest_common, [boot.order for boot in self.boots])

    def rows(self, count: int) -> list[Row]:
        """The order of their functions side by side, until each boot has shown `count`.

        What all run in the same order stands in rows of its own. Between two of these rows each
        boot has what it runs there.
        """
        orders = [boot.order for boot in self.boots]
        rows, at = [], [0] * len(orders)
        for function in self.spine:
            ends = [order.index(function, start) for order, start in zip(orders, at, strict=True)]
            rows += _apart(orders, at, ends)
            at = [end + 1 for end in ends]
            if min(at) > count:
                return rows
            rows.append(Row(function))
        return rows + _apart(orders, at, [len(order) for order in orders])

    @cached_property
    def join(self) -> str | None:
        """The first function that all run and after which nearly all is common."""
        common = frozenset.intersection(*(frozenset(boot.order) for boot in self.boots))
        for function in self.spine:
            if all(_goes_on(boot.order, function, common) for boot in self.boots):
                return function
        return None

    def unreached(self, functions: Iterable[str]) -> list[str]:
        """Those of `functions`, such as a kernel's init code, that no boot ran."""
        ran = frozenset().union(*(boot.order for boot in self.boots))
        return [function for function in functions if function not in ran]

    def asked(self, kind: str) -> dict[str, tuple[int, ...]]:
        """What was asked of the platform, such as hypercalls, and how often by each boot."""
        counters = [boot.asked.get(kind, Counter()) for boot in self.boots]
        every = sorted(set().union(*counters))
        return {what: tuple(counter[what] for counter in counters) for what in every}

    @property
    def kinds(self) -> list[str]:
        """The kinds that `asked` knows of."""
        return list(dict.fromkeys(kind for boot in self.boots for kind in boot.asked))


def _most(item: tuple[tuple[str, ...], int]) -> tuple[int, int]:
    return -len(item[0]), -item[1]


def _longest_common(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    """The longest common subsequence of two sequences without repetitions.

    It is the longest run of names in `one` whose places in `other` ascend. `ends` has the last
    place of the best such run of each length, and `before` the name that each name then follows.
    """
    places = {name: place for place, name in enumerate(other)}
    ends: list[int] = []
    last: list[str] = []
    before: dict[str, str | None] = {}
    for name in one:
        if (place := places.get(name)) is None:
            continue
        length = bisect_left(ends, place)
        before[name] = last[length - 1] if length else None
        ends[length : length + 1], last[length : length + 1] = [place], [name]
    found, name_at = [], last[-1] if last else None
    while name_at is not None:
        found.append(name_at)
        name_at = before[name_at]
    return tuple(reversed(found))


def _apart(
    orders: Sequence[Sequence[str]], starts: Sequence[int], ends: Sequence[int]
) -> list[Row]:
    pieces = tuple(
        tuple(order[start:end]) for order, start, end in zip(orders, starts, ends, strict=True)
    )
    return [Row(None, pieces)] if any(pieces) else []


def _goes_on(order: Sequence[str], function: str, common: frozenset[str]) -> bool:
    at = order.index(function)
    following = order[at : at + NEAR]
    return sum(name in common for name in following) >= MOSTLY * len(following)
