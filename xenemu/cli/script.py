"""What is typed at a guest's console by a script: after what it shows, or at a time of its own.

A script's input comes at the same instruction in every run, since nothing in it depends on the
host. It is plain data, a list of words and texts, so a recording has it, too:

* ``expect``: go on when the console has shown this regular expression, after the match before it
* ``send``: type this
* ``at``: go on when the guest's clock shows so many nanoseconds
* ``wait``: let so many nanoseconds of the guest's pass
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from xenemu.cli.searching import WINDOW, search
from xenemu.errors import UsageError
from xenemu.options import parse_pattern, seconds_in

EXPECT, SEND, AT, WAIT = "expect", "send", "at", "wait"
LINE: Final = "sendline"  # in a file: `send`, and a line end
WORDS: Final = (EXPECT, SEND, LINE, AT, WAIT)
MAX_FILE: Final = 1 << 20  # bytes
ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", "e": "\x1b", "\\": "\\"}
TIME: Final = re.compile(r"[0-9]{1,18}", re.ASCII)  # in nanoseconds

Part = tuple[str, str]  # a word of the list above, and its text


class Script:
    """Follows a console, and types; `ends`: with its last part, the run has had its success.

    `begin` it with the guest's clock before the guest prints anything.
    """

    def __init__(self, parts: Sequence[Part], ends: bool = False) -> None:
        self.parts, self.ends = tuple(parts), ends
        self._left = deque(parts)
        self._tail = ""  # of the console
        self._searched = 0  # how much of it lies before the last match
        self._is_new = True  # something was printed since the last search that found nothing
        self._typed = bytearray()
        self._since_ns: int | None = None  # an `at` or a `wait` is first, and was met then
        self._clock: Callable[[], int] = int
        self._tell: Callable[[str], None] = lambda _sentence: None

    def begin(self, clock: Callable[[], int], tell: Callable[[str], None] | None = None) -> None:
        """Follow a guest with this clock, in ns; `tell` gets a sentence for an `at` too late."""
        self._clock, self._tell = clock, tell or self._tell
        self._advance()

    @property
    def unmet(self) -> list[str]:
        """The expressions that the console has not shown in their turn."""
        return [text for word, text in self._left if word == EXPECT]

    @property
    def comes_by_itself(self) -> bool:
        """Whether more is to be typed before the console shows anything."""
        return self.due_ns is not None

    @property
    def due_ns(self) -> int | None:
        """When it goes on by itself; None if it waits for the console, or is over."""
        self._advance()
        if self._typed:
            return self._clock()
        if not self._left or self._left[0][0] == EXPECT:
            return None
        word, text = self._left[0]
        return int(text) if word == AT else (self._since_ns or 0) + int(text)

    def take(self) -> bytes:
        """What is to be typed now."""
        self._advance()
        typed = bytes(self._typed)
        self._typed.clear()
        return typed

    def feed(self, text: str) -> None:
        """Look at more of the console, as plain text."""
        self._tail += text
        self._is_new = True
        self._advance()
        # One character more than the window, so that ^ does not match where it was cut.
        cut = max(0, len(self._tail) - WINDOW - 1)
        self._tail = self._tail[cut:]
        self._searched = max(1 if cut else 0, self._searched - cut)

    def _advance(self) -> None:
        while self._left and self._is_done(*self._left[0]):
            self._left.popleft()
            self._since_ns = None

    def _is_done(self, word: str, text: str) -> bool:
        """Do the first part, if it is time."""
        match word:
            case "expect":
                if not self._is_new:
                    return False
                found = search(re.compile(text, re.MULTILINE), self._tail, self._searched)
                if found:
                    self._searched = max(found.end(), found.start() + 1)
                self._is_new = found is not None  # the next one may be in the rest
                return self._is_new
            case "send":
                self._typed += os.fsencode(text)
            case "at" | "wait":
                is_met_now = self._since_ns is None
                if self._since_ns is None:
                    self._since_ns = self._clock()
                if word == WAIT:
                    return self._clock() >= self._since_ns + int(text)
                if is_met_now and self._since_ns > int(text):
                    self._tell(_late(int(text), self._since_ns))
                return self._clock() >= int(text)
        return True


def _late(due_ns: int, now_ns: int) -> str:
    return (
        f"the script's at {due_ns / 1e9:g}s comes too late: the guest's clock shows"
        f" {now_ns / 1e9:.6f}s; the script goes on at once"
    )


def pairs(expects: Sequence[str], sends: Sequence[str], order: Sequence[str]) -> Script:
    """The script that ``--expect`` and ``--send`` say: each text after the expression before it.

    `order` has the options' names as they were typed. UsageError.
    """
    values = {"expect": iter(expects), "send": iter(sends)}
    parts: list[Part] = []
    for name in order:
        if name not in values:
            continue
        text = next(values[name])
        if name == "send":
            if not parts:
                raise UsageError(f"--send {text}: say after which --expect")
            parts.append((SEND, unescaped(text, "--send")))
        else:
            parts.append((EXPECT, _pattern(text, "--expect")))
    return Script(parts, ends=parts[-1][0] == EXPECT)


def read_script(option: str, path: Path) -> Script:
    """The script in a file; UsageError says in which line it is wrong."""
    if str(path) == "-":
        raise UsageError(
            f"{option} -: standard input is typed without {option}; a script must be a file"
        )
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise UsageError(f"{option} {path}: longer than {MAX_FILE >> 20} MiB, so no script")
    parts: list[Part] = []
    for number, line in enumerate(os.fsdecode(data).split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            parts += _parts(f"{option} {path}:{number}:", line.removesuffix("\r"))
    return Script(parts)


def checked(where: str, parts: Sequence[Part]) -> Sequence[Part]:
    """A script from a recording; UsageError: it is none."""
    for word, text in parts:
        if word == EXPECT:
            _pattern(text, f"{where}: its script:")
        elif word != SEND and not TIME.fullmatch(text):
            raise UsageError(f"{where}: its script makes no sense: {word} {text!r}")
    return parts


def _parts(where: str, line: str) -> list[Part]:
    word, _, text = line.partition(" ")
    if word not in WORDS:
        raise UsageError(f"{where} {word!r} is no word of a script; there are {', '.join(WORDS)}")
    if word == EXPECT:
        return [(EXPECT, _pattern(text, where))]
    if word in (SEND, LINE):
        return [(SEND, unescaped(text, where) + ("\n" if word == LINE else ""))]
    seconds = seconds_in(text.strip())
    if seconds is None:
        raise UsageError(f"{where} {word}: give seconds of the guest's time, as in 1.5s")
    return [(word, str(round(seconds * 1e9)))]


def _pattern(text: str, where: str) -> str:
    try:
        return parse_pattern(text).pattern
    except ValueError as error:
        raise UsageError(f"{where} {error}") from None


def unescaped(text: str, where: str) -> str:
    r"""A text with ``\n``, ``\r``, ``\t``, ``\e``, ``\\`` and ``\xHH`` as what they stand for."""

    def stands_for(match: re.Match[str]) -> str:
        word = match[1]
        if word in ESCAPED:
            return ESCAPED[word]
        if len(word) == 3:
            return os.fsdecode(bytes([int(word[1:], 16)]))
        known = ", ".join(f"\\{each}" for each in ESCAPED)
        raise UsageError(f"{where} {text}: there is no \\{word}; there are {known} and \\xHH")

    return ESCAPE.sub(stands_for, text)
