"""hypercalls/multicall.py"""

from __future__ import annotations

import struct

import pytest

from fakes import make_current, make_pv_current
from hypercalls import TABLE
from hypercalls.multicall import MAX_ENTRIES_AT_ONCE
from hypercalls.multicall import multicall as row
from hypercalls.pv_misc import iret
from xenemu.abi.arch_x86.xen import FLAT_RING3_CS64, FLAT_RING3_SS64, iret_context
from xenemu.abi.errno import EBUSY, EFAULT, EINVAL, ENOSYS
from xenemu.abi.xen import Nr, multicall_entry
from xenemu.errors import XenError
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, ULONG, Continue, Hypercall, HypercallTable
from xenemu.pv.state import pv

LIST = 0x40000
NOTE, REFUSE, MORE, BLOCK = 50, 51, 52, 53


def note(current: Current, value: int) -> int:
    current.domain.output.append(value & 0xFF)
    return value


def refuse(current: Current) -> None:
    raise XenError(EBUSY, "in use")


def more(current: Current, left: int, other: int) -> int:
    if left:
        raise Continue(left - 1, other)
    return 77


def block(current: Current) -> None:
    current.vcpu.blocked = True


ROWS = [
    row,
    iret,
    Hypercall(NOTE, "note", ALL, (ULONG,), note),
    Hypercall(REFUSE, "refuse", ALL, (), refuse),
    Hypercall(MORE, "more", ALL, (INT, ULONG), more),
    Hypercall(BLOCK, "block", ALL, (), block),
]


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    current = make_current(request.param)
    current.vcpu.environment = {8: "pv64", 4: "pv32"}[request.param]
    current.table = HypercallTable(ROWS)
    return current


def put(current: Current, *calls: tuple[int, ...], at: int = LIST) -> None:
    width = current.vcpu.width
    for index, (op, *args) in enumerate(calls):
        packed = struct.pack({8: "<6Q", 4: "<6I"}[width], *args, *[0] * (6 - len(args)))
        entry = multicall_entry(op, 0xAA, packed)
        current.write_struct(at + index * multicall_entry.sizeof(width), entry)


def run(current: Current, count: int, at: int = LIST) -> int:
    assert row.handler is not None
    return row.handler(current, at, count) or 0


def entry(current: Current, index: int, at: int = LIST) -> multicall_entry:
    size = multicall_entry.sizeof(current.vcpu.width)
    return current.read_struct(multicall_entry, at + index * size)


def results(current: Current, count: int) -> list[int]:
    bits = 8 * current.vcpu.width
    values = [entry(current, index).result for index in range(count)]
    return [value - (1 << bits) if value >> (bits - 1) else value for value in values]


def test_each_call_has_its_own_result(current: Current) -> None:
    put(current, (NOTE, 3), (REFUSE,), (99,), (NOTE, 4))
    assert run(current, 4) == 0
    assert results(current, 4) == [3, -EBUSY, -ENOSYS, 4]
    assert current.domain.output == b"\3\4"


def test_only_the_result_is_written(current: Current) -> None:
    put(current, (NOTE, 3, 4, 5, 6, 7, 8))
    before = entry(current, 0)
    run(current, 1)
    after = entry(current, 0)
    assert (after.op, after.args) == (before.op, before.args)


def test_no_calls_are_fine(current: Current) -> None:
    assert run(current, 0, at=1 << 30) == 0


def test_an_empty_list_at_xens_addresses_is_refused() -> None:
    current = make_current(8)
    current.table = HypercallTable(ROWS)
    with pytest.raises(XenError) as refusal:
        run(current, 0, at=0xFFFF_8000_0000_0000)
    assert refusal.value.errno == EFAULT


def test_of_a_32_bit_guests_list_the_end_is_not_looked_at() -> None:
    current = make_current(4)
    current.table = HypercallTable(ROWS)
    last = (80 << 12) - multicall_entry.sizeof(4)
    put(current, (NOTE, 3), at=last)
    with pytest.raises(XenError) as refusal:
        run(current, 0xFFFFFFFF, at=last)
    assert refusal.value.errno == EFAULT
    assert entry(current, 0, at=last).result == 3


def test_debug_xen_spoils_the_arguments_of_each_entry(current: Current) -> None:
    current.domain.debug_xen = True
    put(current, (NOTE, 3, 4, 5), (Nr.multicall, 1), (REFUSE,))
    run(current, 3)
    assert results(current, 3) == [3, -EINVAL, -EBUSY]
    width = current.vcpu.width
    for index in range(3):
        assert entry(current, index).op == int.from_bytes(b"\xaa" * width, "little")
        assert entry(current, index).args == b"\xaa" * 6 * width


def test_debug_xen_leaves_what_goes_on_as_it_is(current: Current) -> None:
    current.domain.debug_xen = True
    put(current, (MORE, 1, 5))
    with pytest.raises(Continue):
        run(current, 1)
    assert entry(current, 0).op == MORE


def test_an_entry_that_cannot_be_read_ends_it(current: Current) -> None:
    size = multicall_entry.sizeof(current.vcpu.width)
    last = (80 << 12) - size
    put(current, (NOTE, 3), at=last)
    with pytest.raises(XenError) as refusal:
        run(current, 2, at=last)
    assert refusal.value.errno == EFAULT
    assert current.domain.output == b"\3"


def test_the_argument_of_a_call_that_goes_on_is_its_number(current: Current) -> None:
    """The result that Xen leaves there is that of making the continuation."""
    put(current, (MORE, 1, 5))
    with pytest.raises(Continue):
        run(current, 1)
    assert entry(current, 0).result == MORE


@pytest.mark.parametrize("at", [(1 << 64) - 64, 1 << 47, 1 << 64])
def test_a_list_anywhere_and_of_any_length_is_refused(current: Current, at: int) -> None:
    with pytest.raises(XenError) as refusal:
        run(current, 0xFFFFFFFF, at=at)
    assert refusal.value.errno == EFAULT


def test_a_multicall_in_a_multicall_is_refused_and_the_rest_done(current: Current) -> None:
    put(current, (Nr.multicall, LIST, 3), (NOTE, 3))
    assert run(current, 2) == 0
    assert results(current, 2) == [-EINVAL, 3]


def test_a_call_that_goes_on_is_stored_for_the_next_time(current: Current) -> None:
    put(current, (NOTE, 1), (MORE, 1, 5, 6), (NOTE, 2))
    size = multicall_entry.sizeof(current.vcpu.width)
    with pytest.raises(Continue) as again:
        run(current, 3)
    assert again.value.new_args == (LIST + size, 2)
    word = {8: "<Q", 4: "<I"}[current.vcpu.width]
    arguments = [value for (value,) in struct.iter_unpack(word, entry(current, 1).args)]
    assert arguments == [0, 5, 6, 0, 0, 0]
    assert run(current, 2, at=LIST + size) == 0
    assert results(current, 3) == [1, 77, 2]


def test_an_event_interrupts_between_calls(current: Current) -> None:
    put(current, (NOTE, 1), (NOTE, 2))
    current.domain.memory.bytes[current.vcpu.info] = 1
    with pytest.raises(Continue) as again:
        run(current, 2)
    assert current.domain.output == b"\1"
    assert again.value.new_args[1] == 1


def test_a_vcpu_that_blocks_goes_on_later(current: Current) -> None:
    put(current, (BLOCK,), (NOTE, 2))
    with pytest.raises(Continue):
        run(current, 2)
    assert current.domain.output == b""


def test_a_long_list_is_done_in_pieces(current: Current) -> None:
    domain = make_current(current.vcpu.width, pages=256).domain
    current.domain, current.vcpu = domain, domain.vcpus[0]
    put(current, *[(NOTE, 1)] * (MAX_ENTRIES_AT_ONCE + 1))
    with pytest.raises(Continue) as again:
        run(current, MAX_ENTRIES_AT_ONCE + 1)
    assert again.value.new_args[1] == 1
    assert len(current.domain.output) == MAX_ENTRIES_AT_ONCE


def test_all_64_bits_of_the_number_count() -> None:
    current = make_current()
    current.table = HypercallTable(ROWS)
    put(current, (1 << 32 | NOTE, 3))
    run(current, 1)
    assert results(current, 1) == [-ENOSYS]


def test_an_iret_ends_it() -> None:
    current = make_pv_current()
    current.table = TABLE
    frame = iret_context(9, 2, 3, 0, 0x400000, FLAT_RING3_CS64, 0x202, 0x7000, FLAT_RING3_SS64)
    current.cpu.regs[Reg.RSP] = 0x30000
    current.write_struct(0x30000, frame)
    put(current, (Nr.iret,), (Nr.stack_switch, 0, 0x1234))
    assert run(current, 2) == 9
    assert (current.cpu.rip, current.cpu.regs[Reg.RCX]) == (0x400000, 3)
    assert not pv(current).kernel_mode
    assert pv(current).kernel_sp != 0x1234
    assert results(current, 1) == [9]
