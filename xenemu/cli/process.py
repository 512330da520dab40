"""The command as a process: its signals, its standard streams and its exit code.

Standard output has what was asked for. If it can no longer be written, that is an error. Standard
error has everything else. If it can no longer be written, nobody can be told, and nothing else
changes.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TextIO

from xenemu.cli import inherited, main
from xenemu.cli.signals import Interrupted, handled, interrupt
from xenemu.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDERR: Final = 2


def command() -> int:
    """Run the command with this process's arguments, and return its exit code."""
    inherited.note()
    _fill_standard_descriptors()
    sys.stdout = _stream(sys.stdout, _is_an_error)
    sys.stderr = _stream(sys.stderr, lambda error: None)
    try:
        with handled(interrupt):
            return main()
    except Interrupted as interrupted:
        return 128 + interrupted.signum


def _fill_standard_descriptors() -> None:
    """Open the standard descriptors that are closed, lest a file gets one of their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)


def _is_an_error(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        raise Interrupted(signal.SIGPIPE)
    raise OutputError(f"standard output: {error.strerror}")


class _Stream(io.FileIO):
    """Writes to a descriptor; after the first failure, which is told, to nowhere."""

    def __init__(self, descriptor: int, failed: Callable[[OSError], None]) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._failed = failed
        self._dead = False

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            if not self._dead:
                return super().write(data)
        except OSError as error:
            self._dead = True
            self._failed(error)
        return memoryview(data).nbytes


def _stream(before: TextIO | None, failed: Callable[[OSError], None]) -> TextIO | None:
    """A standard stream; it calls `failed` when it can no longer be written.

    What its encoding lacks is escaped. None: it was closed when this process began.
    """
    if before is None:
        return None
    raw = _Stream(before.fileno(), failed)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), before.encoding, "backslashreplace", line_buffering=True
    )
