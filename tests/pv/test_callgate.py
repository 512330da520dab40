"""pv/callgate: a 32-bit guest's far calls and jumps through its call gates."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import make_pv_current
from fakes32 import CODE, KERNEL_STACK, STACK, install_gdt, make_pv32_current, words_at
from xenemu.abi.arch_x86.xen import (
    COMPAT_RING3_CS,
    COMPAT_RING3_DS,
    FLAT_RING1_CS,
    FLAT_RING1_DS,
    FLAT_RING3_CS64,
)
from xenemu.errors import DomainCrash
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pv.exits import Pv32Exits, PvExits
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags, segment

HANDLER, TARGET = 0x40000, 0xC012_3456
USER_STACK = 0x31000
PRESENT = 1 << 47
# Selectors of the GDT's entries.
GATE, ABSENT_GATE, KERNELS_GATE, TO_DATA, TO_ABSENT, TO_SHORT, TO_USER, WITH_PARAMETERS = (
    n << 3 for n in range(1, 9)
)
ABSENT_CODE, SHORT_CODE, EMPTY, DATA, USER_CODE = (n << 3 for n in range(9, 14))
WORD = 0xFFFFFFFF
CALL = b"\x9a"
JUMP = b"\xea"


def gate(selector: int, dpl: int = 3, parameters: int = 0, offset: int = TARGET) -> int:
    high = offset & 0xFFFF0000 | segment.PRESENT | segment.TYPE_CALL_GATE | dpl << 13 | parameters
    return high << 32 | selector << 16 | offset & 0xFFFF


@pytest.fixture
def current() -> Current:
    return make_current()


def make_current() -> Current:
    """In user mode, at CODE, on USER_STACK."""
    current = make_pv32_current()
    install_gdt(
        current,
        gate(FLAT_RING1_CS),
        gate(FLAT_RING1_CS | 2, dpl=0) & ~PRESENT,  # Xen leaves an absent one as it is
        gate(FLAT_RING1_CS, dpl=1),
        gate(DATA),
        gate(ABSENT_CODE),
        gate(SHORT_CODE),
        gate(USER_CODE, offset=CODE),
        gate(FLAT_RING1_CS, parameters=2),
        0x00CF3B000000FFFF,  # code of ring 1, absent
        0x0040BB0000000FFF,  # code of ring 1, 4 KiB
        0,
        0x00CFB3000000FFFF,
        0x00CFFB000000FFFF,
    )
    pv(current).traps.update({n: Trap(FLAT_RING1_CS, HANDLER + n) for n in range(32)})
    enter_user(current)
    return current


def enter_user(current: Current) -> None:
    cpu = current.cpu
    cpu.set_segment(Seg.CS, Segment(COMPAT_RING3_CS, 0, 0xFFFFFFFF, segment.CODE32_RING3))
    for which in (Seg.SS, Seg.DS, Seg.ES):
        cpu.set_segment(which, Segment(COMPAT_RING3_DS, 0, 0xFFFFFFFF, segment.DATA_RING3))
    cpu.regs[Reg.RSP] = USER_STACK


def use(current: Current, code: bytes, selector: int) -> None:
    """Execute `code`, which the CPU refuses with #GP for the selector."""
    current.write(CODE, code)
    Pv32Exits(current).exception(flags.GP, selector & ~3)


def far(opcode: bytes, selector: int) -> bytes:
    """To a far pointer whose offset does not matter."""
    return opcode + struct.pack("<IH", 0xDEAD, selector)


def place(current: Current) -> tuple[int, int, int, int]:
    cpu = current.cpu
    cs, ss = cpu.segment(Seg.CS).selector, cpu.segment(Seg.SS).selector
    return cs, cpu.rip, ss, cpu.regs[Reg.RSP]


def refused(current: Current, vector: int, error_code: int, code: bytes, selector: int) -> None:
    """The guest gets an exception, at the instruction itself."""
    use(current, code, selector)
    assert current.cpu.rip == HANDLER + vector
    frame = words_at(current, current.cpu.regs[Reg.RSP], 6)
    assert frame[:3] == [error_code, CODE, COMPAT_RING3_CS]
    assert frame[4:] == [USER_STACK, COMPAT_RING3_DS]


def test_a_call_goes_to_the_kernels_ring_on_its_stack(current: Current) -> None:
    use(current, far(CALL, GATE | 3), GATE)
    esp = KERNEL_STACK - 16
    assert place(current) == (FLAT_RING1_CS, TARGET, FLAT_RING1_DS, esp)
    assert words_at(current, esp, 4) == [CODE + 7, COMPAT_RING3_CS, USER_STACK, COMPAT_RING3_DS]
    assert pv(current).kernel_mode


def test_parameters_are_copied_from_the_callers_stack(current: Current) -> None:
    current.write(USER_STACK, struct.pack("<2I", 11, 22))
    use(current, far(CALL, WITH_PARAMETERS | 3), WITH_PARAMETERS)
    frame = [CODE + 7, COMPAT_RING3_CS, 11, 22, USER_STACK, COMPAT_RING3_DS]
    assert words_at(current, KERNEL_STACK - 24, 6) == frame
    assert current.cpu.regs[Reg.RSP] == KERNEL_STACK - 24


def test_the_pointer_may_be_in_memory(current: Current) -> None:
    current.write(0x32000, struct.pack("<IH", 0xDEAD, GATE | 3))
    current.cpu.regs[Reg.RBX] = 0x31F00
    use(current, b"\xff\x9b\x00\x01\x00\x00", GATE)  # lcall *0x100(%ebx)
    assert words_at(current, KERNEL_STACK - 16, 1) == [CODE + 6]
    assert current.cpu.rip == TARGET


def test_a_call_within_the_ring_stays_on_its_stack(current: Current) -> None:
    use(current, far(CALL, TO_USER | 3), TO_USER)
    assert place(current) == (USER_CODE | 3, CODE, COMPAT_RING3_DS, USER_STACK - 8)
    assert words_at(current, USER_STACK - 8, 2) == [CODE + 7, COMPAT_RING3_CS]


def test_the_kernel_calls_itself(current: Current) -> None:
    cpu = current.cpu
    cpu.set_segment(Seg.CS, Segment(FLAT_RING1_CS, 0, 0xFFFFFFFF, segment.CODE32_RING1))
    cpu.set_segment(Seg.SS, Segment(FLAT_RING1_DS, 0, 0xFFFFFFFF, segment.DATA_RING1))
    cpu.regs[Reg.RSP] = STACK
    use(current, far(CALL, KERNELS_GATE | 1), KERNELS_GATE)
    assert place(current) == (FLAT_RING1_CS, TARGET, FLAT_RING1_DS, STACK - 8)


def test_a_jump_stays_in_its_ring_and_pushes_nothing(current: Current) -> None:
    use(current, far(JUMP, TO_USER | 3), TO_USER)
    assert place(current) == (USER_CODE | 3, CODE, COMPAT_RING3_DS, USER_STACK)


def test_a_traced_call_is_followed_by_a_debug_trap(current: Current) -> None:
    current.cpu.rflags |= flags.TF
    use(current, far(CALL, GATE | 3), GATE)
    assert current.cpu.rip == HANDLER + flags.DB
    assert words_at(current, current.cpu.regs[Reg.RSP], 1) == [TARGET]


@pytest.mark.parametrize(
    ("opcode", "selector", "vector", "error_code"),
    [
        (CALL, KERNELS_GATE | 3, flags.GP, KERNELS_GATE),  # the gate is ring 1's
        (CALL, ABSENT_GATE | 3, flags.NP, ABSENT_GATE),
        (CALL, TO_DATA | 3, flags.GP, DATA),
        (CALL, TO_ABSENT | 3, flags.NP, ABSENT_CODE),
        (CALL, TO_SHORT | 3, flags.GP, 0),  # the offset is beyond the segment
        (CALL, EMPTY | 3, flags.GP, EMPTY),
        (CALL, 600 << 3 | 3, flags.GP, 600 << 3),  # beyond the GDT
        (JUMP, GATE | 3, flags.GP, FLAT_RING1_CS & ~3),  # a jump does not change the ring
    ],
)
def test_a_gate_that_may_not_be_used(
    current: Current, opcode: bytes, selector: int, vector: int, error_code: int
) -> None:
    refused(current, vector, error_code, far(opcode, selector), selector)


@pytest.mark.parametrize(
    "code",
    [
        b"\x8e\xd8",  # mov %eax, %ds
        b"\xff\xd8",  # a far call to a register
        b"\xff\x13",  # a near call
        far(CALL, TO_USER | 3),  # to another gate than the CPU refused
        b"\xff\x1d\x00\x00\x00\x90",  # a pointer that is not there
    ],
)
def test_another_instruction_has_its_own_fault(current: Current, code: bytes) -> None:
    current.write(CODE, code)
    Pv32Exits(current).exception(flags.GP, GATE)
    pointer_missing = code.startswith(b"\xff\x1d")
    assert current.cpu.rip == HANDLER + (flags.PAGE_FAULT if pointer_missing else flags.GP)


def test_the_kernel_must_have_a_stack(current: Current) -> None:
    pv(current).kernel_ss = USER_CODE | 1
    with pytest.raises(DomainCrash, match="#TS"):  # which needs that stack, too
        use(current, far(CALL, GATE | 3), GATE)


def test_a_kernel_stack_that_is_not_mapped_is_a_page_fault(current: Current) -> None:
    pv(current).kernel_sp = 0x17000  # above a page table
    with pytest.raises(DomainCrash, match="#PF on 0x16ffc"):
        use(current, far(CALL, GATE | 3), GATE)


@pytest.mark.parametrize("parameters", [GATE, WITH_PARAMETERS])
def test_a_stack_at_the_beginning_of_memory_wraps(current: Current, parameters: int) -> None:
    pv(current).kernel_sp = 0
    with pytest.raises(DomainCrash, match="#PF on 0xfffffffc"):
        use(current, far(CALL, parameters | 3), parameters)


def test_parameters_that_are_not_there_are_a_page_fault(current: Current) -> None:
    current.cpu.regs[Reg.RSP] = 0xF0000000
    use(current, far(CALL, WITH_PARAMETERS | 3), WITH_PARAMETERS)
    assert current.cpu.rip == HANDLER + flags.PAGE_FAULT
    assert pv(current).cr2 == 0xF0000004


@settings(max_examples=150)
@given(
    opcode=st.sampled_from(
        [CALL, JUMP, b"\xff\x1b", b"\x66\xff\x6c\x24", b"\x67\xff\x1e", b"\x65"]
    ),
    rest=st.binary(max_size=12),
    selector=st.integers(0, 14 << 3),
    words=st.lists(st.sampled_from([0, 4, 0x1000, USER_STACK, 0xF57FFFFF, WORD]), min_size=4),
)
def test_nothing_surprises_it(opcode: bytes, rest: bytes, selector: int, words: list[int]) -> None:
    current = make_current()
    regs = current.cpu.regs
    regs[Reg.RSP], regs[Reg.RBX], pv(current).kernel_sp, pv(current).kernel_ss = words[:4]
    with suppress(DomainCrash):
        use(current, opcode + rest[:4] + selector.to_bytes(2, "little") + rest[4:], selector)
    assert 0 <= current.cpu.rip <= WORD
    assert 0 <= regs[Reg.RSP] <= WORD


def test_a_64_bit_guests_gates_lead_nowhere() -> None:
    current = make_pv_current()
    pv(current).traps[flags.GP] = Trap(FLAT_RING3_CS64, HANDLER)
    current.cpu.regs[Reg.RSP], current.cpu.rip = STACK, CODE
    current.write(0x32000, struct.pack("<IH", 0xDEAD, GATE | 3))
    current.write(CODE, b"\xff\x1c\x25\x00\x20\x03\x00")  # lcall *0x32000
    PvExits(current).exception(flags.GP, GATE)
    assert current.cpu.rip == HANDLER
    assert current.read_uint(current.cpu.regs[Reg.RSP] + 16, 8) == GATE
