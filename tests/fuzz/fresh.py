"""Do something in a fork of this process: it begins where this one is, and ends alone.

A world that has never been touched is worth keeping. What is done to a copy of it depends on
nothing that was done before. It may abort, or never return.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

T = TypeVar("T")


class Died(Exception):
    """The process came to an end before its work; the message says how."""


def call(work: Callable[[], T]) -> T:
    """The result of `work`, done in a process of its own; Died if the process ends before.

    ChildProcessError: `work` raised an exception, which has been printed.
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work(work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        raise Died(f"died of {signal.Signals(-code).name}")
    if code:
        raise ChildProcessError("what was done in a process of its own failed")
    result: T = pickle.loads(answer)
    return result


def _work(work: Callable[[], object], writing: int) -> NoReturn:
    """The child: nothing of the parent's is cleaned up here."""
    code = 1
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with os.fdopen(writing, "wb") as stream:
            pickle.dump(work(), stream)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
