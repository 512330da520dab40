"""Executors for tests/smoke/test_executor.py: for `xenemu smoke --executor executors:NAME`."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Executor, Future, ThreadPoolExecutor

FATAL = 10  # the call that its worker does not survive


class Inline(Executor):
    """Calls at once, in this process."""

    def submit(self, function, /, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class Perilous(Executor):
    """Another executor, one of whose workers is killed while it has a call."""

    def __init__(self, other):
        self.other, self.calls = other, 0

    def submit(self, function, /, *arguments):
        self.calls += 1
        if self.calls == FATAL:
            return self.other.submit(die)
        return self.other.submit(function, *arguments)

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.other.shutdown(wait=wait)


def die():
    """End this worker as the kernel does when there is no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


def threads():
    return ThreadPoolExecutor(2)


def no_executor():
    return 5


def raises():
    raise OSError("no cluster")


def dask_of_two():
    """Dask tries itself when a worker dies, and tells nobody, if it is not told otherwise."""
    import dask  # noqa: PLC0415 (half a second)
    from distributed import Client, LocalCluster  # noqa: PLC0415

    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    return Perilous(Client(cluster).get_executor())
