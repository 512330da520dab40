"""pv/bounce32: entries into ring 1, and iret out of it."""

from __future__ import annotations

import struct

import pytest

from fakes32 import CODE, KERNEL_STACK, STACK, install_gdt, make_pv32_current, words_at
from xenemu.abi.arch_x86.xen import (
    COMPAT_RING3_CS,
    COMPAT_RING3_DS,
    FLAT_RING1_CS,
    FLAT_RING1_DS,
)
from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.errors import DomainCrash
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pv.bounce32 import bounce32, in_kernel_mode, iret32
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags, segment
from xenemu.x86.fault import Fault

HANDLER = Trap(FLAT_RING1_CS, 0x23000)
USER_SP = 0x28000
IF = flags.IF | flags.FIXED
ABSENT_CODE, ABSENT_STACK = 0x00CF3B000000FFFF, 0x00CF33000000FFFF  # of ring 1
CONFORMING = 0x00CFBF000000FFFF  # ring 1's, and callable from ring 3
SMALL_CODE = 0x0040FB0000000FFF  # of ring 3, 4 KiB


@pytest.fixture
def current() -> Current:
    return make_pv32_current()


def to_user(current: Current) -> None:
    current.cpu.set_segment(Seg.CS, Segment(COMPAT_RING3_CS, 0, 0xFFFFFFFF, segment.CODE32_RING3))
    current.cpu.set_segment(Seg.SS, Segment(COMPAT_RING3_DS, 0, 0xFFFFFFFF, segment.DATA_RING3))
    current.cpu.regs[Reg.RSP] = USER_SP


def mask(current: Current) -> int:
    return current.domain.memory.bytes[current.vcpu.info + 1]


def set_mask(current: Current, value: int) -> None:
    current.domain.memory.bytes[current.vcpu.info + 1] = value


def selectors(current: Current) -> tuple[int, int]:
    return current.cpu.segment(Seg.CS).selector, current.cpu.segment(Seg.SS).selector


def crashes(current: Current, reason: str, trap: Trap = HANDLER) -> None:
    memory, cpu, state = bytes(current.domain.memory.bytes), repr(current.cpu), repr(pv(current))
    with pytest.raises(DomainCrash, match=reason):
        bounce32(current, trap, "a test", 7)
    assert bytes(current.domain.memory.bytes) == memory
    assert (repr(current.cpu), repr(pv(current))) == (cpu, state)


# Entries.


def test_an_entry_from_the_kernel_stays_on_its_stack(current: Current) -> None:
    bounce32(current, HANDLER, "a test")
    assert current.cpu.regs[Reg.RSP] == STACK - 12
    assert words_at(current, STACK - 12, 3) == [CODE, FLAT_RING1_CS, IF]
    assert (current.cpu.rip, selectors(current)) == (0x23000, (FLAT_RING1_CS, FLAT_RING1_DS))


def test_an_entry_from_user_mode_switches_the_stack(current: Current) -> None:
    to_user(current)
    bounce32(current, HANDLER, "a test")
    assert current.cpu.regs[Reg.RSP] == KERNEL_STACK - 20
    frame = [CODE, COMPAT_RING3_CS, IF, USER_SP, COMPAT_RING3_DS]
    assert words_at(current, KERNEL_STACK - 20, 5) == frame
    assert selectors(current) == (FLAT_RING1_CS, FLAT_RING1_DS)
    assert in_kernel_mode(current) and pv(current).kernel_mode


def test_an_error_code_lies_lowest(current: Current) -> None:
    bounce32(current, HANDLER, "a test", 0x18)
    assert words_at(current, STACK - 16, 2) == [0x18, CODE]


@pytest.mark.parametrize(("masked", "masks"), [(0, False), (0, True), (1, False), (1, True)])
def test_the_frame_has_the_mask_and_its_inverse(current: Current, masked: int, masks: bool) -> None:
    set_mask(current, masked)
    bounce32(current, Trap(FLAT_RING1_CS, 0x23000, mask_events=masks), "a test")
    _, cs, eflags = words_at(current, STACK - 12, 3)
    assert (cs >> 16, eflags & flags.IF) == (masked, 0 if masked else flags.IF)
    assert mask(current) == (masked or masks)


def test_the_handler_inherits_no_tracing(current: Current) -> None:
    current.cpu.rflags |= flags.TF | flags.NT | flags.RF | flags.CF
    bounce32(current, HANDLER, "a test")
    assert current.cpu.rflags == IF | flags.CF
    assert words_at(current, STACK - 4, 1)[0] & flags.TF


def test_a_guest_with_its_own_iopl_sees_it(current: Current) -> None:
    current.domain.vm_assist |= 1 << VMASST_TYPE_architectural_iopl
    pv(current).iopl = 1
    bounce32(current, HANDLER, "a test")
    assert words_at(current, STACK - 4, 1)[0] & flags.IOPL == 1 << flags.IOPL_SHIFT


def test_a_stack_may_have_a_base(current: Current) -> None:
    install_gdt(current, 0x00CFB3020000FFFF)  # data of ring 1 from 0x20000
    pv(current).kernel_ss, pv(current).kernel_sp = 0x09, 0x1000
    to_user(current)
    bounce32(current, HANDLER, "a test")
    assert words_at(current, 0x21000 - 20, 1) == [CODE]
    assert (current.cpu.regs[Reg.RSP], current.cpu.segment(Seg.SS).base) == (0x1000 - 20, 0x20000)


@pytest.mark.parametrize("trap", [Trap(0, 0x1000), Trap(3, 0x1000)])
def test_no_handler_is_a_crash(current: Current, trap: Trap) -> None:
    crashes(current, "no handler", trap)


@pytest.mark.parametrize("sp", [0x15000, 0xF5800000, 4, 0x16008])
def test_a_stack_that_cannot_take_the_frame_is_a_crash(current: Current, sp: int) -> None:
    current.cpu.regs[Reg.RSP] = sp
    crashes(current, "no frame")


def test_a_kernel_stack_in_no_segment_is_a_crash(current: Current) -> None:
    to_user(current)
    pv(current).kernel_ss = 0x11
    crashes(current, "no stack")


def test_a_handler_in_no_code_segment_faults_in_the_handler(current: Current) -> None:
    with pytest.raises(Fault) as fault:
        bounce32(current, Trap(FLAT_RING1_DS, 0x23000), "a test")
    assert (fault.value.vector, fault.value.error_code) == (flags.GP, FLAT_RING1_DS & ~3)
    assert words_at(current, STACK - 12, 1) == [CODE]
    assert (current.cpu.rip, selectors(current)[0]) == (0x23000, FLAT_RING1_DS)


# iret.


def iret(current: Current, *frame: int) -> None:
    """eax, eip, cs, eflags, and for an outer ring esp and ss."""
    current.write(STACK, struct.pack(f"<{len(frame)}I", *frame))
    iret32(current)


def test_iret_within_the_kernel(current: Current) -> None:
    iret(current, 7, 0x24000, FLAT_RING1_CS | 0xFF0000, IF | flags.CF)
    assert (current.cpu.regs[Reg.RAX], current.cpu.rip) == (7, 0x24000)
    assert (current.cpu.regs[Reg.RSP], selectors(current)) == (
        STACK + 16,
        (FLAT_RING1_CS, FLAT_RING1_DS),
    )
    assert (current.cpu.rflags, mask(current)) == (IF | flags.CF, 0)


def test_iret_to_user_mode(current: Current) -> None:
    iret(current, 7, 0x24000, COMPAT_RING3_CS, IF, USER_SP, COMPAT_RING3_DS)
    assert (current.cpu.regs[Reg.RSP], selectors(current)) == (
        USER_SP,
        (COMPAT_RING3_CS, COMPAT_RING3_DS),
    )
    assert not in_kernel_mode(current) and not pv(current).kernel_mode


def test_iret_to_user_mode_drops_the_kernels_segments(current: Current) -> None:
    user = Segment(COMPAT_RING3_DS, 0, 0xFFFFFFFF, segment.DATA_RING3)
    current.cpu.set_segment(Seg.ES, user)
    iret(current, 7, 0x24000, COMPAT_RING3_CS, IF, USER_SP, COMPAT_RING3_DS)
    assert current.cpu.segment(Seg.ES) == user
    assert [current.cpu.segment(s) for s in (Seg.DS, Seg.FS, Seg.GS)] == [Segment(0)] * 3


def test_iret_restores_the_mask_from_if(current: Current) -> None:
    iret(current, 7, 0x24000, FLAT_RING1_CS, flags.FIXED)
    assert (mask(current), current.cpu.rflags) == (1, IF)


def test_iret_gives_no_iopl_and_leaves_nested_task(current: Current) -> None:
    iret(current, 7, 0x24000, FLAT_RING1_CS, IF | flags.IOPL | flags.NT)
    assert (current.cpu.rflags, pv(current).iopl) == (IF | flags.NT, 0)


def test_iret_keeps_the_iopl_of_a_guest_with_its_own(current: Current) -> None:
    current.domain.vm_assist |= 1 << VMASST_TYPE_architectural_iopl
    iret(current, 7, 0x24000, FLAT_RING1_CS, IF | 1 << flags.IOPL_SHIFT)
    assert (current.cpu.rflags, pv(current).iopl) == (IF, 1)


@pytest.mark.parametrize(
    ("cs", "ss", "vector", "error"),
    [
        (0x103, COMPAT_RING3_DS, flags.GP, 0x100),
        (COMPAT_RING3_DS, COMPAT_RING3_DS, flags.GP, COMPAT_RING3_DS & ~3),
        (COMPAT_RING3_CS, FLAT_RING1_DS, flags.GP, FLAT_RING1_DS & ~3),
        (COMPAT_RING3_CS, 0, flags.GP, 0),
        (COMPAT_RING3_CS, COMPAT_RING3_CS, flags.GP, COMPAT_RING3_CS & ~3),
        (COMPAT_RING3_CS & ~3 | 1, 0, flags.GP, COMPAT_RING3_CS & ~3),
        (COMPAT_RING3_CS & ~3 | 2, 0, flags.GP, COMPAT_RING3_CS & ~3),
        (0xE009, 0, flags.GP, 0xE008),
        (3, COMPAT_RING3_DS, flags.GP, 0),
        (0x09, 0, flags.NP, 0x08),
        (0x1B, COMPAT_RING3_DS, flags.GP, 0),
        (0x0F, COMPAT_RING3_DS, flags.GP, 0x0C),
    ],
)
def test_what_iret_refuses_faults_at_its_target(
    current: Current, cs: int, ss: int, vector: int, error: int
) -> None:
    install_gdt(current, ABSENT_CODE, ABSENT_STACK, SMALL_CODE)
    with pytest.raises(Fault) as fault:
        iret(current, 7, 0x24000, cs, IF, USER_SP, ss)
    assert (fault.value.vector, fault.value.error_code) == (vector, error)
    assert (current.cpu.rip, selectors(current)[0]) == (0x24000, cs)
    if cs & 2:
        assert (selectors(current)[1], current.cpu.regs[Reg.RSP]) == (ss, USER_SP)
    assert pv(current).kernel_mode is (cs & 3 == 1)


def test_an_absent_stack_is_a_stack_fault(current: Current) -> None:
    install_gdt(current, ABSENT_CODE, ABSENT_STACK)
    current.cpu.set_segment(Seg.SS, Segment(0x11, 0, 0xFFFFFFFF, segment.DATA_RING1))
    with pytest.raises(Fault) as fault:
        iret(current, 7, 0x24000, FLAT_RING1_CS, IF)
    assert (fault.value.vector, fault.value.error_code) == (flags.SS, 0x10)


def test_conforming_code_gives_no_rights(current: Current) -> None:
    """The CPU takes its ring from the segment that is loaded."""
    install_gdt(current, CONFORMING)
    iret(current, 7, 0x24000, 0x0B, IF, USER_SP, COMPAT_RING3_DS)
    assert segment.dpl(current.cpu.segment(Seg.CS).attributes) == 3
    assert not in_kernel_mode(current)


def test_iret_to_ring_0_is_a_crash(current: Current) -> None:
    with pytest.raises(DomainCrash, match="ring 0"):
        iret(current, 7, 0x24000, 0xE008, IF)
    assert selectors(current) == (FLAT_RING1_CS, FLAT_RING1_DS)


@pytest.mark.parametrize(("sp", "cs"), [(0x100000, FLAT_RING1_CS), (0x4FFF0, COMPAT_RING3_CS)])
def test_iret_without_a_frame_is_a_crash(current: Current, sp: int, cs: int) -> None:
    current.write(0x4FFF0, struct.pack("<4I", 7, 0x24000, cs, IF))
    current.cpu.regs[Reg.RSP] = sp
    with pytest.raises(DomainCrash, match="no frame"):
        iret32(current)
    assert selectors(current) == (FLAT_RING1_CS, FLAT_RING1_DS)


def test_vm86_mode_is_refused_at_its_first_instruction(current: Current) -> None:
    pv(current).traps[flags.GP] = Trap(FLAT_RING1_CS, 0x25000, mask_events=True)
    target = (0x100, 0x1234, IF | flags.VM, 0x200, 0x5678, 1, 2, 3, 4)
    iret(current, 7, *target)
    assert words_at(current, KERNEL_STACK - 40, 10) == [0, *target]
    assert current.cpu.regs[Reg.RSP] == KERNEL_STACK - 40
    assert (current.cpu.rip, selectors(current)) == (0x25000, (FLAT_RING1_CS, FLAT_RING1_DS))
    assert (current.cpu.rflags, mask(current)) == (IF, 1)


def test_what_the_engine_takes_for_vm86_mode_is_no_kernel(current: Current) -> None:
    current.cpu.rflags |= flags.VM
    assert not in_kernel_mode(current)
