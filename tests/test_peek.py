"""Looking at a guest leaves nothing behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fakes import (
    KERNEL_ONLY,
    KERNEL_STACK,
    USER_ROOT,
    enter_long_mode,
    make_pv_current,
    make_pvh_current,
)
from xenemu.errors import XenError
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.peek import Pages, caller, kernel_tables, peek, tables
from xenemu.pv import hypercall_page as pv_page
from xenemu.pvh import hypercall_page as pvh_page
from xenemu.x86.paging import PSE, RW, Mfn, P

PAGE = 0x25000
BACK = 0x26010
CALL = bytes.fromhex("e8ebefffff")


@pytest.fixture
def current() -> Current:
    return make_pv_current()


def test_peek_crosses_pages_and_changes_nothing(current: Current) -> None:
    current.domain.memory.write(PAGE + 0xFFE, b"abcd")
    before = bytes(current.domain.memory.bytes)
    assert peek(current, PAGE + 0xFFE, 4) == b"abcd"
    assert bytes(current.domain.memory.bytes) == before


def test_what_is_not_mapped_cannot_be_seen(current: Current) -> None:
    with pytest.raises(XenError):
        peek(current, 1 << 40, 1)


def test_a_native_guest_without_paging() -> None:
    current = make_pvh_current()
    current.domain.memory.write(PAGE, b"flat")
    assert peek(current, PAGE, 4) == b"flat"


def test_a_large_page() -> None:
    current = make_pvh_current()
    root, l3, l2 = 20, 21, 22
    table = current.domain.memory.table
    table(Mfn(root))[0] = l3 << 12 | P | RW
    table(Mfn(l3))[0] = l2 << 12 | P | RW
    table(Mfn(l2))[1] = P | RW | PSE
    enter_long_mode(current, root << 12)
    current.domain.memory.write(PAGE, b"large")
    assert peek(current, (2 << 20) + PAGE, 5) == b"large"


# A kernel of one segment, where make_pv_current's kernel root alone maps something.
KERNEL = SimpleNamespace(segments=(SimpleNamespace(vaddr=KERNEL_ONLY + PAGE),))


def test_the_kernel_is_seen_by_the_tables_in_use(current: Current) -> None:
    assert kernel_tables(current, KERNEL) == tables(current)


def test_while_a_program_of_a_pv_guest_runs_the_kernels_own_show_it(current: Current) -> None:
    current.cpu.cr3 = USER_ROOT << 12
    current.domain.memory.write(PAGE, b"kernel")
    with pytest.raises(XenError):
        Pages(current)(KERNEL_ONLY + PAGE, 6)
    found = kernel_tables(current, KERNEL)
    assert Pages(current, found)(KERNEL_ONLY + PAGE, 6) == b"kernel"


def test_with_page_table_isolation_they_are_in_the_page_before() -> None:
    """The program's tables have the kernel's code, and not its data."""
    current = make_pvh_current()
    kernel, user, l3, l2, user_l3, user_l2 = range(20, 26)
    table = current.domain.memory.table
    for root, upper, lower in ((kernel, l3, l2), (user, user_l3, user_l2)):
        table(Mfn(root))[511] = upper << 12 | P | RW
        table(Mfn(upper))[510] = lower << 12 | P | RW
        table(Mfn(lower))[0] = P | RW | PSE
    table(Mfn(l2))[1] = P | RW | PSE
    text = 0xFFFF_FFFF_8000_0000 + PAGE
    segments = tuple(SimpleNamespace(vaddr=vaddr) for vaddr in (text, text + (2 << 20)))
    for root in (user, kernel):
        enter_long_mode(current, root << 12)
        found = kernel_tables(current, SimpleNamespace(segments=segments))
        assert found is not None and found.root == kernel << 12


def test_a_kernel_that_no_tables_show_is_not_seen(current: Current) -> None:
    nowhere = SimpleNamespace(segments=(SimpleNamespace(vaddr=1 << 46),))
    assert kernel_tables(current, nowhere) == tables(current)
    assert kernel_tables(make_pvh_current(), nowhere) is None  # paging is off


def put_stub(current: Current, page: bytes, behind: bytes, popped: int) -> None:
    """Leave RIP after the call of the second stub, and a return address on the stack."""
    memory, cpu = current.domain.memory, current.cpu
    memory.write(PAGE, page)
    cpu.rip = PAGE + 32 + page[32:64].index(behind) + len(behind)
    cpu.regs[Reg.RSP] = KERNEL_STACK - 64
    memory.write_uint(KERNEL_STACK - 64 + popped, 8, BACK)
    memory.write(BACK - 5, CALL)


def test_the_caller_is_behind_a_pv_stub(current: Current) -> None:
    put_stub(current, pv_page.hypercall_page(8), pv_page.SYSCALL, 16)
    assert caller(current) == BACK


def test_the_caller_is_behind_a_pvh_stub() -> None:
    current = make_pvh_current()
    put_stub(current, pvh_page.hypercall_page(), pvh_page.VMCALL, 0)
    assert caller(current) == BACK


def test_what_was_not_called_is_no_stub(current: Current) -> None:
    put_stub(current, pv_page.hypercall_page(8), pv_page.SYSCALL, 16)
    current.domain.memory.write(BACK - 5, bytes(5))
    assert caller(current) == current.cpu.rip


def test_code_that_is_no_stub_calls_itself(current: Current) -> None:
    current.cpu.rip = PAGE
    assert caller(current) == PAGE
    current.cpu.rip = 1 << 40
    assert caller(current) == 1 << 40
