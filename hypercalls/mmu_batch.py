"""Batches of requests that change page tables, and how they are preempted.

A preempted call is issued again with the requests that are left, and with MMU_UPDATE_PREEMPTED in
its count. All requests may be done while tables still have to be dropped. Then the call is issued
again with no requests at all, and its last argument is the result that it shall return in the end.

In Xen: arch/x86/mm.c (do_mmu_update, do_mmuext_op)
"""

from __future__ import annotations

from typing import Literal

from xenemu.abi.xen import MMU_UPDATE_PREEMPTED
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.pagetype import Restart
from xenemu.pv.state import pv

NO_REQUESTS = 0


class Batch:
    """The requests of a call: `count` of `size` bytes at guest address `start`; `done` are done.

    A batch is a context. At its end, it tells the guest at the call's `pdone` how many requests
    were done. It raises `Continue` if the guest is to issue the call again. It is not a generator,
    because half of a boot's hypercalls come through here.
    """

    def __init__(
        self, current: Current, args: tuple[int, int, int, int], size: int, most: int
    ) -> None:
        """`args` are the call's arguments; `most` requests are done before events are seen to."""
        self.start, self.count, self._pdone, self._foreigndom = args
        self.size, self.most, self.done = size, most, 0
        self.frames = current.domain.frames
        self._current = current
        self._before = 0  # done by the earlier parts of a preempted call
        if self.count & MMU_UPDATE_PREEMPTED:
            self.count &= ~MMU_UPDATE_PREEMPTED
            self._before = _read_done(current, self._pdone)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        if self._pdone:
            _write_done(self._current, self._pdone, self._before + self.done)
        if isinstance(error, Restart):
            left = self.count - self.done | MMU_UPDATE_PREEMPTED
            raise Continue(self.at, left, self._pdone, self._foreigndom) from None
        if self.frames.old_tables and (error is None or isinstance(error, XenError)):
            result = 0
            if isinstance(error, XenError):
                pv(self._current).refusal = error.reason
                result = -error.errno
            raise Continue(NO_REQUESTS, MMU_UPDATE_PREEMPTED, 0, result & 0xFFFFFFFF) from None
        return False

    @property
    def at(self) -> int:
        """The guest address of the next request."""
        return self.start + self.done * self.size

    def check(self) -> None:
        """`Restart` if a later call must do the next request."""
        frames = self.frames
        if frames.old_tables or (self.done and (self.done >= self.most or frames.work_left <= 0)):
            raise Restart


def finish_earlier(
    current: Current, requests: int, count: int, pdone: int, foreigndom: int
) -> int | None:
    """Go on with what an earlier call left to do; its result, if nothing else is left.

    If the earlier call was refused, that refusal is raised only now.
    """
    frames = current.domain.frames
    if frames.old_tables and not frames.put_old_tables():
        raise Continue(requests, count, pdone, foreigndom)
    if count != MMU_UPDATE_PREEMPTED or requests != NO_REQUESTS:
        return None
    result = foreigndom - (foreigndom >> 31 << 32)
    if result < 0:
        raise XenError(-result, pv(current).refusal)
    return result


def _read_done(current: Current, pdone: int) -> int:
    """What the earlier parts of a preempted call have done; 0 if that cannot be read."""
    try:
        return current.read_uint(pdone, 4) if pdone else 0
    except XenError:
        return 0


def _write_done(current: Current, pdone: int, done: int) -> None:
    """Tell the guest how much was done, if the place can be written."""
    try:
        current.write_uint(pdone, 4, done)
    except XenError as error:
        current.log(f"the count of updates done is lost: {error.reason}")
