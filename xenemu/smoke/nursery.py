"""A process that has imported all that a boot needs, for boots to be copies of.

So nobody waits for the imports again, and a boot that dies loses only itself. No guest ever runs in
the nursery. The engine must be loaded before all else, so the nursery is a fresh Python.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, Final, Self

from xenemu.errors import XenemuError
from xenemu.records import dataclass
from xenemu.smoke import copies
from xenemu.smoke.copies import ANSWERS, Copy, Lost, Original
from xenemu.smoke.wire import Inbox

SPAWN: Final = multiprocessing.get_context("spawn")
PARENTS_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What most boots import only when they come to it.
MODULES: Final = "xenemu.smoke.worker xenemu.smoke.guest".split()


@dataclass(frozen=True)
class Order:
    """What a copy is to call with its connection before the arguments, and where it is then."""

    main: Callable[..., None]
    arguments: tuple[Any, ...]
    folder: str  # empty if it is gone
    environment: dict[str, str]


class Nursery:
    """A nursery, from outside: a context, or `close` it. It begins with the first boot."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process: multiprocessing.context.SpawnProcess | None = None

    def start(
        self, main: Callable[..., None], *arguments: Any, errors: int
    ) -> tuple[Copy, Connection]:
        """Have ``main(connection, *arguments)`` called in a process of its own; Lost.

        The function and its arguments are pickled. Signals of PARENTS_SIGNALS are blocked there.
        `errors` is a descriptor, for what the process writes to its standard streams.
        """
        order = Order(main, arguments, _folder(), dict(os.environ))
        if self._process is not None:
            try:
                return self._original.copy(order, errors)
            except Lost:  # as if the host had no memory left, and took one
                self.close()
        self._begin()
        return self._original.copy(order, errors)

    def _begin(self) -> None:
        self._connection, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=_nurse, args=(theirs,), daemon=True, name="xenemu nursery")
        resource_tracker.ensure_running()  # it would let the signals through
        before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
        try:
            with _no_main():
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        assert process.pid is not None
        self._process = process
        self._original = Original(process.pid, self._connection, Inbox(self._connection, *ANSWERS))

    def close(self) -> None:
        """End it; its copies go on."""
        if self._process is not None and self.owner == os.getpid():
            self._process.kill()
            self._process.join()
            self._process.close()
            self._connection.close()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def _no_main() -> Iterator[None]:
    """Have multiprocessing start a process that does not import this one's main module.

    That may be a script which boots a guest as it is imported, without an end.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _nurse(connection: Connection) -> None:
    """Import, and be copied."""
    for name in MODULES:
        importlib.import_module(name)
    from xenemu.machine.core import check_engine  # noqa: PLC0415 (whose parent does without)

    with suppress(XenemuError, OSError, ImportError):  # which each boot then meets by itself
        check_engine()  # which loads the CPU engine
    gc.collect()
    gc.freeze()  # else each copy would touch, and so copy, all that is there
    if born := copies.serve(connection):
        order, own = born
        if order.folder:
            os.chdir(order.folder)
        os.environ.clear()
        os.environ.update(order.environment)
        _end_after(lambda: order.main(own, *order.arguments))


def _end_after(main: Callable[[], None]) -> None:
    """Call it, and end this process without a look at all that it shares with the nursery."""
    code = 1
    try:
        main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
