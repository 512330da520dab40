"""cpu/context: vcpus that take turns in one engine do what each does alone.

Two guests in ring 0: one in 32-bit code without paging, one in 64-bit code on tables of its own.
Each has debug registers, an FPU, SSE, MSRs and tables that the other must not meet.
"""

from __future__ import annotations

import ctypes
import dataclasses
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenemu.cpu.context import Context, Interrupts
from xenemu.cpu.engine import Engine
from xenemu.hv.cpu import Reg, Seg, Segment, Undefined
from xenemu.hv.memory import Memory
from xenemu.hv.p2m import P2m
from xenemu.x86 import msr
from xenemu.x86.paging import RW, Maddr, P

FRAMES = 32
GDT, TABLES = 0x1000, 0x2000  # PML4, PDPT, PD
SIZE = 0x8000  # of what a guest has for itself, at SIZE and at 2 * SIZE
CODE, DATA, IDT, HANDLERS, STACK = 0, 0x1000, 0x2000, 0x3000, 0x5000
FLAT_GDT = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF)
APIC = 0x40
PS = 1 << 7

# inc %eax; fadd %st(1),%st; adc %eax,%ebx; mov %eax,(%edi); paddw %mm7,%mm6; emms; fld1;
# fstp %st(2); push %eax; pushf; pop %edx; pop %ebp; rcl $3,%ebx; jmp start
CODE_32 = bytes.fromhex("40 d8c1 11c3 8907 0ffdf7 0f77 d9e8 ddda 50 9c 5a 5d c1d303 ebe7")
# inc %rax; addps %xmm1,%xmm0; divsd %xmm3,%xmm2; mov %rax,(%rdi); swapgs; mov (%rsi),%ss;
# adc %rax,%rbx; sti; nop; cli; fadd %st(1),%st; pushf; pop %rdx; xchg %r10,%r11; rcl $3,%rbx; jmp
CODE_64 = bytes.fromhex(
    "48ffc0 0f58c1 f20f5ed3 488907 0f01f8 8e16 4811c3 fb90fa d8c1 9c5a 4d87d3 48c1d303 ebdb"
)
# Handlers count. ONCE also disarms DR7, so that a breakpoint lets its instruction run.
COUNT = {False: bytes.fromhex("46 cf"), True: bytes.fromhex("49ffc0 48cf")}
DEBUG = {False: bytes.fromhex("41 cf"), True: bytes.fromhex("49ffc1 48cf")}
ONCE = {
    False: bytes.fromhex("50 b800040000 0f23f8 58 41 cf"),
    True: bytes.fromhex("50 48c7c000040000 0f23f8 58 49ffc1 48cf"),
}

DR6, DR7 = 0xFFFF0FF0, 0x400
NOTHING_ARMED = (0, 0, DR7)


@dataclasses.dataclass(frozen=True)
class Start:
    """How a guest begins, as far as hypothesis chooses it."""

    wide: bool
    breakpoints: tuple[int, int, int]  # DR0, DR1, DR7; addresses within the guest's own memory
    control: int  # the FPU's, rounding and precision
    rounding: int  # of SSE
    flags: int
    pattern: bytes
    interrupt: bool
    shadow: bool

    @property
    def base(self) -> int:
        return 2 * SIZE if self.wide else SIZE


def guests(wide: bool) -> st.SearchStrategy[Start]:
    # DR0 is an instruction or a store, DR1 what MOV SS reads.
    exact = st.sampled_from([CODE + 3, CODE + 5] if not wide else [CODE + 3, CODE + 13])
    breakpoints = st.one_of(
        st.just(NOTHING_ARMED),
        st.tuples(exact, st.just(DATA + 64), st.just(DR7 | 2)),
        st.just((DATA, DATA + 64, DR7 | 2 | 0xD << 16)),
        st.just((DATA, DATA + 64, DR7 | 2 | 8 | 0xD << 16 | 7 << 20)),
        st.just((DATA, DATA + 64, DR7 | 8 | 7 << 20)),
    )
    return st.builds(
        Start,
        st.just(wide),
        breakpoints,
        st.sampled_from([rounding << 10 | precision << 8 for rounding in range(4)
                         for precision in (0, 2, 3)]),
        st.integers(0, 3),
        st.sampled_from([0, 1, 0x8D5, 0x400]),  # CF; OF SF ZF AF PF CF; DF
        st.binary(min_size=16, max_size=16),
        st.booleans(),
        st.booleans(),
    )  # fmt: skip


def fpu(start: Start) -> bytes:
    """Of registers that differ, in FXSAVE's layout."""
    area = bytearray(512)
    area[0:2] = (0x7F | start.control).to_bytes(2, "little")
    area[2:4] = (3 << 11 | 0x40).to_bytes(2, "little")
    area[4] = 0xFF
    area[24:28] = (0x1F80 | start.rounding << 13).to_bytes(4, "little")
    area[28:32] = (0xFFFF).to_bytes(4, "little")
    for n in range(8):
        significand = 1 << 63 | int.from_bytes(start.pattern[:7], "little") + n
        area[32 + 16 * n : 42 + 16 * n] = significand.to_bytes(8, "little") + bytes([n, 0x40])
    for n in range(16):
        area[160 + 16 * n : 176 + 16 * n] = bytes([*start.pattern[n:], *start.pattern[:n]])
    return bytes(area)


class Host:
    """An engine with both guests in its memory."""

    def __init__(self) -> None:
        self.memory = Memory(FRAMES)
        self.engine = Engine(self.memory, P2m(range(FRAMES)))
        for n, descriptor in enumerate(FLAT_GDT):
            self.memory.write_uint(Maddr(GDT + 8 * n), 8, descriptor)
        for n, entry in enumerate((TABLES + 0x1000, TABLES + 0x2000, PS)):
            self.memory.write_uint(Maddr(TABLES + 0x1000 * n), 8, entry | P | RW)

    def place(self, start: Start) -> Context:
        """Write a guest to memory, and its registers by name."""
        write, base, wide = self.memory.write, start.base, start.wide
        write(Maddr(base + CODE), CODE_64 if wide else CODE_32)
        write(Maddr(base + DATA + 64), b"\x10\0")
        debug = ONCE if start.breakpoints[0] < DATA else DEBUG
        bodies = {1: debug[wide], APIC: COUNT[wide]}
        for n, (vector, body) in enumerate(bodies.items()):
            handler = base + HANDLERS + 64 * n
            write(Maddr(handler), body)
            gate = 0x8E00 << 32 | (24 if wide else 8) << 16 | handler & 0xFFFF
            gate |= (handler >> 16) << 48
            self.memory.write_uint(Maddr(base + IDT + (16 if wide else 8) * vector), 8, gate)
        code = Segment(24, 0, 0xFFFFFFFF, 0xA09B00) if wide else Segment(8, 0, 0xFFFFFFFF, 0xC09B00)
        data = Segment(16, 0, 0xFFFFFFFF, 0xC09300)
        fresh = self.engine.store()
        segments = [data, code, data, data, data, data, *fresh.segments[Seg.LDTR :]]
        segments[Seg.GS] = Segment(16, base + 0x123, 0xFFFFFFFF, 0xC09300)
        segments[Seg.GDTR] = Segment(0, GDT, 0xFF)
        segments[Seg.IDTR] = Segment(0, base + IDT, 0xFFF)
        general = [0] * 16
        general[Reg.RSP], general[Reg.RDI] = base + STACK, base + DATA
        general[Reg.RSI] = base + DATA + 64 if wide else 0
        general[Reg.R10] = 0x1010 if wide else 0
        dr0, dr1, dr7 = start.breakpoints
        return dataclasses.replace(
            fresh,
            general=tuple(general),
            rip=base + CODE,
            rflags=2 | start.flags | (0x200 if start.interrupt and not wide else 0),
            segments=tuple(segments),
            cpl=0,
            cr0=0x80000011 if wide else 0x11,
            cr2=base,
            cr3=TABLES if wide else 0,
            cr4=0x220 if wide else 0,
            efer=0x500 if wide else 0,
            debug=(base + dr0, base + dr1, 0, 0, 0, 0, DR6, dr7),
            msrs={number: base + number for number in fresh.msrs},
            fpu=fpu(start),
            interrupts=Interrupts(
                shadow=start.shadow,
                requested=start.interrupt,
                apic_vector=APIC if start.interrupt else None,
            ),
        )

    def run(self, context: Context, instructions: int) -> Context:
        self.engine.load(context)
        self.engine.run(self.engine.now_ns + instructions)
        return self.engine.store()

    def memory_of(self, start: Start) -> bytes:
        return bytes(self.memory.read(Maddr(start.base), SIZE))


slices = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=40)


@settings(max_examples=50)
@given(guests(False), guests(True), slices)
def test_vcpus_that_take_turns_do_what_each_does_alone(narrow, wide, turns) -> None:
    together, starts = Host(), {False: narrow, True: wide}
    contexts = {which: together.place(start) for which, start in starts.items()}
    for which, instructions in turns:
        contexts[which] = together.run(contexts[which], instructions)
    for which, start in starts.items():
        alone = Host()
        context = alone.place(start)
        whole = sum(instructions for turn, instructions in turns if turn is which)
        if whole:
            context = alone.run(context, whole)
        assert contexts[which] == context
        assert together.memory_of(start) == alone.memory_of(start)


ARMED = (DATA, DATA + 64, DR7 | 2 | 8 | 0xD << 16 | 7 << 20)
BUSY = Start(True, ARMED, 0xC00, 2, 0x8D5, bytes(range(16)), True, True)


@pytest.mark.parametrize("wide", [False, True])
def test_what_is_loaded_is_what_is_stored(wide) -> None:
    host = Host()
    context = host.place(dataclasses.replace(BUSY, wide=wide))
    waits = Interrupts(True, True, True, True, True, 0b11, True, 0x41, 0x42, 0x43, 0x1010)
    context = dataclasses.replace(
        context, rflags=context.rflags | 0x10000, interrupts=waits, cpl=0, debug=(*range(7), 0x400)
    )
    context = dataclasses.replace(
        context,
        debug=(*context.debug[:7], ARMED[2]),
        undefined=Undefined(0x1234, 64, b"\x0f\x0b\xff"),
        delivered=(2, 14),
    )
    host.engine.load(context)
    assert host.engine.store() == context


def test_all_turns_of_one_instruction_meet_what_waits() -> None:
    """Every state between two instructions, among them a #DB that MOV SS holds back."""
    host = Host()
    other = host.place(Start(False, NOTHING_ARMED, 0x300, 0, 0, bytes(16), False, False))
    context = host.place(BUSY)
    held = 0
    for _ in range(200):
        context = host.run(context, 1)
        held += context.interrupts.debug_held and context.interrupts.debug_hits == 0b10
        other = host.run(other, 1)
    assert held
    alone = Host()  # from here on, the process's only one
    assert context == alone.run(alone.place(BUSY), 200)
    assert context.general[Reg.R9] and context.general[Reg.R8] == 1  # #DB; the APIC's once


def test_the_mode_is_the_same_whether_loaded_or_reached() -> None:
    host = Host()
    at, env = host.engine._constants, host.engine._shim.env()
    place = ctypes.c_uint64.from_address(env + at.ENV_HFLAGS)
    for wide in (False, True):
        context = host.run(host.place(dataclasses.replace(BUSY, wide=wide)), 77)
        mode = place.value
        host.engine.load(host.place(dataclasses.replace(BUSY, wide=not wide)))
        host.engine.load(context)
        assert place.value == mode


def test_a_context_is_plain_data() -> None:
    host = Host()
    context = host.run(host.place(BUSY), 50)
    assert pickle.loads(pickle.dumps(context)) == context
    mapping = host.engine._ram

    def numbers(value: object) -> list[int]:
        if dataclasses.is_dataclass(value):
            return [n for f in dataclasses.fields(value) for n in numbers(getattr(value, f.name))]
        if isinstance(value, tuple):
            return [n for item in value for n in numbers(item)]
        if isinstance(value, dict):
            return [*value.values()]
        return [value] if isinstance(value, int) else []

    assert all(abs(n - mapping) > FRAMES << 12 for n in numbers(context))
    assert context.msrs[msr.KERNEL_GS_BASE] or context.segments[Seg.GS].base


def test_a_vcpu_that_begins_has_nothing_of_its_past_but_msrs_segments_and_the_fpu() -> None:
    host = Host()
    context = host.run(host.place(BUSY), 77)
    waits = Interrupts(True, True, True, True, True, 0b11, True, 0x41, 0x42, 0x43, 0x1010)
    host.engine.load(dataclasses.replace(context, interrupts=waits, cpl=3))
    host.engine.begin(0x10, 0, 0, 0)
    begun = host.engine.store()
    kept = {"msrs", "segments", "fpu", "rip"}
    assert begun == dataclasses.replace(
        Context((0,) * 16, 0, 2, (), 0, 0x10, 0, 0, 0, 0, (0,) * 6 + (DR6, DR7), {}, b"",
                Interrupts(), None, (0, 0)),
        **{name: getattr(context, name) for name in kept},
    )  # fmt: skip


# mov %cs:0x40,%ax; mov %ax,%ds; movl $0x12345678,0x50; mov %cs,%bx; hlt
REAL_MODE = bytes.fromhex("2e a1 40 00 8e d8 66 c7 06 50 00 78 56 34 12 8c cb f4")


def test_a_vcpu_begins_in_real_mode_after_another_was_in_64_bit_code() -> None:
    host = Host()
    host.run(host.place(BUSY), 77)
    engine, page = host.engine, 0x1A000
    host.memory.write(Maddr(page), REAL_MODE)
    host.memory.write_uint(Maddr(page + 0x40), 2, 0x1B00)
    engine.begin(0x10, 0, 0, 0)
    engine.rip = 0
    for which in (Seg.DS, Seg.ES, Seg.SS):
        engine.set_segment(which, Segment(0, 0, 0xFFFF, 0x9300))
    engine.set_segment(Seg.CS, Segment(page >> 4, page, 0xFFFF, 0x9B00))
    before = engine.instructions
    engine.run(engine.now_ns + 100)
    assert engine.halted and engine.instructions == before + 5
    assert host.memory.read_uint(Maddr(0x1B050), 4) == 0x12345678
    assert engine.regs[Reg.RBX] == page >> 4
