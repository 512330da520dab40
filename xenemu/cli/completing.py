"""What a shell asks for when a person presses Tab: typer answers, for bash, zsh and fish.

The scripts that make shells ask are in the wheel (`ship/share.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

# What has the words so far, from the command's own name on: for bash, and for the others.
LINES = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")


def words() -> list[str]:
    """Let typer answer; the words so far, after the command's name."""
    from typer._completion_classes import completion_init  # noqa: PLC0415 (no run wants it)

    completion_init()
    line = next(filter(None, (os.environ.get(name) for name in LINES)), "")
    return line.split()[1:]


Completer = Callable[[str], list[str]]  # from what is typed of a word to what it may become


def among(values: Iterable[str], of_several: bool = False) -> Completer:
    """Complete a word to one of these, or with `of_several`, each of a list with commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if of_several else ("", "", incomplete)
        return [f"{before}{comma}{value}" for value in values if value.startswith(last)]

    return complete
