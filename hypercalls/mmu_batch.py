"""Batches of requests that change page tables, and how they are preempted.

A preempted call is issued again with the requests that are left, and with MMU_UPDATE_PREEMPTED in
its count. When there are none left, but tables still to be dropped, it is issued again with no
requests at all: then its last argument is the result that it shall return in the end.

Header: public/xen.h (MMU_UPDATE_PREEMPTED)
In Xen: arch/x86/mm.c (do_mmu_update, do_mmuext_op)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xenemu.abi.xen import MMU_UPDATE_PREEMPTED
from xenemu.errors import XenError
from xenemu.hv.dispatch import Continue
from xenemu.hv.domain import Current
from xenemu.hv.pagetype import Frames, Restart

NO_REQUESTS = 0


@dataclass
class Batch:
    """`count` requests of `size` bytes at guest address `start`, of which `done` are done."""

    frames: Frames
    start: int
    count: int
    size: int
    most: int  # requests in one call
    done: int = 0

    @property
    def at(self) -> int:
        """The guest address of the next request."""
        return self.start + self.done * self.size

    def more(self) -> bool:
        """Whether there is another request; `Restart` if it is not for this call to do."""
        frames = self.frames
        if self.done == self.count:
            return False
        if frames.old_tables or (self.done and (self.done >= self.most or frames.work_left <= 0)):
            raise Restart
        return True


def finish_earlier(
    current: Current, requests: int, count: int, pdone: int, foreigndom: int
) -> int | None:
    """Go on with what an earlier call left to do; its result, if that was all that was left.

    What the earlier call was refused for is raised only now.
    """
    frames = current.domain.frames
    if not frames.put_old_tables():
        raise Continue(requests, count, pdone, foreigndom)
    if count != MMU_UPDATE_PREEMPTED or requests != NO_REQUESTS:
        return None
    result = foreigndom - (foreigndom >> 31 << 32)
    if result < 0:
        raise XenError(-result, frames.refusal)
    return result


@contextmanager
def batch(
    current: Current, args: tuple[int, int, int, int], size: int, most: int
) -> Iterator[Batch]:
    """The requests of a call with these arguments; at its `pdone`, tell how many were done.

    `Continue` if the guest is to issue the call again.
    """
    requests, count, pdone, foreigndom = args
    frames = current.domain.frames
    before = 0
    if count & MMU_UPDATE_PREEMPTED:
        count &= ~MMU_UPDATE_PREEMPTED
        before = _read_done(current, pdone)
    todo = Batch(frames, requests, count, size, most)
    result = 0
    try:
        yield todo
    except Restart:
        left = count - todo.done | MMU_UPDATE_PREEMPTED
        raise Continue(todo.at, left, pdone, foreigndom) from None
    except XenError as error:
        if not frames.old_tables:
            raise
        frames.refusal = error.reason
        result = -error.errno
    finally:
        _write_done(current, pdone, before + todo.done)
    if frames.old_tables:
        raise Continue(NO_REQUESTS, MMU_UPDATE_PREEMPTED, 0, result & 0xFFFFFFFF)


def _read_done(current: Current, pdone: int) -> int:
    """What the earlier parts of a preempted call have done; 0 if that cannot be read."""
    try:
        return current.read_uint(pdone, 4) if pdone else 0
    except XenError:
        return 0


def _write_done(current: Current, pdone: int, done: int) -> None:
    """Tell the guest how much was done, if it asked and the place can be written."""
    if pdone:
        try:
            current.write_uint(pdone, 4, done)
        except XenError as error:
            current.domain.log(f"the count of updates done is lost: {error.reason}")
