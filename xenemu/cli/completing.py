"""What a shell asks for when a person presses Tab: typer answers, for bash, zsh and fish.

The scripts that make shells ask are in the wheel (`ship/share.py`).
"""

from __future__ import annotations

import os

from typer._completion_classes import completion_init

# What has the words so far, from the command's own name on: for bash, and for the others.
LINES = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")


def words() -> list[str]:
    """Let typer answer; the words so far, after the command's name."""
    completion_init()
    line = next(filter(None, (os.environ.get(name) for name in LINES)), "")
    return line.split()[1:]
