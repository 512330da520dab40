"""Run a command; note when its output reaches each milestone, and what it cost until then."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BANNER, INIT, DONE, EXIT = "Linux version", "init", "init's last line", "exit"
MILESTONES = {
    BANNER: b"Linux version ",
    INIT: b"Run /init as init process",
    DONE: b"INIT-DONE",  # what guests/linux-init prints before it powers off
}
TIMEOUT = 300.0  # seconds; the slowest subject needs about 10 on a present machine

_WINDOW = 4096  # bytes of output that are kept: a milestone may come in pieces
_LIBC = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """There is nothing to compare; `str()` is one line that says why."""


@dataclass(frozen=True)
class Cost:
    """Seconds since a process started: its own, on all its threads, and the wall clock's."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Run:
    """What a process cost until each milestone and until its `EXIT`, and its most memory."""

    at: Mapping[str, Cost]
    peak_bytes: int

    @property
    def peak_mib(self) -> float:
        """Its most memory, in MiB."""
        return self.peak_bytes / (1 << 20)


class Scanner:
    """Finds each milestone once in a stream that comes in arbitrary pieces."""

    def __init__(self, milestones: Mapping[str, bytes]) -> None:
        self.pending = dict(milestones)
        self.window = b""

    def feed(self, piece: bytes) -> list[str]:
        """Return the milestones that `piece` completes."""
        text = self.window + piece
        found = [name for name, pattern in self.pending.items() if pattern in text]
        for name in found:
            del self.pending[name]
        self.window = text[-_WINDOW:]
        return found


def measure(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    milestones: Mapping[str, bytes] = MILESTONES,
    timeout: float = TIMEOUT,
    last: str = EXIT,
    key: bytes = b"",
) -> Run:
    """Run `command` in `directory` to its end, or to the milestone `last`, where it is killed.

    With a `key`, the process waits for it at each milestone, and gets it once the cost is noted.

    Raises `BenchError` if it cannot be run, takes over `timeout` seconds of wall clock, exits
    with anything but 0, or misses a milestone.
    """
    with tempfile.TemporaryFile() as complaints:
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE if key else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
            )
        except OSError as error:
            raise BenchError(f"{command[0]}: {error.strerror}") from None
        deadline = threading.Timer(timeout, process.kill)
        deadline.start()
        scanner = Scanner(milestones)
        try:
            at = _follow(process, scanner, start, last, key)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            deadline.cancel()
            if process.stdin:
                process.stdin.close()
            if process.returncode is None:  # interrupted
                process.kill()
        reached = set(at)
        at[EXIT] = Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - start)
        failed = process.returncode and last not in reached
        if failed or scanner.pending:
            complaints.seek(0)
            last_words = complaints.read().strip() or scanner.window.strip()
            raise BenchError(_failure(process.returncode, at[EXIT], scanner, last_words))
    return Run(at, usage.ru_maxrss * 1024)


def _follow(
    process: subprocess.Popen[bytes], scanner: Scanner, start: float, last: str, key: bytes
) -> dict[str, Cost]:
    assert process.stdout
    at = {}
    with process.stdout:
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            for name in scanner.feed(piece):
                at[name] = Cost(cpu_seconds(process.pid), time.monotonic() - start)
                if name == last:
                    process.kill()
                elif process.stdin:
                    with suppress(BrokenPipeError):  # it is told of when its end is seen
                        os.write(process.stdin.fileno(), key)
    return at


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, to better than the 10 ms of /proc/PID/stat."""
    clock = ctypes.c_int()
    error = _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def _failure(code: int, end: Cost, scanner: Scanner, last_words: bytes) -> str:
    lines = last_words.decode(errors="replace").splitlines()
    missing = f" before {next(iter(scanner.pending))!r}" if scanner.pending else ""
    ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{ended} after {end.wall:.1f} s{missing}: {lines[-1] if lines else 'no output'}"
