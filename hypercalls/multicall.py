"""A batch of hypercalls in one.

Header: public/xen.h. In Xen: common/multicall.c.
"""

from __future__ import annotations

import struct

from xenemu.abi.errno import EINVAL
from xenemu.abi.xen import Nr, multicall_entry
from xenemu.errors import XenError
from xenemu.hv.dispatch import INT, PTR, PV, PVH, Continue, Hypercall
from xenemu.hv.domain import Current
from xenemu.hv.shared_info import event_pending

ARGS = {8: struct.Struct("<6Q"), 4: struct.Struct("<6I")}
RESULT_OFFSET = {8: 8, 4: 4}
MAX_ENTRIES_AT_ONCE = 4096


def _multicall(current: Current, call_list: int, nr_calls: int) -> int:
    """Call each entry in turn, storing its result; EFAULT where an entry cannot be accessed.

    Stops between entries, to be continued, when an event is to be delivered.
    """
    assert current.table is not None
    width = current.domain.width
    size = multicall_entry.sizeof(width)
    for done in range(nr_calls):
        at = call_list + done * size
        if done and (event_pending(current.domain, current.vcpu) or done == MAX_ENTRIES_AT_ONCE):
            raise Continue(at, nr_calls - done)
        entry = current.read_struct(multicall_entry, at)
        number = entry.op & 0xFFFFFFFF
        args = ARGS[width].unpack(entry.args)
        if number in (Nr.multicall, Nr.iret):
            _store(current, at, -EINVAL)
            raise XenError(EINVAL, f"{Nr(number).name} may not be in a multicall")
        try:
            result = current.table.call(current, number, args)
        except Continue as again:
            entry.args = ARGS[width].pack(*_padded(again.new_args))
            current.write_struct(at, entry)
            raise Continue(at, nr_calls - done) from None
        _store(current, at, result)
        if current.domain.shutdown_code is not None:
            break
    return 0


def _store(current: Current, entry: int, result: int) -> None:
    current.write_ulong(entry + RESULT_OFFSET[current.domain.width], result)


def _padded(args: tuple[int, ...]) -> list[int]:
    return [*args, *[0] * (6 - len(args))]


multicall = Hypercall(Nr.multicall, "multicall", PV | PVH, (PTR, INT), _multicall)
