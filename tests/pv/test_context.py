"""pv/context: what a PV guest may give a vcpu to begin with, and how the vcpu begins."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fakes32
from fakes import KERNEL_STACK, ROOT, USER_ROOT, FakeCpu, make_pv_current, protect
from hypercalls.vcpu_op import vcpu_op
from xenemu.abi.arch_x86.xen import (
    FLAT_RING1_CS,
    FLAT_RING1_DS,
    FLAT_RING3_CS64,
    FLAT_RING3_SS64,
    VGCF_failsafe_disables_events,
    VGCF_i387_valid,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
    cpu_user_regs,
    cpu_user_regs32,
    trap_info,
    vcpu_guest_context,
)
from xenemu.abi.errno import EEXIST, EINVAL
from xenemu.abi.vcpu import VCPUOP_initialise, VCPUOP_is_up, VCPUOP_send_nmi, VCPUOP_up
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.pv.audit import audit
from xenemu.pv.context import load_context
from xenemu.pv.paging import mfn_to_cr3
from xenemu.pv.state import DR6_DEFAULT, DR7_DEFAULT, PvVcpu, StartContext, Trap, pv_vcpu
from xenemu.x86 import flags, segment
from xenemu.x86.paging import Maddr, Mfn

POINTER = 0x28000
GDT = 24  # a frame of zeroes: 512 descriptors that are not present
WILD = 1 << 47  # not canonical
ENTRY, STACK, HANDLER = 0x21000, 0x22000, 0x23000
FS, GS_KERNEL, GS_USER = 0x1000, 0x2000, 0x3000
VECTOR = 0x20


def words(*values: int, count: int = 8, width: int = 8) -> bytes:
    code = "Q" if width == 8 else "I"
    return struct.pack(f"<{count}{code}", *values, *[0] * (count - len(values)))


def registers(**values: int) -> bytes:
    """A 64-bit kernel's, and what a test says."""
    given = {"rip": ENTRY, "rsp": STACK, "cs": FLAT_RING3_CS64, "ss": FLAT_RING3_SS64} | values
    return _packed(cpu_user_regs, given)


def registers32(**values: int) -> bytes:
    data = dict.fromkeys(("ss", "ds", "es", "fs", "gs"), FLAT_RING1_DS)
    return _packed(
        cpu_user_regs32, {"eip": ENTRY, "esp": STACK, "cs": FLAT_RING1_CS} | data | values
    )


def _packed(cls: Any, given: dict[str, int]) -> bytes:
    defaults = {"pad1": bytes(3)} | {f"pad{n}": bytes(6) for n in range(2, 7)}
    if cls is cpu_user_regs32:
        defaults = {}
    every = dict.fromkeys(cls.layout(8).offsets, 0) | defaults | given
    return bytes(cls(**every).pack(8))


def handlers(width: int = 8, **of_vector: int) -> bytes:
    """The trap table, with one handler."""
    table = [trap_info(0, 0, 0, 0)] * 256
    table[VECTOR] = trap_info(0, 3 | 4, of_vector.get("cs", 0xE030), of_vector["address"])
    return b"".join(entry.pack(width) for entry in table)


def context(**changes: Any) -> vcpu_guest_context:
    """A context that Xen takes, but for what a test changes."""
    good = vcpu_guest_context(
        fpu_ctxt=bytes(512),
        flags=VGCF_in_kernel,
        user_regs=registers(),
        trap_ctxt=handlers(address=HANDLER),
        ldt_base=0,
        ldt_ents=0,
        gdt_frames=words(GDT, count=16),
        gdt_ents=512,
        kernel_ss=FLAT_RING3_SS64,
        kernel_sp=KERNEL_STACK,
        ctrlreg=words(8, USER_ROOT << 12, 0, ROOT << 12),
        debugreg=words(),
        event_callback_cs=b"",
        event_callback_eip=0x100,
        failsafe_callback_cs=b"",
        failsafe_callback_eip=0x200,
        syscall_callback_eip=words(0x300, count=1),
        vm_assist=0,
        fs_base=words(FS, count=1),
        gs_base_kernel=words(GS_KERNEL, count=1),
        gs_base_user=words(GS_USER, count=1),
    )
    return replace(good, **changes)


def context32(**changes: Any) -> vcpu_guest_context:
    nothing = dict.fromkeys(
        ("syscall_callback_eip", "fs_base", "gs_base_kernel", "gs_base_user"), b""
    )
    narrow = context(
        user_regs=registers32(),
        trap_ctxt=handlers(4, cs=FLAT_RING1_CS, address=HANDLER),
        gdt_frames=words(fakes32.GDT, count=16, width=4),
        kernel_ss=FLAT_RING1_DS,
        ctrlreg=words(0, 0, 0, mfn_to_cr3(fakes32.L3, 4), width=4),
        debugreg=words(width=4),
        event_callback_cs=words(FLAT_RING1_CS, count=1, width=4),
        failsafe_callback_cs=words(FLAT_RING1_CS, count=1, width=4),
        **nothing,
    )
    return replace(narrow, **changes)


@pytest.fixture
def current() -> Current:
    current = make_pv_current(vcpus=2)
    current.domain.vcpus[1].arch = PvVcpu(Mfn(0))
    protect(current, GDT)
    return current


@pytest.fixture
def current32() -> Current:
    current = fakes32.make_pv32_current()
    info = Maddr(current.vcpu.info + 64)
    current.domain.vcpus.append(Vcpu(1, info, 4, "pv32", arch=PvVcpu(Mfn(0))))
    return current


def initialise(current: Current, given: vcpu_guest_context, vcpu_id: int = 1) -> None:
    current.write_struct(POINTER, given)
    assert vcpu_op.handler is not None
    vcpu_op.handler(current, VCPUOP_initialise, vcpu_id, POINTER)


def refused(current: Current, given: vcpu_guest_context, reason: str) -> None:
    domain, frames = current.domain, current.domain.frames
    current.write_struct(POINTER, given)

    def books() -> tuple[Any, ...]:
        counts = list(frames.count), list(frames.type_count), list(frames.type)
        return repr(domain.vcpus), *counts, bytes(domain.memory.read(Maddr(0x10000), 0x30000))

    before = books()
    with pytest.raises(XenError, match=reason) as error:
        initialise(current, given)
    assert error.value.errno == EINVAL, reason
    assert books() == before, reason


# Refusals.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user_regs": registers(rip=WILD)}, "its RIP, 0x800000000000, is not a canonical"),
        ({"user_regs": registers(rsp=WILD)}, "its RSP"),
        ({"kernel_sp": WILD}, "its kernel's stack"),
        ({"ldt_base": WILD, "ldt_ents": 1}, "its LDT"),
        ({"ldt_base": WILD}, "an LDT cannot be at"),
        ({"ldt_base": 0xFFFF_8000_0000_0000}, "an LDT cannot be at"),
        ({"ldt_base": 0x1008}, "an LDT begins on a page boundary"),
        ({"ldt_ents": 8193}, "an LDT has at most 8192 entries"),
        ({"fs_base": words(WILD, count=1)}, "its FS base"),
        ({"gs_base_kernel": words(WILD, count=1)}, "its kernel's GS base"),
        ({"gs_base_user": words(WILD, count=1)}, "its user's GS base"),
        ({"event_callback_eip": WILD}, "its event callback"),
        ({"failsafe_callback_eip": WILD}, "its failsafe callback"),
        ({"syscall_callback_eip": words(WILD, count=1)}, "its SYSCALL callback"),
        ({"trap_ctxt": handlers(address=WILD)}, "its handler of vector 0x20"),
        ({"flags": 0, "ctrlreg": words(0, 0, 0, ROOT << 12)}, "starts in user mode needs page"),
        ({"gdt_ents": 7169}, "a GDT of 7169 entries"),
        (
            {"gdt_frames": words(GDT, 25, count=16), "gdt_ents": 513},
            "mfn 0x19",
        ),  # 25 is mapped writable
        ({"ctrlreg": words(0, 0, 0, 1 << 40)}, "0x10000000"),
        ({"ctrlreg": words(0, GDT << 12, 0, ROOT << 12)}, "other type in use"),
    ],
)
def test_what_a_64_bit_guest_may_not_give_a_vcpu(
    current: Current, changes: dict[str, Any], reason: str
) -> None:
    refused(current, context(**changes), reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ldt_base": 0x1008}, "an LDT begins on a page boundary"),
        ({"ldt_ents": 8193}, "an LDT has at most 8192 entries"),
        ({"gdt_ents": 7169}, "a GDT of 7169 entries"),
        ({"ctrlreg": words(0, 0, 0, 0x77000, width=4)}, "0x77"),
    ],
)
def test_what_a_32_bit_guest_may_not_give_a_vcpu(
    current32: Current, changes: dict[str, Any], reason: str
) -> None:
    refused(current32, context32(**changes), reason)


def test_a_vcpu_is_initialised_once(current: Current) -> None:
    initialise(current, context())
    with pytest.raises(XenError) as error:
        initialise(current, context())
    assert error.value.errno == EEXIST


def test_a_vcpu_without_a_place_for_its_info_cannot_be_initialised() -> None:
    current = make_pv_current(vcpus=34)
    current.write_struct(POINTER, context())
    assert vcpu_op.handler is not None
    with pytest.raises(XenError, match="no vcpu_info") as error:
        vcpu_op.handler(current, VCPUOP_initialise, 32, POINTER)
    assert error.value.errno == EINVAL


def test_an_initialisation_that_takes_long_is_made_again(current: Current) -> None:
    """The root is not a table yet, and the call may not look at all its entries."""
    fresh = 26  # maps what ROOT does
    table = current.domain.memory.table(Mfn(fresh))
    table[0], table[1] = (current.domain.memory.words[ROOT << 9 | n] for n in (0, 1))
    protect(current, fresh)
    given = context(ctrlreg=words(0, 0, 0, fresh << 12))
    current.domain.frames.work_left = -1
    with pytest.raises(Continue) as again:
        initialise(current, given)
    assert again.value.new_args == (VCPUOP_initialise, 1, POINTER)
    assert not pv_vcpu(current.domain.vcpus[1]).gdt_frames
    current.domain.frames.work_left = 1000
    initialise(current, given)
    assert pv_vcpu(current.domain.vcpus[1]).kernel_root == fresh


# What it then is.


def test_a_vcpu_has_what_it_was_given(current: Current) -> None:
    vcpu = current.domain.vcpus[1]
    disables = VGCF_failsafe_disables_events | VGCF_syscall_disables_events
    initialise(current, context(flags=VGCF_in_kernel | disables, ldt_base=0x5000, ldt_ents=3))
    state = pv_vcpu(vcpu)
    assert vcpu.initialised and not vcpu.online
    assert (state.kernel_root, state.user_root, state.kernel_mode) == (ROOT, USER_ROOT, True)
    assert (state.gdt_frames, state.gdt_entries) == ([GDT], 512)
    assert (state.ldt_base, state.ldt_entries) == (0x5000, 3)
    assert state.traps == {VECTOR: Trap(0xE033, HANDLER, 3, mask_events=True)}
    assert (state.kernel_ss, state.kernel_sp) == (FLAT_RING3_SS64, KERNEL_STACK)
    for callback, address in (
        (state.event_callback, 0x100),
        (state.failsafe_callback, 0x200),
        (state.syscall_callback, 0x300),
    ):
        assert callback == Trap(FLAT_RING3_CS64, address, mask_events=True)
    assert state.task_switched


def test_a_vcpu_may_start_at_once(current: Current) -> None:
    vcpu = current.domain.vcpus[1]
    initialise(current, context(flags=VGCF_in_kernel | VGCF_online))
    assert vcpu.runnable and vcpu.runstate is RunState.RUNNABLE
    assert current.domain.reschedule
    assert vcpu_op.handler is not None
    assert vcpu_op.handler(current, VCPUOP_is_up, 1, 0) == 1


def test_coming_up_asks_for_a_turn(current: Current) -> None:
    initialise(current, context())
    assert not current.domain.reschedule
    assert vcpu_op.handler is not None
    vcpu_op.handler(current, VCPUOP_up, 1, 0)
    assert current.domain.vcpus[1].runnable and current.domain.reschedule


def test_the_books_are_right_then(current: Current, current32: Current) -> None:
    for each, wanted in ((current, context()), (current32, context32())):
        before = audit(each.domain)
        initialise(each, wanted)
        assert audit(each.domain) == before


# How it starts.


def start(current: Current, given: vcpu_guest_context) -> FakeCpu:
    initialise(current, given)
    current.vcpu, current.cpu = current.domain.vcpus[1], FakeCpu()
    entry = pv_vcpu(current.vcpu).entry
    assert isinstance(entry, StartContext)
    load_context(current, entry)
    assert isinstance(current.cpu, FakeCpu)
    return current.cpu


def test_it_starts_with_its_registers(current: Current) -> None:
    regs = registers(rdi=7, r15=15, rflags=flags.IOPL | flags.ZF, cs=0xE030)
    cpu = start(current, context(user_regs=regs))
    assert (cpu.rip, cpu.regs[Reg.RSP], cpu.regs[Reg.RDI], cpu.regs[Reg.R15]) == (
        *(ENTRY, STACK),
        *(7, 15),
    )
    assert cpu.rflags == flags.ZF | flags.IF | flags.FIXED
    assert pv_vcpu(current.vcpu).iopl == 3
    assert cpu.cr3 == ROOT << 12
    assert (cpu.selector(Seg.CS), cpu.selector(Seg.SS)) == (FLAT_RING3_CS64, FLAT_RING3_SS64)
    assert (cpu.segment(Seg.FS).base, cpu.segment(Seg.GS).base) == (FS, GS_KERNEL)
    assert pv_vcpu(current.vcpu).inactive_gs == GS_USER
    assert cpu.task_switched
    assert cpu.fpu == b""


def test_it_can_start_in_user_mode(current: Current) -> None:
    cpu = start(current, context(flags=0))
    assert cpu.cr3 == USER_ROOT << 12
    assert cpu.segment(Seg.GS).base == GS_USER
    assert pv_vcpu(current.vcpu).inactive_gs == GS_KERNEL


def test_a_selector_leaves_nothing_of_the_users_bases(current: Current) -> None:
    descriptor = 0x00CFF30000000000 | 0xFFFF | 0x5000 << 16  # data at 0x5000
    current.domain.memory.write(Maddr(GDT << 12), words(0, descriptor, count=2))
    cpu = start(current, context(user_regs=registers(fs=0xB, gs=0xB, ds=0xB)))
    assert [cpu.selector(which) for which in (Seg.DS, Seg.FS, Seg.GS)] == [0xB] * 3
    assert (cpu.segment(Seg.DS).base, cpu.segment(Seg.FS).base) == (0x5000, 0)
    assert (cpu.segment(Seg.GS).base, pv_vcpu(current.vcpu).inactive_gs) == (GS_KERNEL, 0)


def test_a_data_segment_that_cannot_be_leads_to_the_failsafe_callback(current: Current) -> None:
    cpu = start(current, context(user_regs=registers(ds=0x1B)))
    assert (cpu.rip, cpu.regs[Reg.RSP]) == (0x200, STACK - 88)
    assert (cpu.cr3, cpu.selector(Seg.DS)) == (ROOT << 12, 0)


def test_its_fpu_is_what_the_context_has_or_zero_if_that_cannot_be(current: Current) -> None:
    valid, bad = bytearray(512), bytearray(512)
    valid[0:2], bad[0:2], bad[27] = b"\x7f\x03", b"\x7f\x03", 1  # a reserved bit of MXCSR
    in_kernel = VGCF_in_kernel | VGCF_i387_valid
    cpu = start(current, context(flags=in_kernel, fpu_ctxt=bytes(valid)))
    assert cpu.fpu == valid
    other = make_pv_current(vcpus=2)
    other.domain.vcpus[1].arch = PvVcpu(Mfn(0))
    protect(other, GDT)
    assert start(other, context(flags=in_kernel, fpu_ctxt=bytes(bad))).fpu == bytes(512)


def test_its_debug_registers_are_set_but_for_those_that_xen_refuses(current: Current) -> None:
    bad_dr0, dr7 = 0xFFFF_8000_0000_0000, DR7_DEFAULT | 0x2 << 2
    cpu = start(current, context(debugreg=words(bad_dr0, 0x21000, 0, 0, 0, 0, 0, dr7)))
    assert [cpu.debug_register(n) for n in (0, 1, 6, 7)] == [0, 0x21000, DR6_DEFAULT, dr7]


def test_a_code_segment_that_cannot_be_is_the_vcpus_own_fault(current: Current) -> None:
    cpu = start(current, context(
        user_regs=registers(cs=0x1B), trap_ctxt=_gp_handler()
    ))  # fmt: skip
    assert cpu.rip == HANDLER


def _gp_handler() -> bytes:
    table = [trap_info(0, 0, 0, 0)] * 256
    table[flags.GP] = trap_info(0, 0, FLAT_RING3_CS64, HANDLER)
    return b"".join(entry.pack(8) for entry in table)


def test_a_32_bit_vcpu_starts_with_its_registers(current32: Current) -> None:
    cpu = start(current32, context32(user_regs=registers32(edi=7, eflags=flags.CF)))
    state = pv_vcpu(current32.vcpu)
    assert (cpu.rip, cpu.regs[Reg.RSP], cpu.regs[Reg.RDI]) == (ENTRY, STACK, 7)
    assert (cpu.selector(Seg.CS), cpu.selector(Seg.DS)) == (FLAT_RING1_CS, FLAT_RING1_DS)
    assert segment.dpl(cpu.segment(Seg.CS).attributes) == 1
    assert cpu.cr3 == fakes32.L3 << 12
    assert state.event_callback == Trap(FLAT_RING1_CS, 0x100, mask_events=True)
    assert state.failsafe_callback == Trap(FLAT_RING1_CS, 0x200)
    assert state.traps[VECTOR] == Trap(FLAT_RING1_CS, HANDLER, 3, mask_events=True)
    assert state.kernel_mode


# NMIs.


def test_an_nmi_wakes_the_vcpu_that_it_is_sent_to(current: Current) -> None:
    vcpu = current.domain.vcpus[1]
    vcpu.online = vcpu.blocked = True
    assert vcpu_op.handler is not None
    vcpu_op.handler(current, VCPUOP_send_nmi, 1, 0)
    assert vcpu.runnable and pv_vcpu(vcpu).nmi_pending and current.domain.reschedule


# Whatever a guest gives.

ODD = (0, 1, GDT, ROOT, ROOT << 12, USER_ROOT << 12, 25 << 12, WILD, 1 << 40, (1 << 64) - 1)


@given(st.lists(st.tuples(st.integers(0, 5168 // 8 - 1), st.sampled_from(ODD)), max_size=12))
@settings(max_examples=60)
def test_any_context_is_taken_or_refused_and_the_books_are_right(
    changes: list[tuple[int, int]],
) -> None:
    current = make_pv_current(vcpus=2)
    current.domain.vcpus[1].arch = PvVcpu(Mfn(0))
    protect(current, GDT)
    clean = audit(current.domain)
    words_ = list(struct.unpack("<646Q", context().pack(8)))
    for at, value in changes:
        words_[at] = value
    given_ = vcpu_guest_context.unpack(8, struct.pack("<646Q", *words_))
    try:
        start(current, given_)
    except XenError as error:
        assert error.errno == EINVAL
    except DomainCrash:  # it could not be started: no handler, no stack
        assert current.domain.vcpus[1].initialised
    assert audit(current.domain) == clean
