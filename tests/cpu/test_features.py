"""cpu/features: what CPUID offers works as on a CPU; what it does not is undefined."""

from __future__ import annotations

from itertools import pairwise

import pytest

from xenemu.cpu.debug_port import DebugPort
from xenemu.cpu.engine import Engine
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.memory import Memory
from xenemu.pv.traps import CS64, SS64
from xenemu.x86 import flags
from xenemu.x86.flags import CF, OF, PF, ZF
from xenemu.x86.paging import RW, US, P
from xenemu.x86.segment import CODE32_RING3

FRAMES = 64
TABLES = ROOT, L3, L2, L1 = 1, 2, 3, 4
CODE, STACK = 0x10000, 0x30000
INC_RAX = b"\x48\xff\xc0"
SYSCALL = b"\x0f\x05"
RDRAND_RAX, RDSEED_RCX, RDRAND_DX = b"\x48\x0f\xc7\xf0", b"\x48\x0f\xc7\xf9", b"\x66\x0f\xc7\xf2"
RDFSBASE_RAX, WRFSBASE_RCX = b"\xf3\x48\x0f\xae\xc0", b"\xf3\x48\x0f\xae\xd1"
WRGSBASE_R9, WRFSBASE_ECX = b"\xf3\x49\x0f\xae\xd9", b"\xf3\x0f\xae\xd1"
NON_CANONICAL = 1 << 47
VADDPS = b"\xc5\xe8\x58\xd9"  # vaddps %xmm1, %xmm2, %xmm3
RDTSCP = b"\x0f\x01\xf9"


class Handler:
    """Stops at each exit, and notes what it was and how far into the code."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.exits: list[tuple[str, int]] = []

    def _note(self, what: str) -> None:
        self.exits.append((what, self.engine.rip - CODE))
        self.engine.stop()

    def exception(self, vector: int, error_code: int) -> None:
        self._note(flags.vector_name(vector))

    def software_interrupt(self, vector: int, length: int) -> None:
        self._note("int")

    def invalid_opcode(self) -> None:
        self._note("#UD")

    def syscall(self) -> None:
        self._note("syscall")

    def sysenter(self) -> None:
        self._note("sysenter")

    def cpuid(self) -> bool:
        self._note("cpuid")
        return True


@pytest.fixture
def engine() -> Engine:
    """64-bit code in ring 3, each page of RAM at its own address."""
    memory = Memory(FRAMES)
    for upper, lower in pairwise(TABLES):
        memory.words[upper << 9] = lower << 12 | P | RW | US
    for frame in range(FRAMES):
        memory.words[(L1 << 9) + frame] = frame << 12 | P | RW | US
    engine = Engine(memory)
    engine.turn_paging_on(ROOT << 12, True)
    engine.set_task_switched(False)
    for which in (Seg.SS, Seg.DS, Seg.ES):
        engine.set_segment(which, SS64)
    engine.set_segment(Seg.CS, CS64)
    engine.rflags, engine.regs[Reg.RSP] = 0x202, STACK
    engine.attach(Handler(engine))
    return engine


def run(engine: Engine, code: bytes, at: int = CODE) -> list[tuple[str, int]]:
    """Run to the first exit; the exits, with RIP relative to CODE."""
    engine._memory.write(at, code)  # type: ignore[arg-type]
    engine.rip = at
    engine.run(1_000_000)
    return engine.handler.exits  # type: ignore[attr-defined, no-any-return]


# Random numbers.


def test_random_numbers_come_from_the_seed(engine: Engine) -> None:
    drawn = []
    for seed in (0, 0, 1):
        engine.seed_random(seed)
        assert run(engine, RDRAND_RAX + RDSEED_RCX + SYSCALL)[-1] == ("syscall", 10)
        drawn.append((engine.regs[Reg.RAX], engine.regs[Reg.RCX]))
    assert drawn[0] == (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)  # splitmix64's, from 0
    assert drawn[1] == drawn[0] != drawn[2]


def test_a_random_number_sets_the_carry_alone_and_fits_its_register(engine: Engine) -> None:
    engine.rflags = 0x202 | ZF | OF | PF
    engine.regs[Reg.RDX] = 0x1111_2222_3333_4444
    run(engine, RDRAND_DX + SYSCALL)
    assert engine.rflags & (CF | ZF | OF | PF) == CF
    assert engine.regs[Reg.RDX] == 0x1111_2222_3333_CDAF


# FSGSBASE.


def test_bases_are_read_and_written_where_cr4_allows(engine: Engine) -> None:
    assert run(engine, RDFSBASE_RAX) == [("#UD", 0)]
    engine.set_fsgsbase(True)
    engine.regs[Reg.RCX], engine.regs[Reg.R9] = 0xFFFF_8000_0000_0000, 0x1234
    run(engine, WRFSBASE_RCX + WRGSBASE_R9 + RDFSBASE_RAX + SYSCALL)
    assert engine.segment(Seg.FS).base == engine.regs[Reg.RAX] == 0xFFFF_8000_0000_0000
    assert engine.segment(Seg.GS).base == 0x1234


def test_a_base_is_canonical(engine: Engine) -> None:
    engine.set_fsgsbase(True)
    engine.regs[Reg.RCX] = engine.regs[Reg.R9] = NON_CANONICAL
    for code in (WRFSBASE_RCX, WRGSBASE_R9, b"\x3e" + WRFSBASE_RCX):
        assert run(engine, INC_RAX + code)[-1] == ("#GP", 3), code.hex()
    assert engine.segment(Seg.FS).base == engine.segment(Seg.GS).base == 0


def test_half_a_register_is_always_canonical(engine: Engine) -> None:
    engine.set_fsgsbase(True)
    engine.regs[Reg.RCX] = NON_CANONICAL | 0x8000_0000
    assert run(engine, WRFSBASE_ECX + SYSCALL)[-1][0] == "syscall"
    assert engine.segment(Seg.FS).base == 0x8000_0000


# RDTSCP.


def test_rdtscp_has_the_auxiliary_value(engine: Engine) -> None:
    engine.set_tsc_aux(0x8765_4321)
    run(engine, INC_RAX + RDTSCP + SYSCALL)
    assert engine.regs[Reg.RCX] == 0x8765_4321
    assert engine.regs[Reg.RAX] == 1, "a nanosecond"


# What is not offered.

NOT_OFFERED = {
    "vaddps": VADDPS,
    "vaddps, 256 bits": b"\xc5\xec\x58\xd9",
    "vpxor, with a segment": b"\x65\xc5\xe9\xef\x18",
    "vzeroupper": b"\xc5\xf8\x77",
    "vpshufb": b"\xc4\xe2\x69\x00\xd9",
    "vpaddd": b"\xc5\xed\xfe\xd9",
    "andn": b"\xc4\xe2\xe0\xf2\xc8",
    "mulx": b"\xc4\xe2\xfb\xf6\xc8",
    "adcx": b"\x66\x0f\x38\xf6\xc1",
    "xgetbv": b"\x0f\x01\xd0",
    "xsave": b"\x0f\xae\x20",
    "xsavec": b"\x0f\xc7\x20",
    "clflushopt": b"\x66\x0f\xae\x38",
    "stac": b"\x0f\x01\xcb",
    "vmrun": b"\x0f\x01\xd8",
    "evex": b"\x62\xf1\x6c\x48\x58\xd9",
}


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_is_not_offered_is_undefined(engine: Engine, name: str) -> None:
    before = list(engine.regs)
    assert run(engine, INC_RAX * 9 + NOT_OFFERED[name] + INC_RAX * 9) == [("#UD", 27)]
    assert (engine.regs[Reg.RAX], engine.instructions) == (9, 10), "it counts"
    assert engine.regs[1:] == before[1:]


def test_an_undefined_instruction_across_pages(engine: Engine) -> None:
    for cut in range(1, len(VADDPS)):
        at = CODE + 0x1000 - cut
        engine._memory.stale_code.update({CODE >> 12, (CODE >> 12) + 1})
        assert run(engine, VADDPS, at)[-1] == ("#UD", 0x1000 - cut), cut


def test_slices_of_any_length_end_before_an_undefined_instruction(engine: Engine) -> None:
    for budget in range(1, 6):
        engine.handler.exits.clear()  # type: ignore[attr-defined]
        engine._memory.write(CODE, INC_RAX * 3 + VADDPS)  # type: ignore[arg-type]
        engine.rip, start = CODE, engine.instructions
        engine.run(engine.now_ns + budget)
        assert engine.instructions - start == min(budget, 4)
        assert bool(engine.handler.exits) is (budget > 3)  # type: ignore[attr-defined]


def test_a_debugger_steps_onto_it(engine: Engine) -> None:
    engine._memory.write(CODE, INC_RAX + VADDPS)  # type: ignore[arg-type]
    engine.rip = CODE
    debug = DebugPort(engine)
    debug.begin(1_000_000)
    debug.step()
    assert engine.rip == CODE + 3
    debug.step()
    assert engine.handler.exits == [("#UD", 3)]  # type: ignore[attr-defined]


def test_in_32_bit_code_les_and_lds_are_none(engine: Engine) -> None:
    cs = engine.segment(Seg.CS)
    engine.set_segment(Seg.CS, type(cs)(0x23, 0, 0xFFFFFFFF, CODE32_RING3))
    assert run(engine, VADDPS)[-1] == ("#UD", 0)
    engine.regs[Reg.RSI] = STACK
    assert run(engine, b"\xc5\x06" + b"\x0f\x0b")[-1] == ("#UD", 2), "lds (%esi), %eax"
    assert engine.regs[Reg.RAX] == 0


def test_the_last_undefined_instruction_is_remembered_but_for_ud2(engine: Engine) -> None:
    assert engine.undefined() is None
    run(engine, INC_RAX + VADDPS + INC_RAX * 9)
    for meant in (b"\x0f\x0b", b"\x0f\xb9\xc0", b"\x0f\xff\xc0"):
        run(engine, meant)
    undefined = engine.undefined()
    assert undefined is not None
    assert (undefined.rip, undefined.bits) == (CODE + 3, 64)
    assert undefined.code == (VADDPS + INC_RAX * 9)[:15]


def test_an_undefined_instruction_at_the_end_of_memory(engine: Engine) -> None:
    last = (FRAMES << 12) - len(VADDPS)
    run(engine, VADDPS, last)
    undefined = engine.undefined()
    assert undefined is not None
    assert (undefined.rip, undefined.code) == (last, VADDPS)
