"""cpu/engine: the CPU does what it is told, and tells what it did.

A guest here is a few instructions of 64-bit code in ring 3, on tables that map each page of RAM
at its own address.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from xenemu.abi.arch_x86.xen import FLAT_RING3_CS32
from xenemu.cpu.debug_port import DebugPort
from xenemu.cpu.engine import Engine
from xenemu.errors import EngineError, EngineGaveUp
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.debug import Cause, Halt
from xenemu.hv.frame_table import (
    FrameTable,
    PGT_l1_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_pae_xen_l2,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from xenemu.hv.memory import Memory
from xenemu.hv.prices import Exit as Priced
from xenemu.pv.traps import CS64, SS64
from xenemu.x86 import flags, segment
from xenemu.x86.flags import AC, CF, DF, ID, IF, OF, PF, TF, ZF
from xenemu.x86.paging import RW, US, Maddr, P

FRAMES = 64
ROOT, L3, L2, L1, OTHER_ROOT, OTHER_L3, OTHER_L2, OTHER_L1 = range(1, 9)
READ_ONLY, UNMAPPED = 60, 61
CODE, DATA, STACK = 0x10000, 0x20000, 0x30000
INC_RAX = b"\x48\xff\xc0"
LOOP = b"\x48\xff\xc0\xeb\xfb"  # inc %rax; jmp -5: two instructions a turn
UD2, SYSCALL, CPUID, RDTSC = b"\x0f\x0b", b"\x0f\x05", b"\x0f\xa2", b"\x0f\x31"
PUSHF_POP_RBX, PUSH_RBX_POPF = b"\x9c\x5b", b"\x53\x9d"
IN_AL, OUT_AL = b"\xec", b"\xee"

Exit = tuple[object, ...]


class Handler:
    """Notes every exit with where it happened, and then does what the test says."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.exits: list[Exit] = []
        self.react: Callable[[], None] = engine.stop
        self.cpuid_answer = True

    def _note(self, *what: object) -> None:
        self.exits.append((*what, self.engine.rip))
        self.react()

    def exception(self, vector: int, error_code: int) -> None:
        self._note(flags.vector_name(vector), error_code)

    def software_interrupt(self, vector: int, length: int) -> None:
        self._note("int", vector, length)

    def invalid_opcode(self) -> None:
        self._note("undefined")

    def syscall(self) -> None:
        self._note("syscall")

    def sysenter(self) -> None:
        self._note("sysenter")

    def cpuid(self) -> bool:
        self._note("cpuid")
        return self.cpuid_answer


@pytest.fixture
def engine() -> Engine:
    memory = Memory(FRAMES)
    words = memory.words
    for tables in ((ROOT, L3, L2, L1), (OTHER_ROOT, OTHER_L3, OTHER_L2, OTHER_L1)):
        for upper, lower in pairwise(tables):
            words[upper << 9] = lower << 12 | P | RW | US
        for frame in range(FRAMES):
            words[(tables[-1] << 9) + frame] = frame << 12 | P | RW | US
    words[(L1 << 9) + READ_ONLY] &= ~RW
    words[(L1 << 9) + UNMAPPED] = 0
    engine = Engine(memory)
    engine.turn_paging_on(ROOT << 12, True)
    engine.set_task_switched(False)
    for which in (Seg.SS, Seg.DS, Seg.ES):
        engine.set_segment(which, SS64)
    engine.set_segment(Seg.CS, CS64)
    engine.rip, engine.rflags, engine.regs[Reg.RSP] = CODE, 0x202, STACK
    engine.attach(Handler(engine))
    return engine


def handler(engine: Engine) -> Handler:
    assert isinstance(engine.handler, Handler)
    return engine.handler


def run(engine: Engine, code: bytes, until_ns: int = 1_000_000, at: int = CODE) -> list[Exit]:
    """Run `code`, by default to its first exit; the exits, with RIP relative to the code."""
    engine._memory.write(at, code)  # type: ignore[arg-type]
    engine.rip = at
    engine.run(until_ns)
    return [(*exit[:-1], exit[-1] - at) for exit in handler(engine).exits]  # type: ignore[operator]


# Counting.


def test_every_instruction_is_a_nanosecond(engine: Engine) -> None:
    run(engine, INC_RAX * 10 + SYSCALL)
    assert (engine.instructions, engine.now_ns, engine.regs[Reg.RAX]) == (11, 11, 10)


@pytest.mark.parametrize("deadline", [1, 2, 3, 7, 100, 12345])
def test_a_run_ends_exactly_at_its_deadline(engine: Engine, deadline: int) -> None:
    run(engine, LOOP, deadline)
    assert engine.now_ns == deadline
    assert engine.regs[Reg.RAX] == (deadline + 1) // 2
    assert engine.rip == CODE + 3 * (deadline % 2)


@pytest.mark.parametrize("slice_ns", [1, 2, 3, 5, 999, 5000])
def test_slices_change_nothing(engine: Engine, slice_ns: int) -> None:
    run(engine, LOOP, 0)
    while engine.now_ns < 5000:
        engine.run(min(engine.now_ns + slice_ns, 5000))
    assert (engine.instructions, engine.regs[Reg.RAX], engine.rip) == (5000, 2500, CODE)


def test_a_deadline_that_has_passed_runs_nothing(engine: Engine) -> None:
    run(engine, LOOP, 10)
    engine.run(5)
    assert engine.now_ns == 10


@pytest.mark.parametrize("code", [b"\xfa", UD2, SYSCALL, b"\xcc"])
def test_an_instruction_that_always_leaves_the_guest_counts(engine: Engine, code: bytes) -> None:
    run(engine, INC_RAX * 3 + code + INC_RAX)
    assert engine.instructions == 4


def test_an_instruction_that_cannot_reach_its_memory_does_not(engine: Engine) -> None:
    run(engine, INC_RAX * 3 + b"\x48\x8b\x0c\x25\x00\xd0\x03\x00" + INC_RAX)  # mov 0x3d000
    assert (engine.cr2, engine.instructions) == (UNMAPPED << 12, 3)


def test_a_handler_can_bring_the_deadline_forward(engine: Engine) -> None:
    handler(engine).react = lambda: engine.limit(20)
    run(engine, SYSCALL + LOOP, 1000)
    assert engine.now_ns == 20


def test_a_deadline_is_not_moved_back(engine: Engine) -> None:
    handler(engine).react = lambda: engine.limit(2000)
    run(engine, SYSCALL + LOOP, 1000)
    assert engine.now_ns == 1000


def test_idle_time_is_skipped(engine: Engine) -> None:
    run(engine, LOOP, 10)
    engine.skip_to(1000)
    engine.skip_to(500)
    assert (engine.now_ns, engine.instructions) == (1000, 10)
    engine.run(1010)
    assert engine.instructions == 20


def test_the_tsc_is_virtual_time(engine: Engine) -> None:
    engine.skip_to(0x1_2345_6000)
    run(engine, INC_RAX * 4 + RDTSC + UD2, 0x1_2345_7000)
    assert engine.regs[Reg.RDX] == 1
    assert engine.regs[Reg.RAX] - 0x2345_6000 in (4, 5)


# Exits.


def test_a_stop_takes_effect_before_the_next_instruction(engine: Engine) -> None:
    assert run(engine, SYSCALL + INC_RAX * 5) == [("syscall", 2)]
    assert (engine.rip, engine.regs[Reg.RAX]) == (CODE + 2, 0)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (SYSCALL, ("syscall", 2)),
        (b"\xcc", ("int", 3, 1, 1)),
        (b"\xcd\x03", ("int", 3, 2, 2)),
        (b"\xcd\x80", ("int", 0x80, 2, 2)),
        (b"\x66\xcd\x0d", ("int", 13, 3, 3)),
        (b"\xf1", ("#DB", 0, 1)),  # icebp
        (b"\x67\x66\xf1", ("#DB", 0, 3)),
        (UD2, ("undefined", 0)),
        (b"\x0f\x0bxen\x0f\xa2", ("undefined", 0)),
        (b"\x06", ("undefined", 0)),
        (b"\x0f\x01\xd0", ("undefined", 0)),  # xgetbv
        (b"\xf4", ("#GP", 0, 0)),  # hlt
        (b"\xfa", ("#GP", 0, 0)),
        (b"\xfb", ("#GP", 0, 0)),
        (b"\x0f\x20\xd8", ("#GP", 0, 0)),  # mov %cr3, %rax
        (b"\x0f\x23\xc0", ("#GP", 0, 0)),  # mov %rax, %dr0
        (b"\x0f\x32", ("#GP", 0, 0)),  # rdmsr
        (b"\x0f\x33", ("#GP", 0, 0)),  # rdpmc
        (b"\x0f\x06", ("#GP", 0, 0)),  # clts
        (b"\x0f\x09", ("#GP", 0, 0)),  # wbinvd
        (b"\x0f\x01\x38", ("#GP", 0, 0)),  # invlpg
        (IN_AL, ("#GP", 0, 0)),
        (b"\x66\xed", ("#GP", 0, 0)),
        (b"\xe5\x80", ("#GP", 0, 0)),
        (OUT_AL, ("#GP", 0, 0)),
        (b"\xe7\x80", ("#GP", 0, 0)),
        (b"\x6f", ("#GP", 0, 0)),
        (b"\x48\xf7\xf1", ("#DE", 0, 0)),  # div %rcx
    ],
)
def test_what_leaves_the_guest(engine: Engine, code: bytes, expected: Exit) -> None:
    assert run(engine, code + INC_RAX) == [expected]


@pytest.mark.parametrize(
    ("code", "address", "error_code"),
    [
        (b"\x48\x8b\x07", UNMAPPED << 12, 4),  # mov (%rdi), %rax
        (b"\x48\x89\x07", UNMAPPED << 12 | 8, 6),
        (b"\x48\x89\x07", READ_ONLY << 12 | 8, 7),
        (b"\xff\xe7", UNMAPPED << 12, 0x14),  # jmp *%rdi
        (b"\x48\x8b\x07", 0x7FFF_FFFF_F000, 4),
    ],
)
def test_a_page_fault_says_what_and_where(
    engine: Engine, code: bytes, address: int, error_code: int
) -> None:
    engine.regs[Reg.RDI] = address
    (exit,) = run(engine, code)
    assert exit[:2] == ("#PF", error_code)
    assert engine.cr2 == address
    assert engine.rip == (address if code[0] == 0xFF else CODE)


def test_a_fault_after_a_fault_is_no_double_fault(engine: Engine) -> None:
    engine.regs[Reg.RDI] = UNMAPPED << 12
    assert run(engine, b"\x48\x8b\x07") == [("#PF", 4, 0)]
    engine.run(1_000_000)
    assert handler(engine).exits[1:] == [("#PF", 4, CODE)]


def test_a_fault_can_be_repaired(engine: Engine) -> None:
    def repair() -> None:
        engine._memory.words[(L1 << 9) + UNMAPPED] = (DATA) | P | RW | US
        if len(handler(engine).exits) > 1:
            engine.stop()

    engine._memory.words[DATA >> 3] = 77
    engine.regs[Reg.RDI] = UNMAPPED << 12
    handler(engine).react = repair
    assert run(engine, b"\x48\x8b\x07" + SYSCALL) == [("#PF", 4, 0), ("syscall", 5)]
    assert engine.regs[Reg.RAX] == 77


def test_cpuid_is_answered_by_the_hypervisor(engine: Engine) -> None:
    def answer() -> None:
        engine.regs[Reg.RAX] = 0x1234

    handler(engine).react = answer
    run(engine, CPUID + LOOP, 1)
    assert (engine.regs[Reg.RAX], engine.rip) == (0x1234, CODE + 2)


def test_cpuid_that_is_refused_faults(engine: Engine) -> None:
    def stop_at_the_fault() -> None:
        if len(handler(engine).exits) > 1:
            engine.stop()

    handler(engine).cpuid_answer = False
    handler(engine).react = stop_at_the_fault
    assert run(engine, CPUID + INC_RAX)[1:] == [("#GP", 0, 0)]
    assert engine.regs[Reg.RAX] == 0


def test_an_exception_of_the_handlers_ends_the_run(engine: Engine) -> None:
    class Ours(Exception):
        pass

    def fail() -> None:
        raise Ours

    handler(engine).react = fail
    with pytest.raises(Ours):
        run(engine, SYSCALL + LOOP)
    assert engine.rip == CODE + 2
    engine.run(engine.now_ns + 10)
    assert engine.regs[Reg.RAX] == 5


# Registers.


def test_what_a_handler_sets_is_what_the_guest_has(engine: Engine) -> None:
    def change() -> None:
        engine.rip, engine.regs[Reg.R15] = CODE + 0x100, 0x1234_5678_9ABC_DEF0
        handler(engine).react = engine.stop

    engine._memory.write(CODE + 0x100, b"\x4c\x89\xf8" + SYSCALL)  # type: ignore[arg-type]
    handler(engine).react = change
    assert run(engine, UD2)[1:] == [("syscall", 0x105)]
    assert engine.regs[Reg.RAX] == 0x1234_5678_9ABC_DEF0


SOME_FLAGS = [0, CF, ZF | PF, OF, DF, AC, ID, CF | OF | DF]


@pytest.mark.parametrize("bits", SOME_FLAGS)
def test_flags_that_a_handler_sets_reach_the_guest(engine: Engine, bits: int) -> None:
    def change() -> None:
        engine.rflags = 0x202 | bits
        handler(engine).react = engine.stop

    handler(engine).react = change
    run(engine, SYSCALL + PUSHF_POP_RBX + SYSCALL)
    assert engine.regs[Reg.RBX] == engine.rflags == 0x202 | bits


@pytest.mark.parametrize("bits", [OF, DF, CF, ZF])
def test_flags_that_a_handler_set_can_be_cleared_by_the_guest(engine: Engine, bits: int) -> None:
    def change() -> None:
        engine.rflags = 0x202 | bits
        handler(engine).react = engine.stop

    handler(engine).react = change
    clear = b"\xfc\x31\xc9\xff\xc1"  # cld; xor %ecx, %ecx; inc %ecx
    run(engine, SYSCALL + clear + PUSHF_POP_RBX + SYSCALL)
    assert engine.regs[Reg.RBX] & bits == engine.rflags & bits == 0


@pytest.mark.parametrize(
    "bits",
    SOME_FLAGS,
)
def test_flags_that_are_set_between_runs_reach_the_guest(engine: Engine, bits: int) -> None:
    engine.rflags = 0x202 | bits
    run(engine, PUSHF_POP_RBX + SYSCALL)
    assert engine.regs[Reg.RBX] == engine.rflags == 0x202 | bits


def test_user_mode_does_not_change_if_or_iopl(engine: Engine) -> None:
    engine.regs[Reg.RBX] = 0x3002
    run(engine, PUSH_RBX_POPF + SYSCALL)
    assert engine.rflags & (IF | flags.IOPL) == IF


def test_a_traced_instruction_is_followed_by_a_debug_trap(engine: Engine) -> None:
    engine.rflags |= TF
    ((name, _, offset),) = run(engine, INC_RAX * 3)
    assert (name, offset, engine.regs[Reg.RAX]) == ("#DB", 3, 1)


@pytest.mark.parametrize("by_iret", [True, False])
def test_a_traced_return_traps_after_its_target_if_by_iret(engine: Engine, by_iret: bool) -> None:
    def enter() -> None:
        if handler(engine).exits[-1][0] != "syscall":
            engine.stop()
            return
        engine.rip, engine.rflags = CODE + 5, 0x202 | TF
        if by_iret:
            engine.leave_by_iret()

    handler(engine).react = enter
    trap = run(engine, SYSCALL + INC_RAX * 4)[-1]
    assert (trap[0], trap[2]) == ("#DB", 8 if by_iret else 5)
    assert engine.instructions == 1 + by_iret


@pytest.mark.parametrize("call", [SYSCALL, b"\x0f\x34"], ids=["syscall", "sysenter"])
def test_who_traced_a_call_does_not_trace_the_kernel(engine: Engine, call: bytes) -> None:
    def enter() -> None:
        engine.rflags &= ~TF
        if len(handler(engine).exits) == 2:
            engine.stop()

    handler(engine).react = enter
    engine.rflags |= TF
    assert [exit[0] for exit in run(engine, call + INC_RAX + UD2)[1:]] == ["undefined"]


def test_ports_fault_at_any_iopl_of_the_guests(engine: Engine) -> None:
    engine.regs[Reg.RBX] = 0x3202
    assert run(engine, PUSH_RBX_POPF + IN_AL)[0][0] == "#GP"


def test_32_bit_code_runs_in_a_32_bit_segment(engine: Engine) -> None:
    code32 = Segment(FLAT_RING3_CS32, 0, 0xFFFFFFFF, segment.CODE32_RING3)
    engine.set_segment(Seg.CS, code32)
    engine.regs[Reg.RAX] = 0x1_FFFF_FFFF
    assert run(engine, b"\x40" + UD2) == [("undefined", 1)]  # inc %eax, not a REX prefix
    assert engine.regs[Reg.RAX] == 0
    assert engine.segment(Seg.CS) == code32


@pytest.mark.parametrize("code", [b"\x0f\x05", b"\x0f\x07", b"\x48"])
def test_what_32_bit_code_on_intels_cpus_lacks(engine: Engine, code: bytes) -> None:
    """SYSCALL is the hypervisor's to refuse; SYSRET is undefined; 48 is no prefix."""
    engine.set_segment(Seg.CS, Segment(FLAT_RING3_CS32, 0, 0xFFFFFFFF, segment.CODE32_RING3))
    expected = {0x05: ("syscall", 2), 0x07: ("undefined", 0), 0x48: ("undefined", 1)}[code[-1]]
    assert run(engine, code + UD2) == [expected]


def test_fs_and_gs_have_64_bit_bases(engine: Engine) -> None:
    engine._memory.words[DATA >> 3] = 99
    engine.set_segment(Seg.GS, Segment(0, DATA - 8))
    run(engine, b"\x65\x48\x8b\x04\x25\x08\0\0\0" + SYSCALL)  # mov %gs:8, %rax
    assert engine.regs[Reg.RAX] == 99
    assert engine.segment(Seg.GS).base == DATA - 8


def test_the_fpu_traps_while_switched_away(engine: Engine) -> None:
    engine.set_task_switched(True)
    assert run(engine, b"\xd9\xee" + SYSCALL) == [("#NM", 0, 0)]  # fldz
    engine.set_task_switched(False)
    engine.run(1_000_000)
    assert handler(engine).exits[-1][0] == "syscall"


# Memory.


CRC32, MOVBE = b"\xf2\x48\x0f\x38\xf1\xc7", b"\x0f\x38\xf0\x07"  # of RDI; from (RDI)
FNINIT = b"\xdb\xe3"


@pytest.mark.parametrize("slice_ns", [1, 2, 3, 100])
def test_crc32_and_movbe_are_no_business_of_the_fpus(engine: Engine, slice_ns: int) -> None:
    engine.set_task_switched(True)
    engine.regs[Reg.RDI] = DATA
    engine._memory.write(Maddr(DATA), b"\1\2\3\4")
    run(engine, CRC32 + MOVBE + INC_RAX + FNINIT, 0)
    while not handler(engine).exits:
        engine.run(engine.now_ns + slice_ns)
    assert handler(engine).exits == [("#NM", 0, CODE + len(CRC32 + MOVBE + INC_RAX))]
    assert (engine.regs[Reg.RAX], engine.instructions) == (0x01020305, 4)


def test_a_fault_of_movbe_leaves_the_fpu_switched_away(engine: Engine) -> None:
    engine.set_task_switched(True)
    engine.regs[Reg.RDI] = UNMAPPED << 12

    def skip() -> None:
        engine.rip = CODE + len(MOVBE)
        if len(handler(engine).exits) == 2:
            engine.stop()

    handler(engine).react = skip
    assert [exit[0] for exit in run(engine, MOVBE + FNINIT)] == ["#PF", "#NM"]


def test_code_that_the_hypervisor_writes_is_run(engine: Engine) -> None:
    run(engine, INC_RAX + SYSCALL)
    run(engine, b"\x48\xff\xc1" + SYSCALL)  # inc %rcx
    assert [engine.regs[r] for r in (Reg.RAX, Reg.RCX)] == [1, 1]


def test_code_that_a_handler_writes_is_run(engine: Engine) -> None:
    def patch() -> None:
        engine._memory.write(CODE + 2, UD2)  # type: ignore[arg-type]
        handler(engine).react = engine.stop

    run(engine, b"\x90\x90" + INC_RAX + SYSCALL)
    handler(engine).exits.clear()
    handler(engine).react = patch
    assert run(engine, SYSCALL + INC_RAX + SYSCALL)[1:] == [("undefined", 2)]


def test_code_that_the_guest_writes_is_run(engine: Engine) -> None:
    engine.regs[Reg.RDI] = CODE + 0x800
    engine._memory.write(CODE + 0x800, b"\x90\xc3")  # type: ignore[arg-type]
    call, patch = b"\xff\xd7", b"\xc6\x07\xc3"  # call *%rdi; movb $ret, (%rdi)
    assert run(engine, call + patch + call + SYSCALL) == [("syscall", 9)]
    assert engine.instructions == 1 + 2 + 1 + 1 + 1 + 1


def test_another_root_is_another_address_space(engine: Engine) -> None:
    engine._memory.words[(OTHER_L1 << 9) + (DATA >> 12)] = DATA + 0x1000 | P | RW | US
    engine._memory.words[DATA >> 3], engine._memory.words[DATA + 0x1000 >> 3] = 1, 2
    load = b"\x48\x8b\x07" + SYSCALL  # mov (%rdi), %rax
    for root, value in ((ROOT, 1), (OTHER_ROOT, 2), (ROOT, 1)):
        engine.cr3, engine.regs[Reg.RDI] = root << 12, DATA
        run(engine, load)
        assert (engine.regs[Reg.RAX], engine.cr3) == (value, root << 12)


@pytest.mark.parametrize("whole", [True, False])
def test_a_changed_entry_counts_once_the_tlb_forgets_it(engine: Engine, whole: bool) -> None:
    load = b"\x48\x8b\x07" + SYSCALL
    engine._memory.words[DATA >> 3], engine._memory.words[DATA + 0x1000 >> 3] = 1, 2
    engine.regs[Reg.RDI] = DATA
    run(engine, load)
    engine._memory.words[(L1 << 9) + (DATA >> 12)] = DATA + 0x1000 | P | RW | US
    if whole:
        engine.flush_tlb()
    else:
        engine.flush_tlb_page(DATA)
    run(engine, load)
    assert engine.regs[Reg.RAX] == 2


# Several vcpus.


def test_a_saved_vcpu_goes_on_where_it_was(engine: Engine) -> None:
    run(engine, LOOP, 10)
    saved, where = engine.store(), engine.rip
    engine.cr3, engine.rip = OTHER_ROOT << 12, CODE + 0x500
    engine.regs[Reg.RAX], engine.rflags = 1000, 0x202
    engine.set_segment(Seg.GS, Segment(0, 0x999))
    engine.load(saved)
    assert (engine.regs[Reg.RAX], engine.rip, engine.cr3) == (5, where, ROOT << 12)
    assert engine.segment(Seg.GS).base == 0
    engine.run(engine.now_ns + 10)
    assert engine.regs[Reg.RAX] == 10


@pytest.mark.parametrize("bits", [CF | ZF, OF | DF])
def test_a_saved_vcpu_keeps_its_flags(engine: Engine, bits: int) -> None:
    engine.regs[Reg.RBX] = 0x202 | bits
    run(engine, PUSH_RBX_POPF + SYSCALL)
    saved = engine.store()
    engine.regs[Reg.RBX] = 0x202
    run(engine, PUSH_RBX_POPF + SYSCALL)
    engine.load(saved)
    assert engine.rflags == 0x202 | bits
    run(engine, PUSHF_POP_RBX + SYSCALL)
    assert engine.regs[Reg.RBX] == 0x202 | bits


def test_a_saved_vcpu_keeps_flags_that_were_set_for_it(engine: Engine) -> None:
    run(engine, LOOP, 10)
    engine.rflags = 0x202 | CF
    saved = engine.store()
    engine.rflags = 0x202
    engine.load(saved)
    assert engine.rflags == 0x202 | CF


def test_time_is_not_a_vcpus_own(engine: Engine) -> None:
    saved = engine.store()
    run(engine, LOOP, 100)
    engine.load(saved)
    assert engine.now_ns == 100


def test_where_a_jump_came_from(engine: Engine) -> None:
    engine.regs[Reg.RDI] = UNMAPPED << 12
    ((name, *_),) = run(engine, INC_RAX * 2 + b"\xff\xe7")  # jmp *%rdi
    assert (name, engine.came_from()) == ("#PF", CODE + 6)


def test_what_faults_behind_another_instruction_came_from_no_jump(engine: Engine) -> None:
    ((name, *_),) = run(engine, INC_RAX * 2 + b"\xf4")
    assert (name, engine.came_from()) == ("#GP", 0)


# Addresses that are not canonical, and branches to them; the guest noncanonical has more.

NOWHERE = 1 << 47


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (b"\x8b\x45\x08", "#SS"),  # mov 8(%rbp), %eax
        (b"\x64\x8b\x45\x08", "#GP"),  # mov %fs:8(%rbp), %eax
        (b"\x8b\x00", "#GP"),  # mov (%rax), %eax
        (b"\x41\x8b\x45\x08", "#GP"),  # mov 8(%r13), %eax
        (b"\xc9", "#SS"),  # leave
    ],
)
def test_a_stray_access_is_a_fault_of_its_segment(engine: Engine, code: bytes, name: str) -> None:
    for register in (Reg.RAX, Reg.RBP, Reg.R13):
        engine.regs[register] = NOWHERE
    cr2 = engine.cr2
    assert run(engine, b"\x90" + code) == [(name, 0, 1)]
    assert engine.cr2 == cr2


BRANCHES = [b"\xff\xe0", b"\xff\xd0", b"\xc3", b"\xc2\x10\0", b"\xff\x24\x24"]


@pytest.mark.parametrize("branch", BRANCHES)  # jmp, call *%rax; ret; ret $16; jmp *(%rsp)
def test_a_branch_to_nowhere_is_not_made(engine: Engine, branch: bytes) -> None:
    engine.regs[Reg.RAX] = NOWHERE
    assert run(engine, b"\x50\x90" + branch) == [("#GP", 0, 2)]  # push %rax; nop
    assert engine.regs[Reg.RSP] == STACK - 8


@pytest.mark.parametrize("slice_ns", [1, 2, 3])
def test_a_branch_to_nowhere_faults_the_same_in_any_slice(engine: Engine, slice_ns: int) -> None:
    engine.regs[Reg.RAX] = NOWHERE
    run(engine, b"\x90\x90\xff\xe0", 0)
    while not handler(engine).exits:
        engine.run(engine.now_ns + slice_ns)
    assert (handler(engine).exits, engine.instructions) == ([("#GP", 0, CODE + 2)], 3)


def test_a_step_of_a_branch_to_nowhere_is_its_fault(engine: Engine) -> None:
    engine.regs[Reg.RAX] = NOWHERE
    handler(engine).react = lambda: None
    run(engine, b"\xff\xe0", 0)
    debug = DebugPort(engine)
    debug.begin(1000)
    debug.catch_faults({flags.GP})
    assert debug.step() == Halt(Cause.FAULT, vector=flags.GP)
    assert (engine.rip, handler(engine).exits) == (CODE, [])
    debug.step()
    assert handler(engine).exits == [("#GP", 0, CODE)]


def test_a_handler_that_goes_where_a_branch_did_has_not_made_it(engine: Engine) -> None:
    def go() -> None:
        if len(handler(engine).exits) == 2:
            engine.stop()
        engine.rip = NOWHERE

    engine.regs[Reg.RAX] = NOWHERE
    handler(engine).react = go
    assert run(engine, b"\xff\xe0")[1] == ("#GP", 0, NOWHERE - CODE)


# 32-bit code: what its segments forbid, and where it ends; the guest segment-limits has more.


def enter_32_bit_code(engine: Engine) -> None:
    engine.set_segment(Seg.CS, Segment(FLAT_RING3_CS32, 0, 0xFFFFFFFF, segment.CODE32_RING3))


SMALL_DATA = Segment(0x43, UNMAPPED << 12, 0xFFF, 0x40F300)


@pytest.mark.parametrize(
    ("code", "exit"),
    [
        ("64a1fc0f0000", ("#PF", 4)),  # mov %fs:0xffc, %eax
        ("64a1fd0f0000", ("#GP", 0)),
        ("64a300300000", ("#GP", 0)),  # mov %eax, %fs:0x3000
        ("658b07", ("#GP", 0)),  # mov %gs:(%edi), %eax: GS has no segment
        ("2ea300d00300", ("#GP", 0)),  # mov %eax, %cs:0x3d000
        ("8b4500", ("#PF", 4)),  # mov (%ebp), %eax
    ],
)
def test_a_page_fault_that_the_segment_forbids_is_its_fault(
    engine: Engine, code: str, exit: Exit
) -> None:
    enter_32_bit_code(engine)
    engine.set_segment(Seg.FS, SMALL_DATA)
    engine.set_segment(Seg.GS, Segment(0))
    engine.regs[Reg.RDI] = engine.regs[Reg.RBP] = UNMAPPED << 12
    engine.cr2 = 0x1234
    assert run(engine, bytes.fromhex(code)) == [(*exit, 0)]
    assert (engine.cr2 == 0x1234) is (exit[0] == "#GP")


def test_64_bit_code_has_no_limits(engine: Engine) -> None:
    engine.set_segment(Seg.FS, Segment(0x43, UNMAPPED << 12, 0xFFF, 0x40F300))
    assert run(engine, bytes.fromhex("648b04250c10d0ff"))[0][0] == "#PF"


def test_32_bit_code_in_long_mode_goes_on_at_0_after_4_gib(engine: Engine) -> None:
    words, (l2, l1, page) = engine._memory.words, (50, 51, 52)
    words[(L3 << 9) + 3] = l2 << 12 | P | RW | US
    words[(l2 << 9) + 511] = l1 << 12 | P | RW | US
    words[(l1 << 9) + 511] = page << 12 | P | RW | US
    enter_32_bit_code(engine)
    engine._memory.write(Maddr((page << 12) + 0xFFD), bytes.fromhex("40 40 b8"))
    engine._memory.write(Maddr(0), bytes.fromhex("78563412 0f0b"))  # mov $0x12345678, %eax; ud2
    engine.rip = 0xFFFFFFFD
    engine.run(1000)
    assert handler(engine).exits == [("undefined", 4)]
    assert engine.regs[Reg.RAX] == 0x12345678


def test_a_page_that_is_not_there_after_4_gib_is_page_0(engine: Engine) -> None:
    words, (l2, l1, page) = engine._memory.words, (50, 51, 52)
    words[(L3 << 9) + 3] = l2 << 12 | P | RW | US
    words[(l2 << 9) + 511] = l1 << 12 | P | RW | US
    words[(l1 << 9) + 511] = page << 12 | P | RW | US
    words[L1 << 9] = 0
    enter_32_bit_code(engine)
    engine._memory.write(Maddr((page << 12) + 0xFFF), b"\x40")
    engine.rip = 0xFFFFFFFF
    engine.run(1000)
    assert handler(engine).exits == [("#PF", 0x14, 0)]
    assert engine.cr2 == 0


# What this CPU lacks.


@pytest.mark.parametrize(
    "code",
    [
        "c5f058c1",  # vaddps
        "c5f877",  # vzeroupper
        "c4e27118c1",  # vbroadcastss
        "c4e3710fc105",  # vpalignr
        "c7f800000000",  # xbegin
        "66c7f80000",
        "c6f805",  # xabort
        "8fc8",  # in the room beside POP
        "418fc8",
    ],
)
def test_an_instruction_that_the_engine_takes_for_another_is_undefined(
    engine: Engine, code: str
) -> None:
    assert run(engine, INC_RAX + bytes.fromhex(code) + INC_RAX) == [("undefined", 3)]
    assert (engine.regs[Reg.RAX], engine.regs[Reg.RSP]) == (1, STACK)


def test_what_looks_like_it_is_itself(engine: Engine) -> None:
    # push $5; pop %rbx by 8f c3; mov $7, %eax by c7 c0; movb $9, -8(%rsp)
    run(engine, bytes.fromhex("6a05 8fc3 c7c007000000 c64424f809") + UD2)
    assert (engine.regs[Reg.RBX], engine.regs[Reg.RAX]) == (5, 7)
    assert engine._memory.read(Maddr(STACK - 8), 1) == b"\x09"


# Prices, and looks at the host.


def test_exits_have_prices(engine: Engine) -> None:
    engine.set_prices({Priced.CPUID: 700, Priced.SYSCALL: 50, Priced.PAUSE: 140})
    handler(engine).react = lambda: None
    run(engine, CPUID + INC_RAX + b"\xf3\x90" + SYSCALL + b"\xeb\xfe", 700 + 140 + 50 + 14)
    assert engine.now_ns == 904
    assert engine.instructions == 14


def test_a_guest_that_pauses_often_leaves(engine: Engine) -> None:
    pauses = INC_RAX + b"\xf3\x90\xeb\xf9"  # inc %rax; pause; jmp -7
    engine.leave_after_pauses(3)
    run(engine, pauses, 1000)
    assert (engine.regs[Reg.RAX], engine.rip, engine.instructions) == (3, CODE + 5, 8)
    assert engine.slice_over
    engine.run(1000)  # no more are counted, and the next slice goes on where this one ended
    assert (engine.instructions, engine.regs[Reg.RAX]) == (1000, 334)


def test_a_pause_that_ends_the_slice_ends_it_when_it_is_stepped(engine: Engine) -> None:
    debug = DebugPort(engine)
    engine.leave_after_pauses(1)
    engine._memory.write(Maddr(CODE), INC_RAX + b"\xf3\x90" + LOOP)
    debug.begin(1000)
    for ended, rip in ((False, CODE + 3), (True, CODE + 5)):
        debug.step()
        assert (debug.over, engine.rip) == (ended, rip)


def test_a_price_is_paid_before_the_hypervisor_looks_at_its_clock(engine: Engine) -> None:
    engine.set_prices({Priced.SYSCALL: 50})
    seen: list[int] = []
    handler(engine).react = lambda: seen.append(engine.now_ns)
    run(engine, INC_RAX + SYSCALL + b"\xeb\xfe", 100)
    assert seen == [52]


def test_time_that_was_spent_ends_the_slice_and_moves_no_deadline(engine: Engine) -> None:
    handler(engine).react = lambda: engine.spend(1000)
    run(engine, SYSCALL + LOOP, 500)
    assert (engine.now_ns, engine.instructions) == (1001, 1)
    engine.run(2000)
    assert (engine.now_ns, engine.instructions) == (2000, 1000)


def look_always(engine: Engine, looks: list[int]) -> None:
    def look() -> None:
        looks.append(engine._counters.blocks_translated)
        engine._clock.looked_ns = 0

    engine.look = look


# Many instructions; exits; a store into the code, hence translations: fewer, as each is slow.
STORMS = [(LOOP, 1_000_000, 15), (SYSCALL + b"\xeb\xfc", 10_000, 5_000)]
STORMS += [(b"\x90\x88\x05\xf9\xff\xff\xff\xeb\xf7", 3_000, 500)]


@pytest.mark.parametrize(("code", "instructions", "at_least"), STORMS)
def test_the_host_is_looked_at_within_a_slice(
    engine: Engine, code: bytes, instructions: int, at_least: int
) -> None:
    looks: list[int] = []
    look_always(engine, looks)
    engine.regs[Reg.RAX] = 0x90  # what the store writes: a nop
    handler(engine).react = lambda: None
    run(engine, code, instructions)
    assert engine.instructions == instructions
    assert len(looks) >= at_least


def test_a_look_can_stop_the_guest(engine: Engine) -> None:
    engine.look = engine.stop
    run(engine, LOOP, 1_000_000_000)
    assert engine.now_ns < 1 << 16


def test_a_look_that_raises_ends_the_run(engine: Engine) -> None:
    def look() -> None:
        raise RuntimeError("the host")

    engine.look = look
    with pytest.raises(RuntimeError, match="the host"):
        run(engine, LOOP, 1_000_000_000)


def test_an_abort_of_unicorns_ends_the_run(engine: Engine) -> None:
    engine._shim.physical.code = None  # where the shim notes what was fetched
    with pytest.raises(EngineGaveUp, match=r"gave up at 0x[0-9a-f]+: Segmentation fault"):
        run(engine, LOOP)


# Debug registers.


def test_a_breakpoint_traps_before_its_instruction(engine: Engine) -> None:
    engine.set_debug_register(0, CODE + 3)
    engine.set_debug_register(7, 0x401)
    ((name, _, offset),) = run(engine, INC_RAX * 3 + SYSCALL)
    assert (name, offset, engine.regs[Reg.RAX]) == ("#DB", 3, 1)
    assert engine.debug_register(6) & 0xF == 1


@pytest.mark.parametrize("instruction", [b"\x89\x07", b"\x01\x07", b"\xab"])  # mov, add, stos
def test_a_watched_store_traps_behind_its_instruction(engine: Engine, instruction: bytes) -> None:
    engine.regs[Reg.RDI] = DATA
    engine.set_debug_register(0, DATA)
    engine.set_debug_register(7, 0x401 | 0xD << 16)
    ((name, _, offset),) = run(engine, INC_RAX + instruction + INC_RAX * 3 + SYSCALL)
    behind = len(INC_RAX + instruction)
    assert (name, offset, engine.regs[Reg.RAX]) == ("#DB", behind, 1)
    assert engine._memory.words[DATA >> 3] == 1
    assert engine.debug_register(6) & 0xF == 1
    assert engine.now_ns == 2


@pytest.mark.parametrize(("dr7", "offset"), [(0x401, 3), (0x401 | 0xD << 16, 5)])
def test_an_armed_breakpoint_can_be_moved(engine: Engine, dr7: int, offset: int) -> None:
    code = INC_RAX + b"\x89\x07" + INC_RAX + SYSCALL
    engine.regs[Reg.RDI] = DATA
    engine.set_debug_register(0, DATA + 64)
    engine.set_debug_register(7, dr7)
    assert run(engine, code) == [("syscall", 10)]
    handler(engine).exits.clear()
    engine.set_debug_register(0, CODE + 3 if dr7 == 0x401 else DATA)
    ((name, _, where),) = run(engine, code)
    assert (name, where) == ("#DB", offset)


@pytest.mark.parametrize("dr7", [0x401, 0x401 | 0xD << 16])
def test_breakpoints_are_a_vcpus_own(engine: Engine, dr7: int) -> None:
    code = b"\x89\x07" + INC_RAX * 3 + SYSCALL
    engine.regs[Reg.RDI] = DATA
    without = engine.store()
    engine.set_debug_register(0, CODE + 2 if dr7 == 0x401 else DATA)
    engine.set_debug_register(7, dr7)
    armed = engine.store()
    for _ in range(2):
        for saved, expected in ((without, "syscall"), (armed, "#DB")):
            engine.load(saved)
            ((name, *_),) = run(engine, code)
            assert name == expected
            assert engine.debug_register(7) == (dr7 if saved is armed else 0x400)
            handler(engine).exits.clear()
    engine.set_debug_register(7, 0)  # drops what is armed now, and not what once was
    assert run(engine, code) == [("syscall", len(code))]


def test_another_vcpus_watchpoint_costs_nothing(engine: Engine) -> None:
    engine.regs[Reg.RDI] = DATA
    other = engine.store()
    engine.set_debug_register(0, DATA)
    engine.set_debug_register(7, 0x401 | 0xD << 16)
    engine.load(other)
    before = engine.statistics()["blocks_translated"]
    run(engine, b"\x89\x07" * 100 + SYSCALL)
    assert engine.statistics()["blocks_translated"] - before == 1


def test_a_watched_store_traps_wherever_its_vcpu_leaves_the_cpu(engine: Engine) -> None:
    store, elsewhere = b"\x89\x07", CODE + 0x1000
    engine.regs[Reg.RDI] = DATA
    other = engine.store()
    engine.set_debug_register(0, DATA)
    engine.set_debug_register(7, 0x401 | 0xD << 16)
    first = engine.store()
    for slice_ns in range(1, 5):
        engine.load(first)
        run(engine, INC_RAX + store + INC_RAX * 3 + SYSCALL, engine.now_ns + slice_ns)
        mine = engine.store()
        engine.load(other)
        run(engine, store + INC_RAX + UD2, engine.now_ns + 9, elsewhere)
        engine.load(mine)
        engine.run(engine.now_ns + 2)
        seen = [(name, where) for name, *_, where in handler(engine).exits]
        assert sorted(seen) == [("#DB", CODE + 5), ("undefined", elsewhere + 5)], slice_ns
        handler(engine).exits.clear()


LOAD_SS = b"\x8e\x17"  # mov (%rdi), %ss


def watch_a_load_of_ss(engine: Engine, code: bytes) -> None:
    """Watch what `code`, INC_RAX and a load of SS in front of it, loads into SS."""
    gdt = 0x21000
    engine._memory.write(Maddr(gdt + 8), bytes.fromhex("ffff000000f3cf00"))
    engine._memory.write(Maddr(DATA), b"\x0b\0")
    engine.set_segment(Seg.GDTR, Segment(0, gdt, 0xFF))
    engine.regs[Reg.RDI] = DATA
    engine.set_debug_register(0, DATA)
    engine.set_debug_register(7, 0x401 | 7 << 16)
    engine._memory.write(Maddr(CODE), INC_RAX + LOAD_SS + code)
    engine.rip = CODE


@pytest.mark.parametrize("slice_ns", [1, 2, 3, 4, 100])
def test_a_watched_load_of_ss_traps_behind_the_next_instruction(
    engine: Engine, slice_ns: int
) -> None:
    watch_a_load_of_ss(engine, INC_RAX * 3)
    while not handler(engine).exits:
        engine.run(engine.now_ns + slice_ns)
    assert handler(engine).exits == [("#DB", 0, CODE + 8)]
    assert (engine.instructions, engine.debug_register(6) & 15) == (3, 1)


def test_a_watched_load_of_ss_traps_there_in_steps_too(engine: Engine) -> None:
    watch_a_load_of_ss(engine, INC_RAX * 3)
    handler(engine).react = lambda: None
    debug = DebugPort(engine)
    debug.begin(1000)
    places = [(debug.step(), engine.rip - CODE, len(handler(engine).exits)) for _ in range(3)]
    assert [place[1:] for place in places[:2]] == [(3, 0), (5, 0)]
    assert handler(engine).exits == [("#DB", 0, CODE + 8)]


@pytest.mark.parametrize("code", [SYSCALL, b"\xcc", UD2, b"\xf4"])
def test_a_watched_load_of_ss_is_forgotten_in_the_hypervisor(engine: Engine, code: bytes) -> None:
    watch_a_load_of_ss(engine, code)
    behind = CODE + 5 + len(code)

    def go_on() -> None:
        engine.rip = behind
        if len(handler(engine).exits) == 2:
            engine.stop()

    handler(engine).react = go_on
    engine._memory.write(Maddr(behind), INC_RAX * 2 + UD2)
    engine.run(100)
    assert len(handler(engine).exits) == 2
    assert handler(engine).exits[1] == ("undefined", behind + 6)


def test_dr6_has_this_times_hit_alone(engine: Engine) -> None:
    engine.regs[Reg.RDI] = DATA
    engine.set_debug_register(0, DATA)
    engine.set_debug_register(1, DATA + 8)
    engine.set_debug_register(7, 0x405 | 0xDD << 16)
    seen = []

    def note() -> None:
        seen.append(engine.debug_register(6) & 15)
        engine.set_debug_register(6, 0)

    handler(engine).react = note
    run(engine, bytes.fromhex("8907 894708 8907 894708") + b"\xeb\xfe", 100)  # to both, twice
    assert seen == [1, 2, 1, 2]


def test_a_load_from_the_same_page_does_not_trap(engine: Engine) -> None:
    engine.regs[Reg.RDI] = DATA
    engine.set_debug_register(0, DATA + 8)
    engine.set_debug_register(7, 0x401 | 0xF << 16)
    ((name, _),) = run(engine, b"\x8b\x07" + SYSCALL)
    assert name == "syscall"
    assert engine.debug_register(6) & 0xF == 0


# Page tables.

STORE = b"\x88\x07"  # mov %al,(%rdi)
STORE_AND_LEAVE = STORE + UD2


@pytest.mark.parametrize("used_as", [PGT_l1_page_table, PGT_l4_page_table, PGT_pae_xen_l2])
def test_a_table_that_the_guest_can_write_is_noticed(engine: Engine, used_as: int) -> None:
    FrameTable(engine._memory).type[DATA >> 12] = used_as
    engine.regs[Reg.RDI] = DATA
    with pytest.raises(EngineError, match="could write a page table: mfn 0x20"):
        run(engine, STORE_AND_LEAVE)


@pytest.mark.parametrize("used_as", [PGT_none, PGT_seg_desc_page, PGT_writable_page])
def test_other_frames_may_be_written(engine: Engine, used_as: int) -> None:
    FrameTable(engine._memory).type[DATA >> 12] = used_as
    engine.regs[Reg.RDI] = DATA
    assert run(engine, STORE_AND_LEAVE) == [("undefined", len(STORE))]


def test_a_table_may_be_mapped_read_only(engine: Engine) -> None:
    FrameTable(engine._memory).type[READ_ONLY] = PGT_l1_page_table
    engine.regs[Reg.RDI] = READ_ONLY << 12
    assert run(engine, STORE_AND_LEAVE) == [("#PF", 7, 0)]
