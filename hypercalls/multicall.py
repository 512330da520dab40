"""A batch of hypercalls in one.

Header: public/xen.h. In Xen: common/multicall.c.
"""

from __future__ import annotations

import struct
from contextlib import suppress

from xenemu.abi.errno import EINVAL
from xenemu.abi.xen import Nr, multicall_entry
from xenemu.errors import XenError
from xenemu.hv.dispatch import ALL, INT, PTR, PV, Continue, Hypercall
from xenemu.hv.domain import Current
from xenemu.hv.shared_info import event_pending

ARGS = {8: struct.Struct("<6Q"), 4: struct.Struct("<6I")}
RESULT_OFFSET = {8: 8, 4: 4}
MAX_ENTRIES_AT_ONCE = 4096


def _multicall(current: Current, call_list: int, nr_calls: int) -> int:
    """Call each entry in turn, storing its result; EFAULT where an entry cannot be accessed.

    Between entries it stops, to be continued, when an event is to be delivered, the vcpu may not
    go on, or the entries have been work enough. A multicall in it gets EINVAL as its result. An
    iret in it ends it: the result is the RAX that the guest goes on with.
    """
    assert current.table is not None
    width = current.domain.width
    size = multicall_entry.sizeof(width)
    for done in range(nr_calls):
        at = call_list + done * size
        if done and (done == MAX_ENTRIES_AT_ONCE or _interrupted(current)):
            raise Continue(at, nr_calls - done)
        entry = current.read_struct(multicall_entry, at)
        args = ARGS[width].unpack(entry.args)
        if entry.op == Nr.multicall:
            current.domain.log("a multicall inside a multicall is refused")
            _store(current, at, -EINVAL)
            continue
        try:
            result = current.table.call(current, entry.op, args)
        except Continue as again:
            entry.args = ARGS[width].pack(*again.new_args, *args[len(again.new_args) :])
            current.write_struct(at, entry)
            raise Continue(at, nr_calls - done) from None
        if entry.op == Nr.iret and current.environment in PV:
            with suppress(XenError):  # the address space may be another one now
                _store(current, at, result)
            return result
        _store(current, at, result)
    return 0


def _interrupted(current: Current) -> bool:
    domain, vcpu = current.domain, current.vcpu
    return (
        vcpu.blocked
        or domain.shutdown_code is not None
        or domain.frames.work_left <= 0
        or event_pending(domain, vcpu)
    )


def _store(current: Current, entry: int, result: int) -> None:
    current.write_ulong(entry + RESULT_OFFSET[current.domain.width], result)


multicall = Hypercall(Nr.multicall, "multicall", ALL, (PTR, INT), _multicall)
