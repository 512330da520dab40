"""A batch of hypercalls in one.

Header: public/xen.h. In Xen: common/multicall.c.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Final

from xenemu.abi.errno import EFAULT, EINVAL
from xenemu.abi.xen import Nr, multicall_entry
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, PV, Continue, Hypercall
from xenemu.hv.scheduler import hypercall_preempt_check
from xenemu.pv.paging import in_guest_range

ARGS = {8: struct.Struct("<6Q"), 4: struct.Struct("<6I")}
RESULT_OFFSET = {8: 8, 4: 4}
MAX_ENTRIES_AT_ONCE: Final = 256  # then events are looked at, and deadlines
ENTRY_WORK: Final = 5  # of each, in units of Frames.work_left
POISON: Final = b"\xaa"


def _multicall(current: Current, call_list: int, nr_calls: int) -> int:
    """Call each entry in turn, storing its result; EFAULT where an entry cannot be accessed.

    A list at one of Xen's addresses is refused even if it is empty. The end of the list is not
    looked at.

    The call stops between two entries, to be continued, when an event is to be delivered, when the
    vcpu may not go on, or when the entries have been work enough. A multicall inside it gets EINVAL
    as its result. An iret inside it ends it, and the result is the RAX that the guest goes on with.
    """
    width = current.vcpu.width
    size = multicall_entry.sizeof(width)
    # Of a 32-bit guest's list Xen checks the 64-bit range, too, and so nothing.
    if current.domain.p2m is None and not in_guest_range(call_list):
        raise XenError(EFAULT, f"{call_list:#x} is not an address of the guest's")
    for done in range(nr_calls):
        at = call_list + done * size
        if done and _enough(current, done):
            raise Continue(at, nr_calls - done)
        current.domain.frames.work_left -= ENTRY_WORK
        entry = current.read_struct(multicall_entry, at)
        args = ARGS[width].unpack(entry.args)
        try:
            result = _call(current, entry.op, args)
        except Continue as again:
            entry.result = entry.op
            entry.args = ARGS[width].pack(*again.new_args, *args[len(again.new_args) :])
            current.write_struct(at, entry)
            raise Continue(at, nr_calls - done) from None
        if current.domain.debug_xen:
            with suppress(XenError):
                current.write(at, POISON * size)
        if entry.op == Nr.iret and current.vcpu.environment in PV:
            with suppress(XenError):  # the address space may be another one now
                _store(current, at, result)
            return result
        _store(current, at, result)
    return 0


def _enough(current: Current, done: int) -> bool:
    return (
        done == MAX_ENTRIES_AT_ONCE
        or current.domain.frames.work_left <= 0
        or hypercall_preempt_check(current)
    )


def _call(current: Current, number: int, args: tuple[int, ...]) -> int:
    assert current.table is not None
    if number == Nr.multicall:
        current.log("a multicall inside a multicall is refused")
        return -EINVAL
    return current.table.call(current, number, args)


def _store(current: Current, entry: int, result: int) -> None:
    current.write_ulong(entry + RESULT_OFFSET[current.vcpu.width], result)


multicall = Hypercall(Nr.multicall, "multicall", ALL, (PTR, INT), _multicall)
