"""`xenemu diverge`: where two recorded runs part."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
import typer

from xenemu.cli.replay import Moved, Repeated
from xenemu.confine import confine
from xenemu.errors import EngineError, UsageError
from xenemu.outcome import EXIT_DIVERGED
from xenemu.recording import file as recording_file
from xenemu.recording.parting import Peer, part, tell
from xenemu.recording.player import Player
from xenemu.recording.probe import Ask, Listener, Log, Probe, Samples, Views
from xenemu.records import dataclass

SPAWN: Final = multiprocessing.get_context("spawn")  # the engine must be loaded before all else
HELP_EPILOG: Final = """\b
Examples:
  xenemu run old/vmlinuz --record old      xenemu run new/vmlinuz --record new
  xenemu diverge old new

\b
Exit codes:
  0    the two runs are the same
  7    a recording cannot be used, or a file is another one than was recorded
  9    they part
"""
T = TypeVar("T")


def diverge(
    first: Annotated[Path, typer.Argument(metavar="A", help="What --record has written.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same, of another run.")],
) -> None:
    """Tell where two recorded runs part.

    Both are repeated, each in a process of its own. If they are runs of one kernel by one entry,
    the first instruction is found after which they are not the same, with the registers that
    differ. The first hypercall and the first line of the console that differ are told in any case.
    """
    paths = first, second
    starts = [recording_file.read(path).header.start for path in paths]
    for path, start in zip(paths, starts, strict=True):
        repeated = Repeated(path, start, Moved())
        if repeated.life.restarts_any:
            raise UsageError(f"{path}: this is of several boots: record without --on-... restart")
        repeated.guest()  # or it is told in one line what is missing
    one_kernel = len({(start.kernel.digest, start.mode) for start in starts}) == 1
    with ExitStack() as stack:
        asked = [stack.enter_context(_repeating(path)) for path in paths]
        peers = [one.peer() for one in asked]
        parting = part(peers[0], peers[1], one_kernel)
    for line in tell(parting, (str(first), str(second))):
        typer.echo(line)
    raise typer.Exit(EXIT_DIVERGED if parting.is_one else 0)


@dataclass
class _Repeating:
    """A process that repeats a recording, and answers."""

    path: Path
    process: SpawnProcess
    connection: Connection

    def peer(self) -> Peer:
        return Peer(str(self.path), self._take(Log), self._asker(Samples), self._asker(Views))

    def _asker(self, kind: type[T]) -> Callable[[Ask], T]:
        def asks(ask: Ask) -> T:
            self.connection.send_bytes(msgspec.msgpack.encode(ask))
            return self._take(kind)

        return asks

    def _take(self, kind: type[T]) -> T:
        """The next answer. A guest that has taken over its process must not get any further."""
        try:
            return msgspec.msgpack.decode(self.connection.recv_bytes(), type=kind)
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            raise EngineError(f"the process that repeats {self.path} ended: {code}") from None
        except msgspec.MsgspecError as error:
            raise EngineError(f"the process that repeats {self.path}: {error}") from None


@contextmanager
def _repeating(path: Path) -> Iterator[_Repeating]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=repeat, args=(path, theirs), name=str(path))
    process.start()
    theirs.close()
    try:
        yield _Repeating(path, process, ours)
    finally:
        ours.close()  # which ends it
        process.join(1)
        process.kill()
        process.join()


def repeat(path: Path, connection: Connection) -> None:
    """Repeat a recording, and answer; what a process of this command does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def receive() -> Ask | None:
        try:
            return msgspec.msgpack.decode(connection.recv_bytes(), type=Ask)
        except (EOFError, OSError):
            return None

    def send(answer: object) -> None:
        connection.send_bytes(msgspec.msgpack.encode(answer))

    recording = recording_file.read(path)
    repeated, player = Repeated(path, recording.header.start, Moved()), Player(recording)
    with ExitStack() as files:
        guest, wired = repeated.guest(), repeated.network()
        loaded = guest.load()
        devices = [*repeated.disks(files), *repeated.shares(player), *(wired.vifs if wired else ())]
        machine = guest.build(loaded, devices)
        probe = Probe(machine, loaded(), receive, send)
        confine(more=[call for device in devices for call in device.calls])
        machine.run(
            Listener(machine, probe.log),
            debugger=probe,
            sources=wired.sources() if wired else (),
            kind=player.outside,
            life=repeated.life,
        )
    os._exit(0)
