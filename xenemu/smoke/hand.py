"""What a worker of an executor does: it runs boots as `runner` does, in a process of its own.

A worker may be anything: a process with threads, or a daemon that may have no children. So boots
have a hand: a fresh Python, with a nursery, that a thread of the worker starts with its first boots
and keeps. It ends with the worker, and so do its boots.
"""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

from xenemu import __version__
from xenemu.errors import XenemuError
from xenemu.records import dataclass
from xenemu.smoke import cargo, runner
from xenemu.smoke.cargo import Load
from xenemu.smoke.nursery import Nursery
from xenemu.smoke.results import Result
from xenemu.smoke.runner import Unseen
from xenemu.smoke.verdict import Finding, Verdict

OWN: Final = threading.local()  # `hand` is that of this thread


@dataclass(frozen=True)
class Lacks:
    """Nothing was booted, as files are not kept here; by their digests."""

    place: str
    digests: tuple[str, ...]


# What an executor is given to call. Its arguments and what it returns are pickled. Each call has a
# number, because Dask takes two calls with the same arguments for one, and does that once.


def boot(number: int, version: str, load: Load) -> list[Result] | Lacks:
    """Run boots, one at a time, if all of their files are here."""
    if version != __version__:
        why = f"this worker has xenemu {__version__}, and {version} is wanted"
        return _none(load, Verdict.XENEMU, why)
    try:
        if lacks := cargo.lacking(load.entries):
            return Lacks(cargo.place(), tuple(lacks))
    except (OSError, XenemuError) as error:
        return _none(load, Verdict.IMAGE, f"this worker's cache: {error}")
    hand = getattr(OWN, "hand", None) or Hand()
    OWN.hand = None
    results = hand.run(load)
    OWN.hand = hand  # which is as it should be
    return results


def keep(number: int, digest: str, data: bytes) -> str:
    """Keep a file here; why it cannot be, or nothing."""
    try:
        cargo.keep(digest, data)
    except (OSError, XenemuError, ValueError) as error:
        return str(error)
    return ""


def _none(load: Load, verdict: Verdict, why: str) -> list[Result]:
    return [Result(each, [Finding(verdict, why)]) for each in load.boots]


def at_home(result: Result, paths: Mapping[str, str]) -> Result:
    """A result with the paths that its boot has where it was asked for."""

    def told(text: str) -> str:
        for here, there in paths.items():
            text = text.replace(here, there)
        return text

    result.findings = [Finding(each.verdict, told(each.reason)) for each in result.findings]
    for name in ("reason", "report", "coverage", "uncovered"):
        setattr(result, name, told(getattr(result, name)))
    if result.recording:
        from xenemu.recording.file import renamed  # noqa: PLC0415 (few boots have one)

        result.recording = renamed(result.recording, paths)
    return result


class Hand:
    """A process that runs boots, as its worker sees it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for who asked for the boots
            )

    def run(self, load: Load) -> list[Result]:
        """Run its boots; RuntimeError: it has ended."""
        try:
            self._connection.send(load)
            found = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError("the process that starts boots has ended") from None
        assert isinstance(found, list)
        return found

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was never there
            self._connection.close()
            self._process.wait()


# In the hand.


class _Gone:
    """The worker is gone: an interruption. It says nothing before it has its results."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def signum(self) -> int:
        return signal.SIGTERM if select.select([self._connection], [], [], 0)[0] else 0


def main(descriptor: int) -> None:
    """Run boots for who is at the other end of a connection, until that is closed."""
    with Connection(descriptor) as connection, Nursery() as nursery:
        while True:
            try:
                load = connection.recv()
            except EOFError:
                return
            results = _run(load, _Gone(connection), nursery)
            with suppress(BrokenPipeError):
                connection.send(results)


def _run(load: Load, gone: _Gone, nursery: Nursery) -> list[Result]:
    """Run boots, here so that their files are cleared away also when the worker is killed."""
    try:
        with cargo.unpacked(load) as (boots, paths):
            results = runner.run(boots, 1, Unseen(), interruption=gone, nursery=nursery)
            return [at_home(result, paths) for result in results]
    except OSError as error:
        return _none(load, Verdict.IMAGE, f"this worker's cache: {error}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
