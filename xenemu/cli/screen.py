"""What the place can do that a command's messages go to: one answer for all commands.

There are three kinds of place. One is no terminal: a file, a pipe, a job's log. One is a terminal
that only goes on: an editor's shell, a serial line (``TERM=dumb``). On the third, a line can be
drawn anew.
"""

from __future__ import annotations

import os
import sys
from typing import Final, TextIO

ONLY_GO_ON: Final = {"", "dumb", "unknown"}  # values of TERM


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person reads the stream, standard error if none is given."""
    stream = sys.stderr if stream is None else stream
    return stream is not None and stream.isatty()  # it may have been closed from the start


def redraws(stream: TextIO | None = None) -> bool:
    """Whether lines on it can be erased and written anew."""
    return is_terminal(stream) and os.environ.get("TERM", "") not in ONLY_GO_ON
