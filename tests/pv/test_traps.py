"""pv/traps: bounce frames, system calls, iret."""

from __future__ import annotations

import struct

import pytest

from fakes import (
    CODE,
    KERNEL_ONLY,
    KERNEL_STACK,
    ROOT,
    USER_ROOT,
    make_pv_current,
    protect,
)
from xenemu.abi.arch_x86.xen import (
    FLAT_RING3_CS32,
    FLAT_RING3_CS64,
    FLAT_RING3_SS64,
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    VGCF_in_syscall,
    iret_context,
)
from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.errors import DomainCrash
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pv import traps
from xenemu.pv.descriptors import set_gdt, set_ldt
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags
from xenemu.x86.flags import AC, DF, IF, IOPL, NT, RF, TF, VM

HANDLER = KERNEL_ONLY + 0x1234
STACK = 0x30008  # not aligned to 16
USER_CS, USER_SS = 0x2B, 0x33
FAULTS = {vector: Trap(FLAT_RING3_CS64, HANDLER + vector) for vector in range(20)}
GDT = 60


@pytest.fixture
def current() -> Current:
    """In kernel mode, with a handler for every exception."""
    current = make_pv_current()
    pv(current).traps.update(FAULTS)
    current.cpu.regs[Reg.RSP] = STACK
    current.cpu.regs[Reg.RCX], current.cpu.regs[Reg.R11] = 0xCC, 0x11
    return current


def to_user(current: Current) -> None:
    toggle_guest_mode(current)
    current.cpu.set_segment(Seg.CS, Segment(USER_CS, 0, 0, traps.CS64.attributes))
    current.cpu.set_segment(Seg.SS, Segment(USER_SS))


def mask(current: Current) -> int:
    return current.domain.memory.bytes[current.vcpu.info + 1]


def set_mask(current: Current, value: int) -> None:
    current.domain.memory.bytes[current.vcpu.info + 1] = value


def frame(current: Current, words: int = 7) -> tuple[int, ...]:
    return struct.unpack(f"<{words}Q", current.read(current.cpu.regs[Reg.RSP], 8 * words))


def crashes(current: Current, why: str, vector: int = flags.GP) -> None:
    with pytest.raises(DomainCrash, match=why):
        traps.inject(current, vector)


# Frames.


def test_a_frame_from_the_kernel_is_on_its_own_stack_aligned(current: Current) -> None:
    traps.inject(current, flags.UD)
    assert current.cpu.regs[Reg.RSP] == 0x30000 - 56
    kernel_cs = FLAT_RING3_CS64 & ~3
    assert frame(current) == (0xCC, 0x11, CODE, kernel_cs, 0x202, STACK, FLAT_RING3_SS64)
    assert current.cpu.rip == HANDLER + flags.UD


def test_a_frame_from_user_mode_is_on_the_kernels_stack(current: Current) -> None:
    to_user(current)
    traps.inject(current, flags.UD)
    assert current.cpu.regs[Reg.RSP] == KERNEL_STACK - 56
    assert frame(current)[2:] == (CODE, USER_CS, 0x202, STACK, USER_SS)
    assert (pv(current).kernel_mode, current.cpu.cr3) == (True, ROOT << 12)


def test_an_error_code_is_below_rip(current: Current) -> None:
    traps.inject(current, flags.GP, 0x18)
    assert frame(current, 8)[2:4] == (0x18, CODE)
    assert current.cpu.regs[Reg.RSP] == 0x30000 - 64


@pytest.mark.parametrize(("masked", "seen_if"), [(0, IF), (1, 0), (0x80, 0)])
def test_the_frame_has_the_event_mask_and_its_inverse_as_if(
    current: Current, masked: int, seen_if: int
) -> None:
    set_mask(current, masked)
    traps.inject(current, flags.UD)
    assert frame(current)[3] >> 32 == masked
    assert frame(current)[4] & IF == seen_if


def test_events_are_masked_on_entry_if_the_trap_says_so(current: Current) -> None:
    traps.inject(current, flags.UD)
    assert mask(current) == 0
    pv(current).traps[flags.UD] = Trap(0, HANDLER, mask_events=True)
    traps.inject(current, flags.UD)
    assert mask(current) == 1
    assert frame(current)[3] >> 32 == 0


def test_flags_that_a_trap_clears_are_saved_and_cleared(current: Current) -> None:
    current.cpu.rflags |= TF | NT | RF | AC | DF
    traps.inject(current, flags.UD)
    assert frame(current)[4] & (TF | NT | RF | AC | DF) == TF | NT | RF | AC | DF
    assert current.cpu.rflags == 0x202 | DF


def test_iopl_is_shown_only_to_those_who_ask(current: Current) -> None:
    pv(current).iopl = 1
    current.cpu.rflags |= 3 << flags.IOPL_SHIFT
    traps.inject(current, flags.UD)
    assert frame(current)[4] & IOPL == 0
    current.domain.vm_assist = 1 << VMASST_TYPE_architectural_iopl
    traps.inject(current, flags.UD)
    assert frame(current)[4] & IOPL == 1 << flags.IOPL_SHIFT


def test_the_handler_runs_in_flat_segments(current: Current) -> None:
    to_user(current)
    traps.inject(current, flags.UD)
    assert current.cpu.segment(Seg.CS) == traps.CS64
    assert current.cpu.segment(Seg.SS) == traps.SS64


def test_the_handler_is_entered_by_sysret(current: Current) -> None:
    traps.inject(current, flags.UD)
    regs = current.cpu.regs
    assert (regs[Reg.RCX], regs[Reg.R11]) == (current.cpu.rip, current.cpu.rflags)


def test_an_event_masks_events(current: Current) -> None:
    pv(current).event_callback = Trap(0, HANDLER, mask_events=True)
    traps.deliver_event(current)
    assert (current.cpu.rip, mask(current)) == (HANDLER, 1)


# Frames that cannot be.


def test_without_a_handler_the_domain_crashes(current: Current) -> None:
    pv(current).traps.clear()
    crashes(current, "#GP at 0x21000, but the guest has no handler for it")


def test_a_crash_says_what_to_do(current: Current) -> None:
    pv(current).traps.clear()
    with pytest.raises(DomainCrash) as crash:
        traps.inject(current, flags.GP)
    assert "HYPERVISOR_set_trap_table" in crash.value.advice


@pytest.mark.parametrize(
    "stack", [HYPERVISOR_VIRT_START + 16, HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_END + 48]
)
def test_a_stack_in_xens_area_crashes_the_domain(current: Current, stack: int) -> None:
    current.cpu.regs[Reg.RSP] = stack
    crashes(current, "Xen's own area")


@pytest.mark.parametrize(
    "stack", [0, 8, ROOT << 12 | 0x800, 1 << 47, (1 << 64) - 1, HYPERVISOR_VIRT_START, 0x10010]
)
def test_a_stack_that_is_not_mapped_crashes_the_domain(current: Current, stack: int) -> None:
    current.cpu.regs[Reg.RSP] = stack
    before = bytes(current.domain.memory.bytes)
    crashes(current, "no frame on the guest's kernel stack")
    assert bytes(current.domain.memory.bytes) == before


# Page faults.


@pytest.mark.parametrize(("user", "code"), [(False, 3), (True, 7)])
def test_a_page_fault_tells_address_and_mode(current: Current, user: bool, code: int) -> None:
    if user:
        to_user(current)
    traps.inject_page_fault(current, 0xFFFF_F000_0000_1234, 7)
    assert frame(current, 8)[2] == code
    assert pv(current).cr2 == 0xFFFF_F000_0000_1234
    info = current.vcpu.info
    assert current.domain.memory.read_uint(info + 16, 8) == pv(current).cr2  # type: ignore[arg-type]


# Emulated instructions.


def test_an_emulated_instruction_is_stepped_over(current: Current) -> None:
    current.cpu.rflags |= RF
    traps.complete_instruction(current, 3)
    assert (current.cpu.rip, current.cpu.rflags) == (CODE + 3, 0x202)


def test_rip_wraps_at_64_bits(current: Current) -> None:
    current.cpu.rip = (1 << 64) - 1
    traps.complete_instruction(current, 3)
    assert current.cpu.rip == 2


def test_a_traced_instruction_is_followed_by_a_debug_trap(current: Current) -> None:
    current.cpu.rflags |= TF
    traps.complete_instruction(current, 3)
    assert current.cpu.rip == HANDLER + flags.DB
    assert frame(current)[2] == CODE + 3
    assert pv(current).dr6 & traps.DR6_BS


# System calls.


def test_a_system_call_enters_its_callback(current: Current) -> None:
    pv(current).syscall_callback = Trap(0, HANDLER)
    to_user(current)
    traps.syscall_from_user(current)
    assert current.cpu.rip == HANDLER
    saved = (CODE, 0x202, CODE, FLAT_RING3_CS64, 0x202, STACK, FLAT_RING3_SS64)
    assert frame(current) == saved


def test_a_system_call_clears_the_direction_flag(current: Current) -> None:
    pv(current).syscall_callback = Trap(0, HANDLER)
    to_user(current)
    current.cpu.rflags |= DF
    traps.syscall_from_user(current)
    assert frame(current)[4] & DF
    assert not (current.cpu.rflags | current.cpu.regs[Reg.R11]) & DF


def test_a_system_call_without_callback_is_undefined(current: Current) -> None:
    to_user(current)
    current.cpu.rip = CODE + 2
    traps.syscall_from_user(current)
    assert current.cpu.rip == HANDLER + flags.UD
    assert frame(current)[:3] == (CODE + 2, 0x202, CODE)


# iret.


def put_iret(current: Current, **fields: int) -> None:
    values = {
        "rax": 1,
        "r11": 2,
        "rcx": 3,
        "flags": 0,
        "rip": 0x400000,
        "cs": FLAT_RING3_CS64,
        "rflags": 0x202,
        "rsp": 0x7000,
        "ss": FLAT_RING3_SS64,
    }
    current.cpu.regs[Reg.RSP] = STACK
    current.write_struct(STACK, iret_context(**values | fields))


def iret(current: Current, **fields: int) -> None:
    put_iret(current, **fields)
    traps.iret(current)


def test_iret_to_user_mode_restores_everything(current: Current) -> None:
    iret(current)
    cpu = current.cpu
    assert [cpu.regs[r] for r in (Reg.RAX, Reg.R11, Reg.RCX, Reg.RSP)] == [1, 2, 3, 0x7000]
    assert (cpu.rip, cpu.rflags, cpu.cr3) == (0x400000, 0x202, USER_ROOT << 12)
    assert not pv(current).kernel_mode


def test_iret_to_the_kernel_keeps_its_address_space(current: Current) -> None:
    iret(current, cs=FLAT_RING3_CS64 & ~3, ss=FLAT_RING3_SS64 & ~3)
    assert (pv(current).kernel_mode, current.cpu.cr3) == (True, ROOT << 12)
    assert current.cpu.segment(Seg.CS) == traps.CS64
    assert current.cpu.segment(Seg.SS) == traps.SS64


@pytest.mark.parametrize(("rflags", "masked"), [(0x202, 0), (0x002, 1)])
def test_ifs_inverse_becomes_the_event_mask(current: Current, rflags: int, masked: int) -> None:
    set_mask(current, 1 - masked)
    iret(current, rflags=rflags)
    assert mask(current) == masked
    assert current.cpu.rflags & IF


def test_iret_restores_only_flags_that_a_guest_may_have(current: Current) -> None:
    iret(current, rflags=(1 << 64) - 1)
    assert current.cpu.rflags & (IOPL | VM) == 0
    assert current.cpu.rflags & (TF | NT | AC | DF) == TF | NT | AC | DF
    assert current.cpu.rflags < 1 << 22


def test_only_a_syscall_return_is_stepped_itself(current: Current) -> None:
    for rflags, vgcf, by_iret in ((TF, 0, True), (TF, VGCF_in_syscall, False), (0, 0, False)):
        current.cpu.left_by_iret = False
        iret(current, cs=FLAT_RING3_CS64 & ~3, rflags=0x202 | rflags, flags=vgcf)
        assert current.cpu.left_by_iret is by_iret


def test_iret_sets_iopl_only_for_those_who_asked(current: Current) -> None:
    iret(current, rflags=0x202 | IOPL)
    assert pv(current).iopl == 0
    toggle_guest_mode(current)
    current.domain.vm_assist = 1 << VMASST_TYPE_architectural_iopl
    iret(current, rflags=0x202 | 2 << flags.IOPL_SHIFT)
    assert pv(current).iopl == 2


def test_a_syscall_return_loses_rcx_r11_and_selectors(current: Current) -> None:
    iret(current, flags=VGCF_in_syscall, cs=0x4B, ss=0x53, rflags=0x202 | RF)
    regs = current.cpu.regs
    assert (regs[Reg.RCX], regs[Reg.R11]) == (0x400000, 0x202 | RF)
    assert current.cpu.rflags == 0x202
    assert current.cpu.segment(Seg.CS) == traps.CS64


def test_a_syscall_return_to_32_bit_code_goes_there(current: Current) -> None:
    iret(current, flags=VGCF_in_syscall, cs=FLAT_RING3_CS32)
    assert current.cpu.segment(Seg.CS).selector == FLAT_RING3_CS32


def test_iret_without_a_user_root_crashes_the_domain(current: Current) -> None:
    pv(current).user_root = 0  # type: ignore[assignment]
    with pytest.raises(DomainCrash, match="no user page tables"):
        iret(current)


@pytest.mark.parametrize("stack", [0, 1 << 47, (1 << 64) - 8, (80 << 12) - 64])
def test_iret_without_a_frame_crashes_the_domain(current: Current, stack: int) -> None:
    current.cpu.regs[Reg.RSP] = stack
    with pytest.raises(DomainCrash, match="no frame"):
        traps.iret(current)


# iret to what the CPU does not accept: the fault comes from the target.

CODE64, CODE32 = 0x00AFFB000000FFFF, 0x00CFFB000000FFFF
DATA, READ_ONLY_DATA = 0x00CFF3000000FFFF, 0x00CFF1000000FFFF
BOTH_L_AND_DB = 0x00EFFB000000FFFF
ABSENT = ~(1 << 47)
DESCRIPTORS = [
    0,
    CODE64,
    CODE32,
    DATA,
    READ_ONLY_DATA,
    BOTH_L_AND_DB,
    CODE64 & ABSENT,
    DATA & ABSENT,
    0x00408B0000000FFF | 0x7000 << 32,  # 16-bit-limited code of ring 3: 4 KiB
]


def with_gdt(current: Current) -> None:
    protect(current, GDT)
    for index, descriptor in enumerate(DESCRIPTORS):
        current.domain.memory.words[GDT << 9 | index] = descriptor
    set_gdt(current, [GDT], 512)


def test_iret_loads_the_guests_own_segments(current: Current) -> None:
    with_gdt(current)
    iret(current, cs=2 << 3 | 3, ss=3 << 3 | 3)
    assert current.cpu.segment(Seg.CS) == Segment(0x13, 0, 0xFFFFFFFF, CODE32 >> 32 & 0xF0FF00)
    assert current.cpu.segment(Seg.SS) == Segment(0x1B, 0, 0xFFFFFFFF, DATA >> 32 & 0xF0FF00)


@pytest.mark.parametrize(
    ("fields", "vector", "error_code"),
    [
        ({"cs": 3}, flags.GP, 0),
        ({"cs": 3 << 3 | 3}, flags.GP, 3 << 3),  # data
        ({"cs": 5 << 3 | 3}, flags.GP, 5 << 3),
        ({"cs": 6 << 3 | 3}, flags.NP, 6 << 3),
        ({"cs": 0xFFFB}, flags.GP, 0xFFF8),  # beyond the GDT
        ({"cs": 0xE00B}, flags.GP, 0xE008),  # Xen's own
        ({"cs": 0x0F | 3}, flags.GP, 0x0C),  # no LDT
        ({"ss": 3}, flags.GP, 0),
        ({"ss": 1 << 3 | 3}, flags.GP, 1 << 3),  # code
        ({"ss": 4 << 3 | 3}, flags.GP, 4 << 3),
        ({"ss": 7 << 3 | 3}, flags.SS, 7 << 3),
        ({"rip": 1 << 47}, flags.GP, 0),
        ({"cs": 2 << 3 | 3, "rip": 1 << 32}, flags.GP, 0),
    ],
)
def test_a_refused_iret_faults_at_its_target(
    current: Current, fields: dict[str, int], vector: int, error_code: int
) -> None:
    with_gdt(current)
    put_iret(current, **fields)
    target = current.read_struct(iret_context, STACK)
    traps.iret(current)
    assert current.cpu.rip == HANDLER + vector
    assert current.cpu.regs[Reg.RSP] == KERNEL_STACK - 64
    assert frame(current, 8)[2:4] == (error_code, target.rip)
    assert [frame(current, 8)[n] for n in (4, 6, 7)] == [target.cs, target.rsp, target.ss]


def test_a_refused_iret_to_the_kernel_faults_on_its_new_stack(current: Current) -> None:
    iret(current, cs=0, rsp=0x32000)
    assert current.cpu.rip == HANDLER + flags.GP
    assert current.cpu.regs[Reg.RSP] == 0x32000 - 64
    assert frame(current, 8)[4] == 0


def test_a_syscall_return_to_nowhere_faults_by_iret(current: Current) -> None:
    iret(current, flags=VGCF_in_syscall, rip=1 << 47)
    assert current.cpu.rip == HANDLER + flags.GP
    assert frame(current, 8)[:4] == (1 << 47, 0x202, 0, 1 << 47)
    assert "to 0xe033:0x800000000000," in current.domain.refusals[-1]
    assert current.domain.refusals[-1].endswith("#GP, error code 0x0")


def test_an_iret_through_an_ldt_that_is_not_mapped_is_a_page_fault(current: Current) -> None:
    ldt = KERNEL_ONLY + (1 << 21)
    set_ldt(current, ldt, 4)
    iret(current, ss=2 << 3 | 7)
    assert current.cpu.rip == HANDLER + flags.PAGE_FAULT
    assert (frame(current, 8)[2], pv(current).cr2) == (4, ldt + 16)


@pytest.mark.parametrize("word", range(9))
def test_no_frame_can_surprise_iret(current: Current, word: int) -> None:
    with_gdt(current)
    for value in (0, (1 << 64) - 1, 1 << 63, 0xDEAD_BEEF_CAFE_F00D):
        put_iret(current)
        current.write_uint(STACK + 8 * word, 8, value)
        try:
            traps.iret(current)
        except DomainCrash:
            continue
        if not pv(current).kernel_mode:
            toggle_guest_mode(current)
