"""cpu/debug_port: a debugger stops the guest where it says, and the guest does not notice.

A guest here is a few instructions of flat 32-bit code in ring 0, without paging.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xenemu.cpu.debug_port import DebugPort
from xenemu.cpu.engine import Engine
from xenemu.hv.cpu import Msr, Reg, Seg, Segment
from xenemu.hv.debug import Access, Cause, Halt, Watchpoint
from xenemu.hv.memory import Memory
from xenemu.hv.p2m import P2m
from xenemu.pvh.personality import CODE32, DATA32
from xenemu.x86.paging import Maddr

FRAMES = 16
CODE, HANDLER, DATA, GDT, IDT, STACK = (n << 12 for n in (2, 3, 4, 6, 7, 9))
FLAT_GDT = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
UNDEFINED, DEBUG, PROTECTION, EXTERNAL = 6, 1, 13, 0x40
INC_EAX, DEC_ECX, NOP, UD2, STI, VMCALL = (
    b"\x40",
    b"\x49",
    b"\x90",
    b"\x0f\x0b",
    b"\xfb",
    b"\x0f\x01\xc1",
)
STORE = b"\xa3" + DATA.to_bytes(4, "little")  # mov %eax, DATA
LOAD = b"\x8b\x15" + DATA.to_bytes(4, "little")  # mov DATA, %edx
REP_STOSB, HLT = b"\xf3\xaa", b"\xf4"
ICEBP, INT_WITHOUT_GATE = b"\x67\xf1", b"\x67\xcd\x50"  # with a prefix
LOOP = b"\x40\x49\xeb\xfc"  # inc %eax; dec %ecx; jmp -4
END = 1_000_000
BREAKPOINT = Halt(Cause.BREAKPOINT)


class Handler:
    """Answers every exit, and counts the hypercalls."""

    def __init__(self) -> None:
        self.vmcalls = 0
        self.on_vmcall: Callable[[], None] = lambda: None

    def cpuid(self) -> bool:
        return False

    def vmcall(self) -> None:
        self.vmcalls += 1
        self.on_vmcall()

    def read_msr(self, number: int) -> int | Msr:
        return Msr.REFUSED

    def write_msr(self, number: int, value: int) -> Msr | None:
        return Msr.REFUSED

    def read_cr8(self) -> int:
        return 0

    def write_cr8(self, value: int) -> None:
        pass

    def read_port(self, port: int, size: int) -> int:
        return 0

    def write_port(self, port: int, size: int, value: int) -> None:
        pass

    def read_apic(self, offset: int, size: int) -> int:
        return 0

    def write_apic(self, offset: int, size: int, value: int) -> None:
        pass


class Guest:
    """An engine with code at CODE; its exceptions and interrupts lead to HANDLER."""

    def __init__(self, code: bytes, handler: bytes = INC_EAX) -> None:
        self.memory = Memory(FRAMES)
        self.engine = Engine(self.memory, P2m(range(FRAMES)), frozenset())
        self.handler = Handler()
        self.engine.attach(self.handler)
        self.write(CODE, code)
        self.write(HANDLER, handler)
        for i, descriptor in enumerate(FLAT_GDT):
            self.write(GDT + 8 * i, descriptor.to_bytes(8, "little"))
        for vector in (DEBUG, UNDEFINED, PROTECTION, EXTERNAL):
            gate = HANDLER & 0xFFFF | 8 << 16 | 0x8E00 << 32
            self.write(IDT + 8 * vector, gate.to_bytes(8, "little"))
        engine = self.engine
        engine.set_segment(Seg.GDTR, Segment(0, GDT, 0xFF))
        engine.set_segment(Seg.IDTR, Segment(0, IDT, 0x7FF))
        for which in (Seg.SS, Seg.DS, Seg.ES):
            engine.set_segment(which, Segment(16, 0, 0xFFFFFFFF, DATA32))
        engine.set_segment(Seg.CS, Segment(8, 0, 0xFFFFFFFF, CODE32))
        engine.rip, engine.rflags, engine.regs[Reg.RSP] = CODE, 2, STACK
        self.debug = DebugPort(engine)
        self.debug.begin(END)

    def write(self, paddr: int, data: bytes) -> None:
        self.memory.write(Maddr(paddr), data)

    @property
    def at(self) -> int:
        """RIP, relative to the code."""
        return self.engine.rip - CODE


# Steps.


def test_a_step_is_one_instruction() -> None:
    guest = Guest(INC_EAX * 3)
    places = []
    for _ in range(3):
        assert guest.debug.step() is None
        places.append((guest.at, guest.engine.instructions, guest.engine.regs[Reg.RAX]))
    assert places == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_a_step_of_rep_is_one_iteration() -> None:
    guest = Guest(REP_STOSB + NOP)
    guest.engine.regs[Reg.RCX], guest.engine.regs[Reg.RDI] = 3, DATA
    places = []
    for _ in range(4):
        guest.debug.step()
        places.append((guest.at, guest.engine.regs[Reg.RCX]))
    assert places[:3] == [(0, 2), (0, 1), (0, 0)]
    assert places[3] == (2, 0)


def test_a_step_of_a_fault_ends_at_its_handler() -> None:
    guest = Guest(UD2)
    guest.debug.step()
    assert (guest.engine.rip, guest.engine.regs[Reg.RAX]) == (HANDLER, 0)


def test_a_step_of_icebp_ends_at_its_handler() -> None:
    guest = Guest(ICEBP)
    guest.debug.step()
    assert guest.engine.rip == HANDLER
    assert guest.memory.read_uint(Maddr(guest.engine.regs[Reg.RSP]), 4) == CODE + len(ICEBP)


def test_a_step_of_an_interrupt_that_has_no_gate_ends_at_the_faults_handler() -> None:
    guest = Guest(INT_WITHOUT_GATE)
    guest.debug.step()
    assert guest.engine.rip == HANDLER
    assert guest.memory.read_uint(Maddr(guest.engine.regs[Reg.RSP] + 4), 4) == CODE


def test_a_step_of_a_hypercall_ends_behind_it() -> None:
    guest = Guest(VMCALL + INC_EAX)
    guest.debug.step()
    assert (guest.at, guest.handler.vmcalls, guest.engine.regs[Reg.RAX]) == (3, 1, 0)


def test_a_step_that_an_interrupt_forestalls_ends_at_its_handler() -> None:
    guest = Guest(INC_EAX * 2)
    guest.engine.rflags = 0x202
    guest.engine.apic_vector = EXTERNAL
    guest.debug.step()
    assert (guest.engine.rip, guest.engine.instructions) == (HANDLER, 0)
    guest.debug.step()
    assert (guest.engine.rip, guest.engine.instructions) == (HANDLER + 1, 1)


def test_sti_shadows_one_instruction_of_steps_too() -> None:
    guest = Guest(STI + INC_EAX * 2)
    guest.engine.apic_vector = EXTERNAL
    guest.debug.step()
    assert guest.at == 1
    guest.debug.step()
    assert (guest.engine.rip, guest.engine.instructions) == (HANDLER, 2)
    assert guest.engine.regs[Reg.RAX] == 1


def test_a_step_leaves_the_deadline_where_it_was() -> None:
    guest = Guest(LOOP)
    guest.debug.begin(10)
    for _ in range(4):
        guest.debug.step()
        assert not guest.debug.over
    guest.debug.run()
    assert guest.debug.over
    assert guest.engine.now_ns == 10


def test_a_hypercall_brings_the_deadline_forward_in_a_step() -> None:
    guest = Guest(VMCALL + LOOP)
    guest.handler.on_vmcall = lambda: guest.engine.limit(20)
    guest.debug.step()
    guest.debug.run()
    assert guest.engine.now_ns == 20


# Breakpoints.


def test_a_breakpoint_stops_before_its_instruction() -> None:
    guest = Guest(LOOP)
    guest.debug.set_breakpoints({CODE + 1})
    assert guest.debug.run() == BREAKPOINT
    assert (guest.at, guest.engine.instructions, guest.engine.regs[Reg.RAX]) == (1, 1, 1)


def test_a_breakpoint_is_hit_each_time_round() -> None:
    guest = Guest(LOOP)
    guest.debug.set_breakpoints({CODE + 1})
    for turn in range(3):
        assert guest.debug.run() == BREAKPOINT
        assert guest.engine.instructions == 1 + 3 * turn
        assert guest.debug.step() is None


def test_a_breakpoint_in_code_that_has_run_is_hit() -> None:
    guest = Guest(LOOP)
    guest.debug.begin(300)
    guest.debug.run()
    guest.debug.begin(END)
    guest.debug.set_breakpoints({CODE + 1})
    assert guest.debug.run() == BREAKPOINT
    assert guest.engine.instructions == 301


def test_a_breakpoint_that_was_removed_is_not_hit() -> None:
    guest = Guest(LOOP)
    guest.debug.set_breakpoints({CODE + 1})
    guest.debug.run()
    guest.debug.set_breakpoints(())
    assert guest.debug.run() is None
    assert guest.engine.now_ns == END


def test_a_block_of_one_instruction_that_was_stepped_has_the_breakpoint_afterwards() -> None:
    """A deadline cuts blocks to one instruction, too; such a block is not the step's."""
    guest = Guest(LOOP)
    guest.debug.set_breakpoints({CODE + 1})
    guest.debug.run()
    guest.debug.step()
    guest.debug.begin(guest.engine.now_ns + 3)
    assert guest.debug.run() == BREAKPOINT
    assert guest.engine.instructions == 4


def test_too_many_breakpoints_are_refused() -> None:
    guest = Guest(LOOP)
    guest.debug.set_breakpoints({CODE + 1})
    assert not guest.debug.set_breakpoints(range(1000))
    assert guest.debug.run() == BREAKPOINT


def test_interruptions_change_nothing() -> None:
    undisturbed = Guest(LOOP).engine
    undisturbed.run(5000)
    registers, instructions = [*undisturbed.regs, undisturbed.rip], undisturbed.instructions
    guest = Guest(LOOP)
    guest.debug.begin(5000)
    guest.debug.set_breakpoints({CODE, CODE + 2})
    while not guest.debug.over:
        guest.debug.run()
        if not guest.debug.over:
            guest.debug.step()
    assert [*guest.engine.regs, guest.engine.rip] == registers
    assert guest.engine.instructions == instructions == 5000


# Watchpoints.


@pytest.mark.parametrize(
    ("access", "stops"),
    [(Access.WRITE, [6]), (Access.READ, [12]), (Access.READ | Access.WRITE, [6, 12])],
)
def test_a_watchpoint_stops_behind_the_access(access: Access, stops: list[int]) -> None:
    guest = Guest(INC_EAX + STORE + LOAD + LOOP)
    guest.debug.set_watchpoints([Watchpoint(DATA + 1, 2, access)])
    seen = []
    while not guest.debug.over:
        if halt := guest.debug.run():
            assert halt == Halt(Cause.WATCHPOINT, DATA + 1, access)
            seen.append(guest.at)
    assert seen == stops
    assert guest.engine.instructions == END


def test_a_store_beside_what_is_watched_is_none() -> None:
    guest = Guest(STORE + LOOP)
    guest.debug.set_watchpoints([Watchpoint(DATA + 4, 4, Access.WRITE)])
    assert guest.debug.run() is None


def test_a_watchpoint_on_a_stepped_instruction_is_told() -> None:
    guest = Guest(STORE + INC_EAX)
    guest.debug.set_watchpoints([Watchpoint(DATA, 4, Access.WRITE)])
    assert guest.debug.step() == Halt(Cause.WATCHPOINT, DATA, Access.WRITE)
    assert guest.at == 5


def test_a_breakpoint_at_a_watched_access_is_hit_once() -> None:
    guest = Guest(INC_EAX + STORE + LOOP)
    guest.debug.set_breakpoints({CODE + 1})
    guest.debug.set_watchpoints([Watchpoint(DATA, 4, Access.WRITE)])
    assert guest.debug.run() == BREAKPOINT
    assert guest.debug.step() == Halt(Cause.WATCHPOINT, DATA, Access.WRITE)
    assert guest.debug.run() is None


def test_too_many_watchpoints_are_refused() -> None:
    guest = Guest(STORE + LOOP)
    watches = [Watchpoint(DATA + 4 * i, 4, Access.WRITE) for i in range(17)]
    assert not guest.debug.set_watchpoints(watches)
    assert guest.debug.run() is None


# The guest's own debug registers.


def arm_own(guest: Guest, vaddr: int, dr7: int) -> None:
    guest.engine.set_debug_register(0, vaddr)
    guest.engine.set_debug_register(7, dr7)


def test_the_guests_breakpoint_is_its_own() -> None:
    guest = Guest(INC_EAX * 3 + LOOP, handler=HLT)
    arm_own(guest, CODE + 2, 0x402)
    guest.debug.set_breakpoints({CODE + 1})
    assert guest.debug.run() == BREAKPOINT
    assert guest.at == 1
    guest.debug.step()
    assert guest.debug.run() is None
    assert (guest.engine.rip, guest.engine.debug_register(6) & 0xF) == (HANDLER + 1, 1)


def test_the_debugger_comes_before_the_guests_breakpoint_at_the_same_place() -> None:
    guest = Guest(INC_EAX * 3 + LOOP, handler=HLT)
    arm_own(guest, CODE + 2, 0x402)
    guest.debug.set_breakpoints({CODE + 2})
    assert guest.debug.run() == BREAKPOINT
    assert (guest.at, guest.engine.debug_register(6) & 0xF) == (2, 0)
    guest.debug.step()
    assert (guest.engine.rip, guest.engine.debug_register(6) & 0xF) == (HANDLER, 1)


def test_both_watch_the_same_data() -> None:
    guest = Guest(INC_EAX + STORE + LOOP, handler=HLT)
    arm_own(guest, DATA, 0xD0402)
    guest.debug.set_watchpoints([Watchpoint(DATA, 4, Access.WRITE)])
    assert guest.debug.run() == Halt(Cause.WATCHPOINT, DATA, Access.WRITE)
    assert (guest.engine.rip, guest.engine.debug_register(6) & 0xF) == (HANDLER, 1)
    assert guest.memory.read_uint(Maddr(guest.engine.regs[Reg.RSP]), 4) == CODE + 6
    assert guest.debug.run() is None


# Faults and requests.


def test_a_fault_that_is_caught_is_seen_before_the_guest_has_it() -> None:
    guest = Guest(INC_EAX + UD2, handler=HLT)
    guest.debug.catch_faults({UNDEFINED})
    assert guest.debug.run() == Halt(Cause.FAULT, vector=UNDEFINED)
    assert (guest.at, guest.engine.regs[Reg.RSP], guest.engine.instructions) == (1, STACK, 1)
    assert guest.debug.run() is None
    assert guest.engine.rip == HANDLER + 1


def test_a_fault_of_an_interrupts_delivery_is_caught_at_its_instruction() -> None:
    guest = Guest(INC_EAX + INT_WITHOUT_GATE, HLT)
    guest.debug.catch_faults({PROTECTION})
    assert guest.debug.run() == Halt(Cause.FAULT, vector=PROTECTION)
    assert (guest.at, guest.engine.regs[Reg.RSP], guest.engine.instructions) == (1, STACK, 1)
    assert guest.debug.run() is None
    assert guest.engine.rip == HANDLER + 1
    assert guest.memory.read_uint(Maddr(guest.engine.regs[Reg.RSP]), 4) == 0x50 * 8 + 2
    assert guest.memory.read_uint(Maddr(guest.engine.regs[Reg.RSP] + 4), 4) == CODE + 1


def test_icebp_is_not_caught_as_an_undefined_instruction() -> None:
    guest = Guest(ICEBP, HLT)
    guest.debug.catch_faults({UNDEFINED})
    assert guest.debug.run() is None
    assert guest.engine.rip == HANDLER + 1


def test_a_request_stops_behind_the_hypercall() -> None:
    guest = Guest(VMCALL + LOOP)
    guest.handler.on_vmcall = guest.debug.request_halt
    assert guest.debug.run() is None
    assert (guest.at, guest.debug.over) == (3, False)
