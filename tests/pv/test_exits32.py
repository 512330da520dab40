"""pv/exits: the exits of a 32-bit guest, where they differ."""

from __future__ import annotations

import struct

import pytest

from fakes32 import CODE, GDT, STACK, install_gdt, make_pv32_current, words_at
from hypercalls import TABLE
from xenemu.abi.arch_x86.xen import COMPAT_RING3_CS, COMPAT_RING3_DS, FLAT_RING1_CS, FLAT_RING1_DS
from xenemu.abi.errno import ENOSYS
from xenemu.abi.xen import Nr
from xenemu.errors import DomainCrash
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, U64, ULONG, Continue, Hypercall, HypercallTable
from xenemu.pv.descriptors import set_ldt
from xenemu.pv.exits import Pv32Exits
from xenemu.pv.perdomain import gdt_base, ldt_base
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags, segment
from xenemu.x86.paging import PFEC_P, PFEC_U, PFEC_W

HANDLER, BEHIND = 0x40000, CODE + 2
ARGUMENTS = (Reg.RBX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI, Reg.RBP)
DATA = 0x00CFB2000000FFFF  # of ring 1, not accessed yet
TYPE_ACCESSED = 1 << 40


@pytest.fixture
def current() -> Current:
    current = make_pv32_current()
    current.table = TABLE
    pv(current).traps.update({n: Trap(FLAT_RING1_CS, HANDLER + n) for n in range(256)})
    return current


@pytest.fixture
def exits(current: Current) -> Pv32Exits:
    return Pv32Exits(current)


def to_user(current: Current) -> None:
    current.cpu.set_segment(Seg.CS, Segment(COMPAT_RING3_CS, 0, 0xFFFFFFFF, segment.CODE32_RING3))
    current.cpu.set_segment(Seg.SS, Segment(COMPAT_RING3_DS, 0, 0xFFFFFFFF, segment.DATA_RING3))


def entered(current: Current) -> int:
    return current.cpu.rip - HANDLER


def hypercall(current: Current, number: int, *arguments: int) -> None:
    current.cpu.rip = BEHIND
    current.cpu.regs[Reg.RAX] = number
    for register, value in zip(ARGUMENTS, arguments, strict=False):
        current.cpu.regs[register] = value
    Pv32Exits(current).software_interrupt(0x82, 2)


# Hypercalls.


def test_a_hypercall_takes_the_lower_halves(current: Current) -> None:
    hypercall(current, 1 << 32 | Nr.stack_switch, 1 << 32 | 0x21, 0x12345678)
    assert current.cpu.regs[Reg.RAX] == 0
    assert (pv(current).kernel_ss, pv(current).kernel_sp) == (0x21, 0x12345678)
    assert current.cpu.rip == BEHIND


def test_an_errno_fills_32_bits(current: Current) -> None:
    hypercall(current, Nr.set_segment_base, 0, 0)
    assert current.cpu.regs[Reg.RAX] == (1 << 32) - ENOSYS


def test_a_64_bit_argument_has_two_registers(current: Current) -> None:
    seen = []
    row = Hypercall(5, "five", ALL, (ULONG, U64, ULONG), lambda _, *args: seen.append(args))
    current.table = HypercallTable([row])
    hypercall(current, 5, 1, 2, 3, 4)
    assert seen == [(1, 3 << 32 | 2, 4)]


def test_a_hypercall_that_goes_on_is_issued_again(current: Current) -> None:
    def more(_: Current, a: int, b: int) -> None:
        raise Continue(a + 1, b)

    current.table = HypercallTable([Hypercall(5, "five", ALL, (ULONG, U64), more)])
    hypercall(current, 5, 10, 20, 30)
    assert (current.cpu.rip, current.cpu.regs[Reg.RAX]) == (CODE, 5)
    assert [current.cpu.regs[r] for r in ARGUMENTS[:3]] == [11, 20, 30]


def test_a_hypercall_is_not_user_modes(current: Current) -> None:
    to_user(current)
    hypercall(current, Nr.stack_switch, 0x21, 0x12345678)
    assert entered(current) == flags.GP
    assert words_at(current, current.cpu.regs[Reg.RSP], 2) == [0x82 << 3 | 2, CODE]
    assert pv(current).kernel_sp != 0x12345678
    assert not current.domain.calls


def test_user_mode_may_have_that_vector_for_itself(current: Current) -> None:
    pv(current).traps[0x82] = Trap(FLAT_RING1_CS, HANDLER + 0x82, dpl=3)
    to_user(current)
    hypercall(current, Nr.stack_switch)
    assert entered(current) == 0x82


def test_sysenter_enters_its_callback_from_nowhere(current: Current, exits: Pv32Exits) -> None:
    pv(current).sysenter_callback = Trap(FLAT_RING1_CS, HANDLER + 0x300)
    to_user(current)
    exits.sysenter()
    cpu = current.cpu
    assert (entered(current), cpu.segment(Seg.CS).selector) == (0x300, FLAT_RING1_CS)
    assert pv(current).kernel_mode
    frame = words_at(current, cpu.regs[Reg.RSP], 5)
    assert frame == [0, 3, 0x202, 0, COMPAT_RING3_DS]


def test_sysenter_without_a_callback_is_gp_from_nowhere(current: Current, exits: Pv32Exits) -> None:
    to_user(current)
    exits.sysenter()
    assert entered(current) == flags.GP
    assert words_at(current, current.cpu.regs[Reg.RSP], 3) == [0, 0, 3]


def test_the_callback_of_sysenter_has_the_segment_of_gp_if_none(
    current: Current, exits: Pv32Exits
) -> None:
    pv(current).sysenter_callback = Trap(1, HANDLER + 0x300)
    to_user(current)
    exits.sysenter()
    assert (entered(current), current.cpu.segment(Seg.CS).selector) == (0x300, FLAT_RING1_CS)


def test_vm86_code_makes_no_hypercalls(current: Current) -> None:
    current.cpu.rflags |= flags.VM
    hypercall(current, Nr.stack_switch, 0x21, 0x12345678)
    assert entered(current) == flags.GP
    assert pv(current).kernel_sp != 0x12345678


def test_an_iret_that_is_refused_is_the_targets_fault(current: Current) -> None:
    current.write(STACK, struct.pack("<6I", 7, 0x24000, 0x103, 0x202, 0x28000, COMPAT_RING3_DS))
    hypercall(current, Nr.iret)
    assert entered(current) == flags.GP
    assert words_at(current, current.cpu.regs[Reg.RSP], 3) == [0x100, 0x24000, 0x103]


def test_syscall_is_undefined_in_32_bit_code(current: Current, exits: Pv32Exits) -> None:
    current.cpu.rip = BEHIND
    exits.syscall()
    assert entered(current) == flags.UD
    assert words_at(current, STACK - 12, 1) == [CODE]


# The mode.


def test_the_mode_is_what_the_code_segment_says(current: Current, exits: Pv32Exits) -> None:
    """The guest leaves its kernel by an IRET of its own, which Xen does not see."""
    to_user(current)
    current.cpu.cr2 = 0x1234
    exits.exception(flags.PAGE_FAULT, 0)
    assert words_at(current, current.cpu.regs[Reg.RSP], 1) == [PFEC_U]


def test_ring_2_is_user_mode(current: Current, exits: Pv32Exits) -> None:
    current.cpu.set_segment(Seg.CS, Segment(0x12, 0, 0xFFFFFFFF, segment.CODE32_RING1 + (1 << 13)))
    current.write(CODE, b"\x0f\x06")  # clts
    exits.exception(flags.GP, 0)
    assert entered(current) == flags.GP


# Handlers.


def test_a_handler_in_bad_code_faults_once(current: Current, exits: Pv32Exits) -> None:
    pv(current).traps[flags.DE] = Trap(FLAT_RING1_DS, HANDLER)
    exits.exception(flags.DE, 0)
    assert entered(current) == flags.GP
    frame = words_at(current, current.cpu.regs[Reg.RSP], 3)
    assert frame == [FLAT_RING1_DS & ~3, HANDLER, FLAT_RING1_DS]


def test_a_fault_handler_in_bad_code_is_a_crash(current: Current, exits: Pv32Exits) -> None:
    pv(current).traps[flags.DE] = pv(current).traps[flags.GP] = Trap(FLAT_RING1_DS, HANDLER)
    with pytest.raises(DomainCrash, match="faults, too"):
        exits.exception(flags.DE, 0)


# Descriptor tables, which the kernel's ring sees.


def test_the_cpu_marks_a_descriptor_accessed(current: Current, exits: Pv32Exits) -> None:
    install_gdt(current, DATA)
    current.cpu.cr2 = gdt_base(0, 4) + 12
    exits.exception(flags.PAGE_FAULT, PFEC_P | PFEC_W)
    assert current.cpu.rip == CODE
    assert current.domain.memory.table(GDT)[1] == DATA | TYPE_ACCESSED


@pytest.mark.parametrize("error_code", [PFEC_P | PFEC_W, PFEC_P | PFEC_W | PFEC_U, PFEC_P | PFEC_U])
def test_the_guest_does_not_write_its_descriptors(
    current: Current, exits: Pv32Exits, error_code: int
) -> None:
    install_gdt(current, DATA | TYPE_ACCESSED)
    current.cpu.cr2 = gdt_base(0, 4) + 12
    exits.exception(flags.PAGE_FAULT, error_code)
    assert entered(current) == flags.PAGE_FAULT
    assert words_at(current, STACK - 16, 1) == [error_code & PFEC_W]  # and nothing is there
    assert current.domain.memory.table(GDT)[1] == DATA | TYPE_ACCESSED


def test_descriptor_tables_are_mapped_read_only(current: Current) -> None:
    install_gdt(current, DATA)
    l1 = current.domain.memory.table(current.domain.arch.perdomain_l1[0])  # type: ignore[attr-defined]
    assert l1[0] == GDT << 12 | 0x21
    assert not l1[1] & 2


def test_the_ldt_is_faulted_in_where_32_bits_reach(current: Current, exits: Pv32Exits) -> None:
    set_ldt(current, GDT << 12, 4)
    current.cpu.cr2 = ldt_base(0, 4) + 8
    exits.exception(flags.PAGE_FAULT, 0)
    assert current.cpu.rip == CODE
    assert pv(current).ldt_frames == {0: GDT}


def test_rdpmc_is_privileged(current: Current, exits: Pv32Exits) -> None:
    current.write(CODE, b"\x0f\x33")
    exits.exception(flags.GP, 0)
    assert entered(current) == flags.GP


def test_debug_xen_spoils_both_halves_of_a_long_argument(current: Current) -> None:
    current.domain.debug_xen = True
    current.cpu.regs[Reg.RDX] = 9
    hypercall(current, Nr.set_timer_op, 1, 2)
    assert [current.cpu.regs[register] for register in ARGUMENTS[:3]] == [0xDEADF00D] * 2 + [9]


# What the engine does not know.


def test_an_ldt_at_xens_addresses_faults_when_it_is_used(
    current: Current, exits: Pv32Exits
) -> None:
    set_ldt(current, 0xF580_0000, 4)
    current.cpu.cr2 = ldt_base(0, 4) + 8
    exits.exception(flags.PAGE_FAULT, 0)
    assert entered(current) == flags.PAGE_FAULT
    assert pv(current).cr2 == 0xF580_0008
