"""pv/exits: what each exit of the CPU leads to."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from fakes import CODE, KERNEL_ONLY, L1, FakeCpu, make_pv_current, protect
from hypercalls import TABLE
from xenemu.abi.arch_x86.xen import FLAT_RING3_CS64, FLAT_RING3_SS64, iret_context
from xenemu.abi.errno import ENOSYS
from xenemu.abi.xen import Nr, VMASST_TYPE_writable_pagetables
from xenemu.errors import DomainCrash
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, ULONG, Continue, Hypercall, HypercallTable
from xenemu.hv.prices import EMULATION_NS, WORK_NS
from xenemu.pv.descriptors import set_ldt
from xenemu.pv.exits import PvExits
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.perdomain import ldt_base
from xenemu.pv.state import DR6_DEFAULT, Trap, pv
from xenemu.pv.traps import CS64, SS64
from xenemu.x86 import flags, segment
from xenemu.x86.msr import MISC_FEATURES_CPUID_FAULTING, MISC_FEATURES_ENABLES
from xenemu.x86.paging import PFEC_I, PFEC_P, PFEC_RSVD, PFEC_U, PFEC_W

HANDLER = KERNEL_ONLY + 0x1234
STACK, BEHIND = 0x30000, CODE + 2
LDT_FRAME = 50
MOV_RAX_TO_RDI = b"\x48\x89\x07"


@pytest.fixture
def current() -> Current:
    current = make_pv_current()
    current.table = TABLE
    pv(current).traps.update({n: Trap(FLAT_RING3_CS64, HANDLER + n) for n in range(256)})
    pv(current).event_callback = Trap(0, HANDLER + 0x100, mask_events=True)
    pv(current).syscall_callback = Trap(0, HANDLER + 0x200)
    current.cpu.regs[Reg.RSP] = STACK
    return current


@pytest.fixture
def exits(current: Current) -> PvExits:
    return PvExits(current)


def raise_event(current: Current, pending: int = 1, masked: int = 0) -> None:
    info = current.vcpu.info
    current.domain.memory.bytes[info : info + 2] = bytes([pending, masked])


def entered(current: Current) -> int:
    """Which of the handlers is to run."""
    return current.cpu.rip - HANDLER


def saved(current: Current, word: int) -> int:
    return current.read_uint(current.cpu.regs[Reg.RSP] + 8 * word, 8)


# Hypercalls.


def hypercall(current: Current, number: int, *arguments: int) -> None:
    registers = (Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10, Reg.R8, Reg.R9)
    current.cpu.rip = BEHIND
    current.cpu.regs[Reg.RAX] = number
    for register, value in zip(registers, arguments, strict=False):
        current.cpu.regs[register] = value
    PvExits(current).syscall()


def test_a_hypercalls_result_is_in_rax(current: Current) -> None:
    hypercall(current, Nr.stack_switch, 0x2B, 0x12345678)
    assert current.cpu.regs[Reg.RAX] == 0
    assert pv(current).kernel_sp == 0x12345678
    assert (current.cpu.rip, current.cpu.regs[Reg.RCX]) == (BEHIND, BEHIND)


@pytest.mark.parametrize("number", [63, 1 << 32 | Nr.stack_switch, (1 << 64) - 1])
def test_there_is_no_such_hypercall(current: Current, number: int) -> None:
    hypercall(current, number, 0x2B, 0x1234)
    assert current.cpu.regs[Reg.RAX] == (1 << 64) - ENOSYS
    assert pv(current).kernel_sp != 0x1234


def test_a_hypercall_that_goes_on_is_issued_again(current: Current) -> None:
    def more(_: Current, a: int, b: int) -> None:
        raise Continue(a + 1, b)

    current.table = HypercallTable([Hypercall(5, "five", ALL, (ULONG, ULONG), more)])
    hypercall(current, 5, 10, 20, 30)
    regs = current.cpu.regs
    assert (current.cpu.rip, regs[Reg.RAX]) == (CODE, 5)
    assert [regs[r] for r in (Reg.RDI, Reg.RSI, Reg.RDX)] == [11, 20, 30]


def test_a_hypercalls_work_takes_the_guests_time(current: Current) -> None:
    def works(current: Current, units: int) -> None:
        current.domain.frames.work_left -= units

    def works_and_goes_on(current: Current, units: int) -> None:
        works(current, units)
        raise Continue(units)

    cpu = current.cpu
    assert isinstance(cpu, FakeCpu)
    rows = [(5, "five", works), (6, "six", works_and_goes_on)]
    current.table = HypercallTable(
        [Hypercall(number, name, ALL, (ULONG,), handler) for number, name, handler in rows]
    )
    for number in (5, 6):
        before_ns = cpu.spent_ns
        hypercall(current, number, 100)
        assert cpu.spent_ns - before_ns == 100 * WORK_NS


def test_what_is_emulated_takes_the_guests_time(current: Current) -> None:
    current.write(CODE, b"\x0f\x06")  # clts
    current.cpu.rip = CODE
    PvExits(current).exception(flags.GP, 0)
    assert isinstance(current.cpu, FakeCpu)
    assert current.cpu.spent_ns == EMULATION_NS


def test_iret_is_neither_answered_nor_logged(current: Current) -> None:
    frame = (7, 2, 3, 0, CODE, FLAT_RING3_CS64 & ~3, 0x202, STACK - 0x100, 0xE028)
    current.write(STACK, struct.pack("<9Q", *frame))
    hypercall(current, Nr.iret)
    assert (current.cpu.regs[Reg.RAX], current.cpu.rip) == (7, CODE)
    assert not current.domain.calls


def test_a_timer_that_a_hypercall_sets_shortens_the_slice(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    hypercall(current, Nr.set_timer_op, 12345)
    assert current.cpu.limit_ns == 12345


def test_events_are_delivered_behind_a_hypercall(current: Current) -> None:
    raise_event(current)
    hypercall(current, Nr.stack_switch, 0x2B, 0)
    assert entered(current) == 0x100
    assert (saved(current, 0), saved(current, 2)) == (BEHIND, BEHIND)


@pytest.mark.parametrize(("pending", "masked"), [(0, 0), (1, 1), (0, 1)])
def test_events_wait_while_masked(current: Current, pending: int, masked: int) -> None:
    raise_event(current, pending, masked)
    PvExits(current).deliver_events()
    assert current.cpu.rip == CODE


def test_a_vcpu_that_blocks_gets_its_events_later(current: Current) -> None:
    raise_event(current)
    current.vcpu.blocked = True
    PvExits(current).deliver_events()
    assert current.cpu.rip == CODE


# System calls.


def test_a_system_call_of_user_mode_is_the_guests(current: Current, exits: PvExits) -> None:
    toggle_guest_mode(current)
    exits.syscall()
    assert entered(current) == 0x200
    assert not current.domain.calls


def test_a_hypercall_leaves_flat_selectors(current: Current, exits: PvExits) -> None:
    cpu = current.cpu
    cpu.set_segment(Seg.CS, Segment(0xB, 0, 0xFFFFFFFF, segment.CODE64_RING3))
    cpu.set_segment(Seg.SS, Segment(0x13, 0, 0xFFFFFFFF, segment.DATA_RING3))
    cpu.regs[Reg.RAX] = Nr.xen_version
    exits.syscall()
    assert (cpu.segment(Seg.CS), cpu.segment(Seg.SS)) == (CS64, SS64)


@pytest.mark.parametrize("user", [False, True])
def test_32_bit_code_has_no_syscall(current: Current, exits: PvExits, user: bool) -> None:
    if user:
        toggle_guest_mode(current)
    current.cpu.set_segment(Seg.CS, Segment(0xE023, 0, 0xFFFFFFFF, segment.CODE32_RING3))
    current.cpu.rip = BEHIND
    exits.syscall()
    assert entered(current) == flags.UD
    assert saved(current, 2) == CODE


def test_sysenter_enters_its_callback_from_nowhere(current: Current, exits: PvExits) -> None:
    pv(current).sysenter_callback = Trap(0, HANDLER + 0x300, mask_events=True)
    toggle_guest_mode(current)
    cpu = current.cpu
    cpu.regs[Reg.RCX], cpu.regs[Reg.R11], cpu.rflags = 1, 2, 0x246 | flags.TF | flags.NT
    exits.sysenter()
    assert (entered(current), pv(current).kernel_mode, cpu.rflags) == (0x300, True, 0x246)
    frame = (1, 2, 0, 3, 0x246 | flags.TF | flags.NT, 0, FLAT_RING3_SS64)
    assert tuple(saved(current, word) for word in range(7)) == frame
    assert current.domain.memory.bytes[current.vcpu.info + 1] == 1


def test_sysenter_without_a_callback_is_gp_from_nowhere(current: Current, exits: PvExits) -> None:
    toggle_guest_mode(current)
    exits.sysenter()
    assert entered(current) == flags.GP
    assert [saved(current, word) for word in (2, 3, 4, 6)] == [0, 0, 3, 0]


def test_an_event_follows_a_sysenter(current: Current, exits: PvExits) -> None:
    pv(current).sysenter_callback = Trap(0, HANDLER + 0x300)
    toggle_guest_mode(current)
    raise_event(current)
    exits.sysenter()
    assert entered(current) == 0x100
    assert saved(current, 2) == HANDLER + 0x300


def test_a_kernels_own_sysenter_finds_no_stack(current: Current, exits: PvExits) -> None:
    pv(current).sysenter_callback = Trap(0, HANDLER + 0x300)
    with pytest.raises(DomainCrash, match="SYSENTER: no frame"):
        exits.sysenter()


# Software interrupts.


def test_int_n_is_allowed_by_the_gates_privilege(current: Current, exits: PvExits) -> None:
    pv(current).traps[0x21] = Trap(0, HANDLER + 0x21, dpl=1)
    exits.software_interrupt(0x21, 2)
    assert entered(current) == 0x21
    assert saved(current, 2) == CODE


@pytest.mark.parametrize(("user", "dpl"), [(False, 0), (True, 2), (True, 0)])
def test_int_n_is_refused_by_the_gates_privilege(
    current: Current, exits: PvExits, user: bool, dpl: int
) -> None:
    pv(current).traps[0x21] = Trap(0, HANDLER + 0x21, dpl)
    if user:
        toggle_guest_mode(current)
    current.cpu.rip = BEHIND
    exits.software_interrupt(0x21, 2)
    assert entered(current) == flags.GP
    assert (saved(current, 2), saved(current, 3)) == (0x21 << 3 | 2, CODE)


def test_a_refused_int_n_is_where_its_prefixes_begin(current: Current, exits: PvExits) -> None:
    current.cpu.rip = CODE + 4
    exits.software_interrupt(0x21, 4)
    assert (saved(current, 2), saved(current, 3)) == (0x21 << 3 | 2, CODE)


def test_xen_steps_over_two_bytes_of_an_int_n(current: Current, exits: PvExits) -> None:
    pv(current).traps[0x21] = Trap(0, HANDLER + 0x21, dpl=1)
    current.cpu.rip = CODE + 4
    exits.software_interrupt(0x21, 4)
    assert (entered(current), saved(current, 2)) == (0x21, CODE + 2)


def test_int_n_without_a_gate_is_refused(current: Current, exits: PvExits) -> None:
    del pv(current).traps[0x82]
    exits.software_interrupt(0x82, 2)
    assert entered(current) == flags.GP


@pytest.mark.parametrize("vector", [flags.BP, flags.OF_TRAP, 0x80])
def test_some_gates_are_open_to_all(current: Current, exits: PvExits, vector: int) -> None:
    toggle_guest_mode(current)
    current.cpu.rip = CODE + 4
    exits.software_interrupt(vector, 4)
    assert (entered(current), saved(current, 2)) == (vector, CODE + 4)


def test_int_80_without_a_gate_is_refused(current: Current, exits: PvExits) -> None:
    del pv(current).traps[0x80]
    current.cpu.rip = CODE + 4
    exits.software_interrupt(0x80, 4)
    assert (saved(current, 2), saved(current, 3)) == (0x80 << 3 | 2, CODE + 2)


def test_a_software_interrupt_never_has_an_error_code(current: Current, exits: PvExits) -> None:
    pv(current).traps[flags.GP] = Trap(0, HANDLER + flags.GP, dpl=3)
    exits.software_interrupt(flags.GP, 2)
    assert current.cpu.regs[Reg.RSP] == STACK - 56


# Exceptions.


def test_an_exception_goes_to_the_guest(current: Current, exits: PvExits) -> None:
    exits.exception(flags.DE, 0)
    assert entered(current) == flags.DE


def test_a_page_fault_goes_to_the_guest(current: Current, exits: PvExits) -> None:
    current.cpu.cr2 = 0x1234
    exits.exception(flags.PAGE_FAULT, PFEC_U)
    assert entered(current) == flags.PAGE_FAULT
    assert (pv(current).cr2, saved(current, 2)) == (0x1234, 0)


def ptwr(current: Current, error_code: int) -> None:
    """Store to the unused entry 200 of L1, which the guest has mapped read-only."""
    current.domain.vm_assist |= 1 << VMASST_TYPE_writable_pagetables
    current.write(CODE, MOV_RAX_TO_RDI)
    current.cpu.cr2 = current.cpu.regs[Reg.RDI] = (L1 << 12) + 8 * 200
    current.cpu.regs[Reg.RAX] = 0x23067
    PvExits(current).exception(flags.PAGE_FAULT, error_code)


def test_a_store_to_a_page_table_is_emulated(current: Current) -> None:
    ptwr(current, PFEC_P | PFEC_W | PFEC_U)
    assert current.cpu.rip == CODE + 3
    assert current.domain.memory.table(L1)[200] >> 12 & 0xFF == 0x23


@pytest.mark.parametrize(
    "error_code", [PFEC_P, PFEC_W, PFEC_P | PFEC_W | PFEC_RSVD, PFEC_P | PFEC_W | PFEC_I]
)
def test_only_a_refused_store_is_emulated(current: Current, error_code: int) -> None:
    ptwr(current, error_code)
    assert entered(current) == flags.PAGE_FAULT
    assert current.domain.memory.table(L1)[200] == 0


def test_user_mode_does_not_write_page_tables(current: Current) -> None:
    current.write(CODE, MOV_RAX_TO_RDI)
    toggle_guest_mode(current)
    ptwr(current, PFEC_P | PFEC_W | PFEC_U)
    assert entered(current) == flags.PAGE_FAULT
    assert current.domain.memory.table(L1)[200] == 0


def ldt_fault(current: Current, error_code: int, offset: int = 8) -> None:
    current.cpu.cr2 = ldt_base(0) + offset
    PvExits(current).exception(flags.PAGE_FAULT, error_code)


def test_a_page_of_the_ldt_is_faulted_in(current: Current) -> None:
    protect(current, LDT_FRAME)
    set_ldt(current, LDT_FRAME << 12, 4)
    ldt_fault(current, 0)
    assert current.cpu.rip == CODE
    assert pv(current).ldt_frames == {0: LDT_FRAME}


def test_a_page_of_the_ldt_that_is_not_there_faults_at_the_guests_address(
    current: Current,
) -> None:
    set_ldt(current, LDT_FRAME << 12, 4)  # mapped writable
    ldt_fault(current, 0)
    assert entered(current) == flags.PAGE_FAULT
    assert pv(current).cr2 == (LDT_FRAME << 12) + 8


@pytest.mark.parametrize("error_code", [PFEC_U, PFEC_U | PFEC_P, PFEC_RSVD])
def test_the_guest_itself_cannot_touch_the_ldts_place(current: Current, error_code: int) -> None:
    protect(current, LDT_FRAME)
    set_ldt(current, LDT_FRAME << 12, 4)
    ldt_fault(current, error_code)
    assert entered(current) == flags.PAGE_FAULT
    assert (pv(current).cr2, pv(current).ldt_frames) == (ldt_base(0) + 8, {})


def test_a_protection_fault_without_a_reason_we_know_is_the_guests(
    current: Current, exits: PvExits
) -> None:
    current.write(CODE, b"\xf4")  # hlt
    exits.exception(flags.GP, 0)
    assert (entered(current), saved(current, 3)) == (flags.GP, CODE)


def test_a_privileged_instruction_is_emulated(current: Current, exits: PvExits) -> None:
    current.write(CODE, b"\x0f\x06")  # clts
    exits.exception(flags.GP, 0)
    assert current.cpu.rip == CODE + 2


def test_a_protection_fault_with_a_selector_is_not_looked_at(
    current: Current, exits: PvExits
) -> None:
    current.write(CODE, b"\x0f\x06")
    exits.exception(flags.GP, 0x18)
    assert (entered(current), saved(current, 2)) == (flags.GP, 0x18)


def test_a_lazy_fpu_is_given_back_silently(current: Current, exits: PvExits) -> None:
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.task_switched = True
    exits.exception(flags.NM, 0)
    assert (current.cpu.rip, current.cpu.task_switched) == (CODE, False)


def test_a_guests_own_lazy_fpu_traps_once(current: Current, exits: PvExits) -> None:
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.task_switched = pv(current).task_switched = True
    exits.exception(flags.NM, 0)
    assert entered(current) == flags.NM
    assert not current.cpu.task_switched | pv(current).task_switched


def test_a_debug_trap_reports_its_causes_once(current: Current, exits: PvExits) -> None:
    current.cpu.set_debug_register(6, DR6_DEFAULT | 0x4001)
    exits.exception(flags.DB, 0)
    assert entered(current) == flags.DB
    assert pv(current).dr6 == DR6_DEFAULT | 0x4001
    assert current.cpu.debug_register(6) == DR6_DEFAULT


def test_an_undefined_instruction_is_the_guests(current: Current, exits: PvExits) -> None:
    current.write(CODE, b"\x0f\x0b" + bytes(8))
    exits.invalid_opcode()
    assert (entered(current), saved(current, 2)) == (flags.UD, CODE)


def test_native_cpuid_is_answered_unless_the_guest_has_it_fault(
    current: Current, exits: PvExits
) -> None:
    assert exits.cpuid()
    current.vcpu.msrs[MISC_FEATURES_ENABLES] = MISC_FEATURES_CPUID_FAULTING
    assert exits.cpuid()
    toggle_guest_mode(current)
    assert not exits.cpuid()


def test_a_domain_without_handlers_crashes(current: Current, exits: PvExits) -> None:
    pv(current).traps.clear()
    pv(current).event_callback = Trap(0, 0)
    with pytest.raises(DomainCrash):
        exits.exception(flags.DE, 0)
    raise_event(current)
    with pytest.raises(DomainCrash):
        exits.deliver_events()


# A debug build of Xen.

POISON = 0xDEADBEEFDEADF00D


def test_debug_xen_spoils_the_arguments(current: Current, exits: PvExits) -> None:
    current.domain.debug_xen = True
    regs = current.cpu.regs
    regs[Reg.RAX], regs[Reg.RDI], regs[Reg.RSI], regs[Reg.RDX] = Nr.xen_version, 0, 7, 8
    exits.syscall()
    assert regs[Reg.RDI] == regs[Reg.RSI] == POISON
    assert regs[Reg.RDX] == 8


def test_debug_xen_knows_that_set_callbacks_has_three(current: Current, exits: PvExits) -> None:
    current.domain.debug_xen = True
    regs = current.cpu.regs
    regs[Reg.RAX], regs[Reg.R10] = Nr.set_callbacks, 8
    exits.syscall()
    assert (regs[Reg.RDX], regs[Reg.R10]) == (POISON, 8)


def test_debug_xen_leaves_an_unknown_hypercall_alone(current: Current, exits: PvExits) -> None:
    current.domain.debug_xen = True
    regs = current.cpu.regs
    for number in (Nr.argo_op, 99):
        regs[Reg.RAX], regs[Reg.RDI] = number, 7
        exits.syscall()
        assert regs[Reg.RDI] == 7


# NMIs.


def send_nmi(exits: PvExits) -> None:
    """The hypercall, from just before BEHIND."""
    regs = exits.current.cpu.regs
    regs[Reg.RAX], regs[Reg.RDI], regs[Reg.RSI], regs[Reg.RDX] = Nr.vcpu_op, 11, 0, 0
    exits.current.cpu.rip = BEHIND
    exits.syscall()
    assert regs[Reg.RAX] == 0


def put_iret_frame(current: Current) -> None:
    frame = iret_context(0, 0, 0, 0, CODE, FLAT_RING3_CS64, 0x202, STACK, FLAT_RING3_SS64)
    current.cpu.regs[Reg.RSP] = 0x32000
    current.write_struct(0x32000, frame)
    current.cpu.regs[Reg.RAX] = Nr.iret
    current.cpu.rip = BEHIND


def test_an_nmi_is_taken_with_events_masked(current: Current, exits: PvExits) -> None:
    pv(current).traps[flags.NMI] = Trap(FLAT_RING3_CS64, HANDLER + 2, mask_events=True)
    raise_event(current, 1)
    current.domain.memory.bytes[current.vcpu.info + 1] = 0
    send_nmi(exits)
    assert entered(current) == flags.NMI
    assert saved(current, 2) == BEHIND  # no error code
    assert current.domain.memory.bytes[current.vcpu.info + 1] == 1


def test_another_nmi_waits_for_an_iret(current: Current, exits: PvExits) -> None:
    send_nmi(exits)
    send_nmi(exits)
    assert current.cpu.rip == BEHIND
    put_iret_frame(current)
    exits.syscall()
    assert entered(current) == flags.NMI
    assert saved(current, 2) == CODE


def test_an_nmi_from_another_vcpu_is_taken_when_its_vcpu_gets_the_cpu(
    current: Current, exits: PvExits
) -> None:
    sent = replace(current.vcpu, vcpu_id=1, arch=replace(pv(current), nmi_pending=True))
    current.domain.vcpus.append(sent)
    exits.deliver_events()
    assert current.cpu.rip != HANDLER + 2 and not pv(current).nmi_masked
    current.vcpu = sent
    pv(current).traps[flags.NMI] = Trap(FLAT_RING3_CS64, HANDLER + 2)
    exits.deliver_events()
    assert entered(current) == flags.NMI


@pytest.mark.parametrize("address", [None, 0])
def test_an_nmi_without_a_handler_is_lost(
    current: Current, exits: PvExits, address: int | None
) -> None:
    del pv(current).traps[flags.NMI]
    if address is not None:
        pv(current).traps[flags.NMI] = Trap(FLAT_RING3_CS64, address)
    send_nmi(exits)
    assert current.cpu.rip == BEHIND
    pv(current).traps[flags.NMI] = Trap(FLAT_RING3_CS64, HANDLER)
    exits.deliver_events()
    assert current.cpu.rip == BEHIND


def test_an_nmi_wakes_nobody(current: Current, exits: PvExits) -> None:
    current.vcpu.blocked = True
    pv(current).nmi_pending = True
    exits.deliver_events()
    assert (current.cpu.rip, pv(current).nmi_pending) == (CODE, True)
