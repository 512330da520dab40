r"""The syntax of xl's configuration files: names, strings, numbers, lists of them.

A file is a row of statements such as ``memory = 512`` or ``disk += ["/x.img,raw,xvda,rw"]``. The
end of its line or a semicolon ends each. A statement may set a name again; ``+=`` adds to what the
name has. A list may have line ends and comments in it, and a comma after its last value.

In Xen: tools/libs/util/libxlu_cfg_l.l, libxlu_cfg_y.y. DIVERGES: a comment may end the file without
the end of a line, which xl takes for an error; and a character by its number (``"\x41"``) is an
error here, because xl 4.17 does not read these as its authors meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from xenemu.errors import UsageError
from xenemu.records import dataclass

Value = str | list[str]

TOKEN: Final = re.compile(
    r"""
    (?P<space>   [ \t]+ )
  | (?P<end>     \n | \#[^\n]*(?:\n|\Z) )
  | (?P<name>    [a-z][_0-9a-z]* )
  | (?P<number>  [0-9][0-9a-fx]* )
  | (?P<string>  '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*" )
  | (?P<sign>    \+= | [][=,;] )
    """,
    re.VERBOSE,
)
ESCAPES: Final = dict(zip("abfnrtv\"'\\", "\a\b\f\n\r\t\v\"'\\", strict=True))
ENDS: Final = ("end", ";", "")  # of a statement


class Token(NamedTuple):
    """A piece of a file: `kind` is that of `TOKEN`, or the sign itself; at the end, ``""``."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True)
class Setting:
    """What a name has in the end, and the line on which it was last set."""

    value: Value
    line: int


def parse(file: str, text: str) -> dict[str, Setting]:
    """Each name that `text` sets; UsageError begins with `file` and the line."""
    return _Parser(file, text).settings()


class _Parser:
    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.tokens = list(self._split(text))
        self.at = 0

    def settings(self) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        while self._peek().kind:
            if self._peek().kind in ENDS:
                self._take()
                continue
            name = self._expect("name", "a name: name = value")
            sign = self._take()
            if sign.kind not in ("=", "+="):
                raise self._error(name.line, f"{name.text}: give it a value: {name.text} = ...")
            value = self._value(name.text)
            if sign.kind == "+=" and name.text in found:
                value = self._sum(name, found[name.text].value, value)
            found[name.text] = Setting(value, name.line)
            after = self._take()
            if after.kind not in ENDS:
                raise self._error(after.line, f"{after.text}: one statement a line, or put ; there")
        return found

    def _sum(self, name: Token, had: Value, added: Value) -> Value:
        if isinstance(had, str) and isinstance(added, str):
            return had + added
        if isinstance(had, list) and isinstance(added, list):
            return had + added
        raise self._error(name.line, f"{name.text}: a string and a list cannot be added")

    def _value(self, name: str) -> Value:
        if self._peek().kind == "[":
            return self._list()
        return self._atom(f"{name}: give a number, a string in quotes, or a list in brackets")

    def _list(self) -> list[str]:
        opened, values = self._take(), []
        while self._next_in(opened).kind != "]":
            values.append(self._atom("give a number or a string in quotes, or end the list with ]"))
            after = self._next_in(opened)
            if after.kind not in (",", "]"):
                raise self._error(after.line, f"{after.text}: a comma is missing")
            if after.kind == ",":
                self._take()
        self._take()
        return values

    def _next_in(self, opened: Token) -> Token:
        """What comes next in the list that `opened` began."""
        if not self._skip_ends().kind:
            raise self._error(opened.line, "a list has no ] at its end")
        return self._peek()

    def _atom(self, wanted: str) -> str:
        token = self._take()
        if token.kind == "number":
            return token.text
        if token.kind == "string":
            return re.sub(r"\\(.)", lambda found: self._escape(token, found[1]), token.text[1:-1])
        shown = "" if token.kind in ENDS else f"{token.text}: "
        raise self._error(token.line, shown + wanted)

    def _escape(self, token: Token, letter: str) -> str:
        if letter not in ESCAPES:
            known = " ".join(f"\\{one}" for one in ESCAPES)
            raise self._error(token.line, f"\\{letter}: of escapes there are {known}")
        return ESCAPES[letter]

    def _expect(self, kind: str, wanted: str) -> Token:
        token = self._take()
        if token.kind != kind:
            raise self._error(token.line, f"{token.text}: give {wanted}")
        return token

    def _peek(self) -> Token:
        return self.tokens[self.at]

    def _take(self) -> Token:
        token = self.tokens[self.at]
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def _skip_ends(self) -> Token:
        while self._peek().kind == "end":
            self._take()
        return self._peek()

    def _split(self, text: str) -> Iterator[Token]:
        at, line = 0, 1
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                raise self._lexical(text[at:].partition("\n")[0], line)
            kind = str(found.lastgroup)
            if kind != "space":
                yield Token(found[0] if kind == "sign" else kind, found[0], line)
            at, line = found.end(), line + found[0].count("\n")
        yield Token("", "", line)

    def _lexical(self, rest: str, line: int) -> UsageError:
        if rest[0] in "'\"":
            return self._error(line, "a string has no quote at its end")
        if rest[0] == "\r":
            return self._error(line, "xl does not take line ends of DOS; write the file anew")
        if rest[0] in "+-.():":
            return self._error(
                line, f"{rest}: xl reads no Python: numbers are whole, and all else has quotes"
            )
        if rest[0].isupper():
            return self._error(line, f"{rest}: names are in small letters, values in quotes")
        return self._error(line, f"{rest}: this is no part of a configuration for xl")

    def _error(self, line: int, problem: str) -> UsageError:
        return UsageError(f"{self.file}:{line}: {problem}")
