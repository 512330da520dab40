"""Dataclasses of xenemu's own are as Python's, however often their methods are called."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import field, replace

import pytest

from xenemu import records

DECORATORS = (dataclasses.dataclass, records.dataclass)
OFTEN = records.FILLED + 2


class Base:
    """What both kinds are derived from."""


def kinds(**options):
    """The same class by Python's dataclass and by xenemu's."""
    for decorate in DECORATORS:

        @decorate(**options)
        class Kind(Base):
            """A record."""

            first: int
            second: str = "two"
            third: list[int] = field(default_factory=list, compare=False)
            hidden: int = field(default=4, repr=False)
            later: int = field(init=False, default=5)
            made: list[int] = field(init=False, default_factory=list)

            def __post_init__(self) -> None:
                self.made.append(self.first)

        yield Kind


def answer(function):
    """What a call comes to, so that two can be compared."""
    try:
        return function()
    except (TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


CALLS = (
    ((1,), {}),
    ((1, "2", [3], 4), {}),
    ((), {"second": "2", "first": 1}),
    ((1,), {"hidden": 7}),
    ((), {}),
    ((1,), {"first": 1}),
    ((1,), {"unknown": 1}),
    ((1,), {"later": 1}),
    ((1, "2", [3], 4, 5), {}),
)


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"eq": False}])
def test_instances_are_made_as_by_python(options: dict[str, bool]) -> None:
    python, own = kinds(**options)
    for n in range(OFTEN):
        for args, named in CALLS:
            told = [
                answer(lambda kind=kind: list(vars(kind(*args, **named)).items()))  # noqa: B023
                for kind in (python, own)
            ]
            assert told[0] == told[1], (n, args, named)


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"eq": False}])
def test_an_error_in_the_first_call_is_pythons_too(options: dict[str, bool]) -> None:
    for args, named in CALLS:
        python, own = kinds(**options)
        assert answer(lambda: vars(python(*args, **named))) == answer(  # noqa: B023
            lambda: vars(own(*args, **named))  # noqa: B023
        )


@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"eq": False}])
def test_methods_do_what_pythons_do(options: dict[str, bool]) -> None:
    told = []
    for kind in kinds(**options):
        one, two, same = kind(1), kind(2), kind(1, third=[9])

        def assign(one=one):
            one.second = "new"
            return one.second

        def delete(one=one):
            del one.second
            return vars(one)

        told.append(
            [
                one == two,
                one == same,
                one != same,
                one == 1,
                answer(lambda: hash(one) == hash(same)),  # noqa: B023
                answer(lambda: hash(one) == hash(two)),  # noqa: B023
                repr(one),
                repr(one),
                repr(replace(one, first=3)),
                repr(copy.deepcopy(one)),
                dataclasses.asdict(one),
                dataclasses.is_dataclass(kind),
                [each.name for each in dataclasses.fields(kind)],
                kind.__match_args__,
                answer(assign),
                answer(delete),
                kind.__init__.__qualname__,
                kind.__hash__ is None,
            ]
        )
    assert told[0] == told[1]


def test_fields_are_inherited_as_by_python() -> None:
    told = []
    for decorate in DECORATORS:

        @decorate(frozen=True)
        class Parent:
            """Has two fields."""

            first: int
            second: int = 2

        @decorate(frozen=True)
        class Child(Parent):
            """Has one more, and another default."""

            second: int = 3
            third: int = 4

        class Plain(Child):
            """No dataclass."""

        made = [Parent(1), Child(1), Plain(1, third=5)]
        told.append([*map(repr, made), made[0] == made[1], made[1] == Child(1), hash(made[1])])
        with pytest.raises(dataclasses.FrozenInstanceError):
            made[2].third = 6
        made[2].more = 7
        assert made[2].more == 7
    assert told[0] == told[1]


def test_methods_of_the_class_stay() -> None:
    told = []
    for decorate in DECORATORS:

        @decorate(frozen=True)
        class Kind:  # noqa: PLW1641 (Python makes its hash)
            """Has methods of its own."""

            first: int

            def __repr__(self) -> str:
                return "mine"

            def __eq__(self, other: object) -> bool:
                return True

        told.append([repr(Kind(1)), Kind(1) == Kind(2), hash(Kind(1)) == hash(Kind(1))])
    assert told[0] == told[1]


@records.dataclass(frozen=True)
class Portable:
    """Known by its name, so that it can be pickled."""

    first: int


def test_an_instance_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Portable(1))) == Portable(1)


def test_without_instances_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(dataclasses, "_create_fn", lambda *args: compiled.append(args))

    @records.dataclass(frozen=True)
    class Kind:
        """A record."""

        first: int

    Kind(1)
    assert compiled == []
