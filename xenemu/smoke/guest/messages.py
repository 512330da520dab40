"""What a guest's process answers, beside results: data of known kinds; see `smoke.wire`."""

from __future__ import annotations

from dataclasses import field
from typing import Final

from xenemu.errors import (
    EngineError,
    FitError,
    ImageError,
    NoSuchName,
    OutputError,
    Unmapped,
    UsageError,
    XenemuError,
)
from xenemu.image.values import Plain
from xenemu.kernel import LoadedModule, Task
from xenemu.linux import LogLine
from xenemu.records import dataclass
from xenemu.smoke.copies import ANSWERS
from xenemu.smoke.results import Result


@dataclass(frozen=True)
class Found:
    """What an expectation matched: the text, its groups, and the named ones of them."""

    text: str
    groups: tuple[str | None, ...] = ()
    named: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A request that was not done: an exception of ERRORS by its name, or a bug's traceback."""

    sentence: str
    error: str = ""


@dataclass(frozen=True)
class Data:
    """Bytes of the guest's memory."""

    data: bytes


@dataclass(frozen=True)
class Number:
    """A number."""

    number: int


@dataclass(frozen=True)
class Moment:
    """How far the guest has come."""

    virtual_ns: int
    instructions: int


@dataclass(frozen=True)
class Tasks:
    """The kernel's tasks, and what is wrong with the list."""

    found: list[Task]
    trouble: str


@dataclass(frozen=True)
class Modules:
    """The kernel's modules, and what is wrong with the list."""

    found: list[LoadedModule]
    trouble: str


@dataclass(frozen=True)
class Log:
    """The kernel's log."""

    lines: list[LogLine]


@dataclass(frozen=True)
class Thing:
    """What is at an address, by a type of the kernel's: a number, text, or something with parts.

    `enumerator` is its name if it is an enumeration's; `length` is an array's.
    """

    type: int
    spelling: str
    address: int
    size: int
    plain: Plain
    enumerator: str
    pointer: int | None
    length: int | None


@dataclass(frozen=True)
class Members:
    """The names of an object's members."""

    names: list[str]


# `str` and None: texts, and what has no answer but that it is done.
KINDS: Final = (
    *(str, type(None), Result, *ANSWERS),
    *(Found, Problem, Data, Number, Moment, Tasks, Modules, Log, Thing, Members),
)
# What a guest's process may have its asker raise. PlanError is a UsageError here.
ERRORS: Final[dict[str, type[XenemuError]]] = {
    kind.__name__: kind
    for kind in (
        *(UsageError, NoSuchName, Unmapped),
        *(ImageError, FitError, OutputError, EngineError),
    )
}


def problem(error: XenemuError) -> Problem:
    """An exception as a message: its nearest kind of ERRORS."""
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS]
    return Problem(str(error), names[0] if names else UsageError.__name__)


def raised(problem: Problem) -> Exception:
    """The exception that a message stands for; RuntimeError for a bug."""
    kind = ERRORS.get(problem.error)
    return RuntimeError(problem.sentence) if kind is None else kind(problem.sentence)
