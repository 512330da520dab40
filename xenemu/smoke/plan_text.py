"""Where things stand in the text of a plan, and what is wrong with text that is no TOML."""

from __future__ import annotations

import io
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from xenemu.errors import UsageError
from xenemu.records import dataclass

BARE: Final = re.compile(
    r"""\s*([\w-]+)\s*=\s*(?=[^#]*[A-Za-z/])([^\s"'\[{#][^"'#]*?)\s*(?:#.*)?"""
)
TWICE: Final = re.compile(r"Cannot declare \('(\w+)',\) twice")
UNCLOSED: Final = "a string has no quote at its end"
PLAINER: Final = {  # than tomllib's words
    "Cannot overwrite a value": "the key is there already",
    "Unescaped '\\' in a string": (
        r"in double quotes, \ begins an escape: write regular expressions in single quotes, '\S+'"
    ),
}


@dataclass(frozen=True)
class Place:
    """A line of a plan; None is the whole file."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class PlanError(UsageError):
    """A plan is wrong: `problem`, and the `place`."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem


def toml_error(file: str, text: str, problem: str) -> PlanError:
    if re.match("Expected \"'|Unterminated string", problem):
        *_, (number, _) = statements(text)
        return PlanError(Place(file, number), UNCLOSED)
    found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", problem)
    if not found:
        return PlanError(Place(file), problem)
    number = int(found[2])
    if found[1] == "Illegal character '\\n'":
        return PlanError(Place(file, number), UNCLOSED)
    bare = BARE.fullmatch(text.split("\n")[number - 1])
    if bare:
        wanted = json.dumps(bare[2], ensure_ascii=False)
        return PlanError(Place(file, number), f"strings want quotes: {bare[1]} = {wanted}")
    twice = TWICE.fullmatch(found[1])
    if twice:
        problem = f"there are several: begin each with [[{twice[1]}]]"
        return PlanError(Place(file, number), problem)
    return PlanError(Place(file, number), PLAINER.get(found[1], found[1]))


def line_of(text: str, place: tuple[Any, ...]) -> int | None:
    """The line on which the statement begins that gives `place` a value.

    tomllib does not tell. But a beginning of the file that is itself TOML either has `place` or
    does not. The first beginning that has it ends with that statement.
    """
    lines, start = list(io.StringIO(text)), 1
    for end in range(1, len(lines) + 1):
        try:
            value: Any = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # inside a value of several lines
        try:
            for part in place:
                value = value[part]
        except (KeyError, IndexError, TypeError):
            start = end + 1
        else:
            return start
    return None


def boot_lines(text: str) -> Iterator[int]:
    """The line on which each boot begins."""
    for start, statement in statements(text):
        tables = statement.get("boot")
        yield from (start for _ in tables) if isinstance(tables, list) else ()


def statements(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line on which each statement begins, and what it says; nothing for one without an end.

    The lines from the end of a statement that are TOML are the next statement.
    """
    statement, start = "", 1
    for end, line in enumerate(io.StringIO(text), 1):
        statement += line
        try:
            said = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # inside a value of several lines
        yield start, said
        statement, start = "", end + 1
    if statement:
        yield start, {}
