"""pv/emulate: privileged instructions."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import (
    CODE,
    KERNEL_ONLY,
    ROOT,
    USER_ROOT,
    FakeCpu,
    make_pv_current,
)
from xenemu.abi.arch_x86.xen import FLAT_RING3_CS64
from xenemu.abi.xen import VMASST_TYPE_architectural_iopl
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.pv.emulate import (
    CR0,
    CR0_TS,
    MAX_INSTRUCTION,
    Instruction,
    Refused,
    decode,
    emulate_invalid_op,
    emulate_privileged_op,
    iopl_ok,
)
from xenemu.pv.msr import CR4_DE, CR4_FSGSBASE, CR4_TSD, CR4_XEN
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags, msr, segment
from xenemu.x86.msr import MISC_FEATURES_CPUID_FAULTING, MISC_FEATURES_ENABLES

HANDLER, STACK = KERNEL_ONLY + 0x1234, 0x30000
DATA, BITMAP, UNMAPPED = 0x32000, 0x33000, 0x900000
CPUID_XEN = b"\x0f\x0bxen\x0f\xa2"
IN_AL_DX, OUT_AL_DX, IN_EAX_DX, OUT_EAX_DX = b"\xec", b"\xee", b"\xed", b"\xef"
INSB, INSL, OUTSB, OUTSL = b"\x6c", b"\x6d", b"\x6e", b"\x6f"


@pytest.fixture
def current() -> Current:
    current = make_pv_current()
    pv(current).traps.update({n: Trap(FLAT_RING3_CS64, HANDLER + n) for n in range(32)})
    pv(current).cr4 = CR4_XEN
    current.cpu.regs[Reg.RSP] = STACK
    return current


def emulate(current: Current, code: bytes, **regs: int) -> bool:
    """Emulate `code`, whose instruction is expected to have its length."""
    current.domain.memory.write(CODE, code.ljust(16, b"\x90"))  # type: ignore[arg-type]
    current.cpu.rip = CODE
    for name, value in regs.items():
        current.cpu.regs[Reg[name]] = value
    return emulate_privileged_op(current)


def emulated(current: Current, code: bytes, **regs: int) -> None:
    assert emulate(current, code, **regs)
    assert current.cpu.rip == CODE + len(code)


def refused(current: Current, code: bytes, **regs: int) -> None:
    """The guest is to get its #GP, and nothing has changed."""
    memory, state = bytes(current.domain.memory.bytes[DATA:]), repr(pv(current))
    assert not emulate(current, code, **regs)
    assert current.cpu.rip == CODE
    assert (bytes(current.domain.memory.bytes[DATA:]), repr(pv(current))) == (memory, state)


def faulted(current: Current, vector: int, code: bytes, **regs: int) -> int:
    """The guest gets another fault; returns its error code."""
    assert emulate(current, code, **regs)
    assert current.cpu.rip == HANDLER + vector
    return current.read_uint(current.cpu.regs[Reg.RSP] + 16, 8)


def user(current: Current) -> None:
    toggle_guest_mode(current)


# Decoding.


@pytest.mark.parametrize(
    ("code", "bits", "opcode", "length", "operand_size", "address_size"),
    [
        (b"\xec", 64, 0xEC, 1, 4, 8),
        (b"\x66\xed", 64, 0xED, 2, 2, 8),
        (b"\x48\xed", 64, 0xED, 2, 8, 8),
        (b"\x66\x48\xed", 64, 0xED, 3, 8, 8),
        (b"\x48\x66\xed", 64, 0xED, 3, 2, 8),  # a REX before a prefix does not count
        (b"\x67\x6d", 64, 0x6D, 2, 4, 4),
        (b"\x0f\x20", 64, 0x0F20, 2, 4, 8),
        (b"\x48\xed", 32, 0x48, 1, 4, 4),  # dec %eax
        (b"\xed", 16, 0xED, 1, 2, 2),
        (b"\x66\xed", 16, 0xED, 2, 4, 2),
    ],
)
def test_prefixes(
    code: bytes, bits: int, opcode: int, length: int, operand_size: int, address_size: int
) -> None:
    insn = decode(code, bits)
    assert (insn.opcode, insn.length) == (opcode, length)
    assert (insn.operand_size, insn.address_size) == (operand_size, address_size)


def test_rex_extends_the_registers() -> None:
    insn = decode(b"\x45\x0f\x20\xc1", 64)
    assert (insn.reg, insn.rm) == (8, 9)


def test_segment_overrides_and_repeats() -> None:
    insn = decode(b"\x64\xf3\x6e", 64)
    assert (insn.segment, insn.repeat) == (Seg.FS, True)


@pytest.mark.parametrize("code", [b"", b"\x66", b"\x48", b"\x0f", b"\x66" * 15])
def test_no_opcode(code: bytes) -> None:
    with pytest.raises(Refused):
        decode(code, 64)


@given(st.binary(max_size=MAX_INSTRUCTION), st.sampled_from([64, 32, 16]))
def test_any_bytes_decode_or_are_refused(code: bytes, bits: int) -> None:
    with suppress(Refused):
        insn = decode(code, bits)
        assert isinstance(insn, Instruction)
        assert 0 < insn.length <= len(code)
        assert 0 <= insn.reg < 16
        assert 0 <= insn.rm < 16


@given(st.binary(min_size=1, max_size=MAX_INSTRUCTION), st.lists(st.integers(0, (1 << 64) - 1)))
def test_any_instruction_is_emulated_or_refused(code: bytes, values: list[int]) -> None:
    current = make_pv_current()
    pv(current).traps.update({n: Trap(FLAT_RING3_CS64, HANDLER + n) for n in range(32)})
    pv(current).iopl = 3
    for register, value in zip(range(16), values, strict=False):
        current.cpu.regs[register] = value
    current.cpu.regs[Reg.RSP] = STACK
    emulate(current, code)
    assert 0 <= current.cpu.rip < 1 << 64
    assert all(0 <= value < 1 << 64 for value in current.cpu.regs)


def test_an_instruction_that_ends_with_the_mapping_has_no_operand(current: Current) -> None:
    current.cpu.rip = (80 << 12) - 1
    current.domain.memory.bytes[current.cpu.rip] = 0xE4  # in imm8
    pv(current).iopl = 3
    assert not emulate_privileged_op(current)


def test_code_that_cannot_be_read_is_not_emulated(current: Current) -> None:
    current.cpu.rip = UNMAPPED
    assert not emulate_privileged_op(current)


@pytest.mark.parametrize(
    "code",
    [
        b"\xf4",  # hlt
        b"\x0f\x08",  # invd
        b"\x0f\x00\xd0",  # lldt
        b"\x0f\x01\x10",  # lgdt
        b"\x0f\x01\x38",  # invlpg
        b"\x0f\x01\xf8",  # swapgs
        b"\x0f\x07",  # sysret
        b"\x0f\x33",  # rdpmc
    ],
)
def test_what_xen_does_not_emulate(current: Current, code: bytes) -> None:
    refused(current, code)


@pytest.mark.parametrize(
    "code",
    [
        b"\x0f\x06",  # clts
        b"\x0f\x09",  # wbinvd
        b"\x0f\x20\xc0",
        b"\x0f\x21\xc0",
        b"\x0f\x22\xd0",
        b"\x0f\x23\xc0",
        b"\x0f\x30",
        b"\x0f\x32",
        b"\xfa",
        b"\xfb",
    ],
)
def test_user_mode_gets_its_fault(current: Current, code: bytes) -> None:
    user(current)
    refused(current, code, RAX=CR0, RCX=msr.EFER)


# Control registers.


def test_cr0_is_xens_with_the_guests_ts(current: Current) -> None:
    emulated(current, b"\x0f\x20\xc0")
    assert current.cpu.regs[Reg.RAX] == CR0
    pv(current).task_switched = True
    emulated(current, b"\x41\x0f\x20\xc1")  # to r9
    assert current.cpu.regs[Reg.R9] == CR0 | CR0_TS


def test_only_ts_of_cr0_can_be_written(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    emulated(current, b"\x0f\x22\xc0", RAX=CR0 | CR0_TS)
    assert pv(current).task_switched and current.cpu.task_switched
    refused(current, b"\x0f\x22\xc0", RAX=CR0 & ~1)
    emulated(current, b"\x0f\x06")
    assert not pv(current).task_switched | current.cpu.task_switched


def test_cr2_is_the_guests_to_write(current: Current) -> None:
    emulated(current, b"\x0f\x22\xd0", RAX=0xFFFF_8888_0000_1234)
    emulated(current, b"\x0f\x20\xd1")
    assert current.cpu.regs[Reg.RCX] == 0xFFFF_8888_0000_1234


def test_cr3_is_the_kernels_root(current: Current) -> None:
    emulated(current, b"\x0f\x20\xd8")
    assert current.cpu.regs[Reg.RAX] == ROOT << 12
    emulated(current, b"\x0f\x22\xd8", RAX=USER_ROOT << 12)
    assert pv(current).kernel_root == USER_ROOT
    refused(current, b"\x0f\x22\xd8", RAX=9 << 12)


def test_cr4_has_three_bits_of_the_guests(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    emulated(current, b"\x0f\x22\xe0", RAX=(1 << 64) - 1)
    emulated(current, b"\x0f\x20\xe0")
    assert current.cpu.regs[Reg.RAX] == CR4_XEN | CR4_DE | CR4_TSD | CR4_FSGSBASE
    assert (current.cpu.tsc_disabled, current.cpu.fsgsbase) == (True, True)
    emulated(current, b"\x0f\x22\xe0", RAX=0)
    assert (current.cpu.tsc_disabled, current.cpu.fsgsbase) == (False, False)


@pytest.mark.parametrize("code", [b"\x0f\x20\xc8", b"\x44\x0f\x20\xc0", b"\x0f\x22\xe8"])
def test_other_control_registers_do_not_exist(current: Current, code: bytes) -> None:
    refused(current, code, RAX=0)


def test_32_bit_code_moves_32_bits(current: Current) -> None:
    current.cpu.set_segment(Seg.CS, Segment(0xE023, 0, 0xFFFFFFFF, segment.CODE32_RING3))
    pv(current).cr2 = 0x1234_5678_9ABC
    emulated(current, b"\x0f\x20\xd0", RAX=(1 << 64) - 1)
    assert current.cpu.regs[Reg.RAX] == 0x5678_9ABC


# Debug registers.


def test_debug_registers_are_read_and_written(current: Current) -> None:
    emulated(current, b"\x0f\x23\xc0", RAX=0x1000)
    emulated(current, b"\x0f\x21\xc1")
    assert current.cpu.regs[Reg.RCX] == 0x1000


def test_a_debug_register_that_is_not_there_is_undefined(current: Current) -> None:
    pv(current).cr4 |= CR4_DE
    faulted(current, flags.UD, b"\x0f\x21\xe0")
    faulted(current, flags.UD, b"\x0f\x23\xe0", RAX=0)


def test_a_debug_register_refuses_a_value(current: Current) -> None:
    assert faulted(current, flags.GP, b"\x0f\x23\xf8", RAX=1 << 32) == 0


# MSRs and time.


def test_msrs_go_through_edx_eax(current: Current) -> None:
    emulated(current, b"\x0f\x30", RCX=msr.KERNEL_GS_BASE, RAX=0x89ABCDEF, RDX=0x4567)
    assert pv(current).inactive_gs == 0x4567_89AB_CDEF
    emulated(current, b"\x0f\x32", RCX=msr.KERNEL_GS_BASE, RAX=~0, RDX=0)
    assert current.cpu.regs[Reg.RAX : Reg.RDX + 1 : 2] == [0x89ABCDEF, 0x4567]


def test_msrs_that_are_not_there(current: Current) -> None:
    refused(current, b"\x0f\x32", RCX=0x1234)
    refused(current, b"\x0f\x30", RCX=0x1234, RAX=0, RDX=0)


def test_the_tsc_is_virtual_time(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.now_ns = 0x1_2345_6789
    emulated(current, b"\x0f\x31")
    assert (current.cpu.regs[Reg.RAX], current.cpu.regs[Reg.RDX]) == (0x2345_6789, 1)


def test_the_tsc_may_be_the_kernels_only(current: Current) -> None:
    pv(current).cr4 |= CR4_TSD
    emulated(current, b"\x0f\x31")
    user(current)
    refused(current, b"\x0f\x31")


# CPUID by the forced-emulation prefix.


def invalid_op(current: Current, code: bytes, rip: int = CODE) -> bool:
    current.domain.memory.write(rip, code)  # type: ignore[arg-type]
    current.cpu.rip = rip
    return emulate_invalid_op(current)


@pytest.mark.parametrize("in_user_mode", [False, True])
def test_forced_cpuid(current: Current, in_user_mode: bool) -> None:
    if in_user_mode:
        user(current)
    current.cpu.regs[Reg.RAX] = 0x40000000
    assert invalid_op(current, CPUID_XEN)
    assert (current.cpu.rip, current.cpu.regs[Reg.RAX]) == (CODE + 7, 0x40000005)


@pytest.mark.parametrize("code", [b"\x0f\x0bxen\x0f\x31", b"\x0f\x0bxeN\x0f\xa2", b"\x0f\x0b"])
def test_other_undefined_instructions(current: Current, code: bytes) -> None:
    assert not invalid_op(current, code.ljust(8, b"\0"))
    assert current.cpu.rip == CODE


def test_forced_cpuid_faults_where_the_guest_wants_it(current: Current) -> None:
    current.vcpu.msrs[MISC_FEATURES_ENABLES] = MISC_FEATURES_CPUID_FAULTING
    assert invalid_op(current, CPUID_XEN)
    assert current.cpu.rip == CODE + 7
    user(current)
    assert invalid_op(current, CPUID_XEN)
    assert current.cpu.rip == HANDLER + flags.GP
    assert current.read_uint(current.cpu.regs[Reg.RSP] + 24, 8) == CODE + 5


@pytest.mark.parametrize("present", [2, 5, 6])
def test_a_prefix_that_runs_off_the_mapping_is_a_page_fault(current: Current, present: int) -> None:
    end = 80 << 12
    assert invalid_op(current, CPUID_XEN[:present], end - present)
    assert (current.cpu.rip, pv(current).cr2) == (HANDLER + flags.PAGE_FAULT, end)


# Permission for ports.


def test_iopl_is_compared_with_xens_idea_of_the_level(current: Current) -> None:
    state, okay = pv(current), {}
    for assist in (0, 1 << VMASST_TYPE_architectural_iopl):
        current.domain.vm_assist = assist
        for state.kernel_mode in (True, False):
            for state.iopl in range(4):
                okay[bool(assist), state.kernel_mode, state.iopl] = iopl_ok(current)
    state.kernel_mode = True
    assert [okay[False, True, n] for n in range(4)] == [False, True, True, True]
    assert [okay[True, True, n] for n in range(4)] == [True] * 4
    for assist in (False, True):
        assert [okay[assist, False, n] for n in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("code", [b"\xfa", b"\xfb"])
def test_cli_and_sti_do_nothing_where_allowed(current: Current, code: bytes) -> None:
    refused(current, code)
    pv(current).iopl = 1
    emulated(current, code)
    assert current.cpu.rflags == 0x202
    assert current.domain.memory.bytes[current.vcpu.info + 1] == 0


def test_without_permission_a_port_faults(current: Current) -> None:
    refused(current, IN_AL_DX, RDX=0x80)
    refused(current, OUT_AL_DX, RDX=0x80)
    refused(current, INSB, RDX=0x80, RDI=DATA)


def allow(current: Current, ports: int, first: int, count: int = 1) -> None:
    """A bitmap of `ports` ports that forbids all but some."""
    bits = (1 << 65536) - 1 & ~(((1 << count) - 1) << first)
    current.domain.memory.write(BITMAP, bits.to_bytes(8192, "little"))  # type: ignore[arg-type]
    pv(current).io_bitmap, pv(current).io_bitmap_ports = KERNEL_ONLY + BITMAP, ports


def test_the_bitmap_allows_ports(current: Current) -> None:
    user(current)
    allow(current, 65536, 0x3F8, 4)
    for port in range(0x3F8, 0x3FC):
        emulated(current, IN_AL_DX, RDX=port)
    emulated(current, IN_EAX_DX, RDX=0x3F8)
    refused(current, IN_AL_DX, RDX=0x3F7)
    refused(current, IN_AL_DX, RDX=0x3FC)
    refused(current, IN_EAX_DX, RDX=0x3F9)


def test_ports_behind_the_bitmap_are_forbidden(current: Current) -> None:
    allow(current, 0x80, 0x7C, 16)
    emulated(current, IN_EAX_DX, RDX=0x7C)
    refused(current, IN_EAX_DX, RDX=0x7D)
    refused(current, IN_AL_DX, RDX=0x80)


def test_a_bitmap_may_end_with_the_mapping(current: Current) -> None:
    allow(current, 65536, 0)
    pv(current).io_bitmap = KERNEL_ONLY + (80 << 12) - 1
    current.domain.memory.bytes[(80 << 12) - 1] = 0
    emulated(current, IN_AL_DX, RDX=7)
    refused(current, IN_EAX_DX, RDX=6)
    refused(current, IN_AL_DX, RDX=8)


@pytest.mark.parametrize("vaddr", [0, UNMAPPED, 1 << 47, (1 << 64) - 1])
def test_a_bitmap_that_is_not_there_forbids(current: Current, vaddr: int) -> None:
    allow(current, 65536, 0)
    pv(current).io_bitmap = vaddr
    refused(current, IN_AL_DX, RDX=0)
    refused(current, IN_AL_DX, RDX=0x1000)


# Ports.


@pytest.fixture
def io(current: Current) -> Current:
    pv(current).iopl = 3
    return current


@pytest.mark.parametrize(
    ("code", "rax"),
    [
        (b"\xec", 0x1111_2222_3333_44FF),
        (b"\x66\xed", 0x1111_2222_3333_FFFF),
        (b"\xed", 0xFFFF_FFFF),
        (b"\x48\xed", 0xFFFF_FFFF),
        (b"\xe4\x80", 0x1111_2222_3333_44FF),
        (b"\xe5\x80", 0xFFFF_FFFF),
    ],
)
def test_in_fills_its_part_of_rax(io: Current, code: bytes, rax: int) -> None:
    emulated(io, code, RAX=0x1111_2222_3333_4444, RDX=0x80)
    assert io.cpu.regs[Reg.RAX] == rax


def test_out_takes_its_part_of_rax(io: Current) -> None:
    emulated(io, OUT_EAX_DX, RDX=0xCF8, RAX=0xFFFF_FFFF_8000_0000)
    emulated(io, IN_EAX_DX, RDX=0xFFFF_0CF8)
    assert io.cpu.regs[Reg.RAX] == 0x8000_0000
    emulated(io, b"\xe6\x70", RAX=0x1234)
    emulated(io, b"\xe4\x70", RAX=0)
    assert io.cpu.regs[Reg.RAX] == 0x34


@pytest.mark.parametrize(
    ("code", "size"), [(INSB, 1), (b"\x66\x6d", 2), (INSL, 4), (b"\x48\x6d", 4)]
)
def test_ins_stores_and_advances(io: Current, code: bytes, size: int) -> None:
    emulated(io, code, RDX=0x80, RDI=DATA)
    assert io.read(DATA, 8) == b"\xff" * size + bytes(8 - size)
    assert io.cpu.regs[Reg.RDI] == DATA + size


def test_outs_loads_and_goes_backwards_with_df(io: Current) -> None:
    io.write_uint(DATA, 4, 0x8000_1234)
    io.cpu.rflags |= flags.DF
    emulated(io, OUTSL, RDX=0xCF8, RSI=DATA)
    assert io.cpu.regs[Reg.RSI] == DATA - 4
    emulated(io, IN_EAX_DX, RDX=0xCF8)
    assert io.cpu.regs[Reg.RAX] == 0x8000_1234


def test_rep_ins_goes_one_step_at_a_time(io: Current) -> None:
    assert emulate(io, b"\xf3\x6c", RDX=0x80, RDI=DATA, RCX=2)
    assert (io.cpu.rip, io.cpu.regs[Reg.RCX]) == (CODE, 1)
    assert emulate_privileged_op(io)
    assert (io.cpu.rip, io.cpu.regs[Reg.RCX], io.cpu.regs[Reg.RDI]) == (CODE + 2, 0, DATA + 2)


def test_rep_ins_of_nothing_does_nothing(io: Current) -> None:
    emulated(io, b"\xf3\x6c", RDX=0x80, RDI=UNMAPPED, RCX=0)
    assert io.cpu.regs[Reg.RDI] == UNMAPPED


def test_a_32_bit_address_wraps_there(io: Current) -> None:
    emulated(io, b"\x67\xf3\x6c", RDX=0x80, RDI=0xFFFF_FFFF_0000_0000 | DATA, RCX=1 << 32 | 1)
    assert (io.cpu.regs[Reg.RDI], io.cpu.regs[Reg.RCX]) == (DATA + 1, 0)


def test_outs_heeds_fs_and_gs_only(io: Current) -> None:
    io.cpu.set_segment(Seg.FS, Segment(0, DATA))
    io.cpu.set_segment(Seg.ES, Segment(0, 0x999))
    io.write_uint(DATA + 8, 4, 0x8765_4321)
    emulated(io, b"\x64\x6f", RDX=0xCF8, RSI=8)
    emulated(io, IN_EAX_DX, RDX=0xCF8)
    assert io.cpu.regs[Reg.RAX] == 0x8765_4321
    emulated(io, b"\x26\x6f", RDX=0xCF8, RSI=DATA)


@pytest.mark.parametrize(("code", "error_code"), [(INSL, 2), (OUTSL, 0)], ids=["ins", "outs"])
def test_a_page_that_is_not_mapped_faults(io: Current, code: bytes, error_code: int) -> None:
    end = 80 << 12
    seen = faulted(io, flags.PAGE_FAULT, code, RDX=0xCF8, RDI=end - 2, RSI=end - 2)
    assert (seen, pv(io).cr2) == (error_code, end)
    assert io.cpu.regs[Reg.RDI] == end - 2
    assert io.read(end - 2, 2) == bytes(2)


@pytest.mark.parametrize(("code", "vector"), [(OUTSB, flags.GP), (b"\x36\x6e", flags.SS)])
def test_an_impossible_address_faults(io: Current, code: bytes, vector: int) -> None:
    assert faulted(io, vector, code, RDX=0x80, RSI=1 << 47) == 0


def test_an_io_breakpoint_traps_behind_the_access(io: Current) -> None:
    pv(io).cr4 |= CR4_DE
    emulated(io, b"\x0f\x23\xc8", RAX=0x80)  # dr1
    emulated(io, b"\x0f\x23\xf8", RAX=2 << 20 | 1 << 2)  # dr7
    emulated(io, IN_AL_DX, RDX=0x81)
    faulted(io, flags.DB, IN_AL_DX, RDX=0x80)
    assert io.read_uint(io.cpu.regs[Reg.RSP] + 16, 8) == CODE + 1
    assert pv(io).dr6 & 0xF == 1 << 1


def test_a_traced_privileged_instruction_traps_behind_it(current: Current) -> None:
    current.cpu.rflags |= flags.TF
    faulted(current, flags.DB, b"\x0f\x06")
    assert pv(current).dr6 & 1 << 14
