"""Each vcpu keeps its TLB while another one is in the CPU, unless something made it out of date.

Vcpus here take turns on one engine, each with its own registers, on tables that map each page of
RAM at its own address. In each test, an entry of a table changes without a word to the engine. So
a vcpu that still has the old translation shows that it has kept its TLB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.cpu.test_engine import CODE, DATA, L1, L2, OTHER_ROOT, ROOT, UD2
from tests.cpu.test_engine import engine as fresh_engine
from xenemu.cpu.context import Context, Packed
from xenemu.cpu.debug_port import DebugPort
from xenemu.cpu.engine import Engine
from xenemu.hv.cpu import Reg
from xenemu.hv.debug import Access, Cause, Halt, Watchpoint
from xenemu.hv.frame_table import FrameTable, PGT_l1_page_table
from xenemu.x86.paging import RW, US, Maddr, P

engine = fresh_engine
LOAD = b"\x48\x8b\x07"  # mov (%rdi), %rax
STORE = b"\x48\x89\x37"  # mov %rsi, (%rdi)
CALL = b"\xff\xd7"  # call *%rdi
OLD, NEW = 40, 41  # frames that DATA is mapped to, in turn
MOV_1_RET, MOV_2_RET = b"\xb8\x01\0\0\0\xc3", b"\xb8\x02\0\0\0\xc3"  # mov $1, %eax; ret


class Vcpus:
    """Vcpus that take turns in an engine's CPU."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.memory = engine, engine._memory
        self.saved: dict[int, Packed] = {}
        self.fresh: Packed | Context = engine.save()
        self.current = 0
        self.memory.write_uint(Maddr(OLD << 12), 8, 0x0101)
        self.memory.write_uint(Maddr(NEW << 12), 8, 0x0202)
        self.map(OLD)

    def map(self, frame: int, flags: int = P | RW | US) -> None:
        """Let DATA lead to a frame, and tell nobody."""
        self.memory.words[(L1 << 9) + (DATA >> 12)] = frame << 12 | flags

    def switch(self, vcpu: int) -> None:
        if vcpu != self.current:
            self.saved[self.current] = self.engine.save()
            self.engine.switch(self.current, vcpu, self.saved.get(vcpu, self.fresh))
            self.current = vcpu

    def run(self, vcpu: int, code: bytes, rdi: int = DATA, rsi: int = 0) -> int:
        """Let a vcpu run code, up to its UD2; what is in RAX then."""
        self.switch(vcpu)
        at = CODE + 256 * (vcpu % 8)
        if self.memory.read(Maddr(at), len(code) + 2) != code + UD2:
            self.memory.write(Maddr(at), code + UD2)
        self.engine.rip, self.engine.regs[Reg.RDI], self.engine.regs[Reg.RSI] = at, rdi, rsi
        self.engine.run(self.engine.now_ns + 1000)
        return self.engine.regs[Reg.RAX]

    def load(self, vcpu: int) -> int:
        return self.run(vcpu, LOAD)


@pytest.fixture
def vcpus(engine: Engine) -> Vcpus:
    return Vcpus(engine)


def test_a_vcpu_keeps_its_translations(vcpus: Vcpus) -> None:
    assert [vcpus.load(vcpu) for vcpu in (0, 1)] == [0x0101] * 2
    fills = vcpus.engine.statistics()["fills"]
    vcpus.map(NEW)
    assert [vcpus.load(vcpu) for vcpu in (0, 1, 0)] == [0x0101] * 3
    assert vcpus.engine.statistics()["fills"] == fills


def test_a_new_vcpu_has_no_translations(vcpus: Vcpus) -> None:
    vcpus.load(0)
    vcpus.map(NEW)
    assert (vcpus.load(1), vcpus.load(0)) == (0x0202, 0x0101)


def test_all_vcpus_have_tlbs_of_their_own(vcpus: Vcpus) -> None:
    for vcpu in range(128):
        vcpus.map((OLD, NEW)[vcpu % 2])
        vcpus.load(vcpu)
    assert [vcpus.load(vcpu) for vcpu in range(128)] == [0x0101, 0x0202] * 64


# The hypervisor's own flushes reach every vcpu.
FLUSHES: dict[str, Callable[[Engine], None]] = {
    "all": lambda engine: engine.flush_tlb(),
    "a page": lambda engine: engine.flush_tlb_page(DATA),
    "all, and then the current vcpu's": lambda engine: (engine.flush_tlb(), set_cr3(engine))[0],
}


def set_cr3(engine: Engine) -> None:
    engine.cr3 = ROOT << 12


@pytest.mark.parametrize("flush", FLUSHES.values(), ids=[*FLUSHES])
@pytest.mark.parametrize("runs_on", [False, True])
def test_a_flush_reaches_vcpus_that_are_not_in_the_cpu(
    vcpus: Vcpus, flush: Callable[[Engine], None], runs_on: bool
) -> None:
    for vcpu in (1, 2, 0):
        vcpus.load(vcpu)
    vcpus.map(NEW)
    flush(vcpus.engine)
    if runs_on:  # or another one comes at once
        assert vcpus.load(0) == 0x0202
    assert [vcpus.load(vcpu) for vcpu in (1, 2, 0)] == [0x0202] * 3


def test_a_vcpu_that_loads_cr3_forgets_its_own_translations_alone(vcpus: Vcpus) -> None:
    for vcpu in (1, 0):
        vcpus.load(vcpu)
    vcpus.map(NEW)
    set_cr3(vcpus.engine)
    assert (vcpus.load(0), vcpus.load(1)) == (0x0202, 0x0101)


def test_a_vcpu_that_loaded_cr3_and_lost_the_cpu_has_forgotten(vcpus: Vcpus) -> None:
    vcpus.load(0)
    vcpus.map(NEW)
    set_cr3(vcpus.engine)
    vcpus.switch(1)
    assert vcpus.load(0) == 0x0202


def test_registers_that_are_loaded_come_without_translations(vcpus: Vcpus) -> None:
    vcpus.load(0)
    vcpus.map(NEW)
    vcpus.engine.load(vcpus.engine.save())
    assert vcpus.load(0) == 0x0202


def test_going_back_forgets_all_translations(vcpus: Vcpus) -> None:
    vcpus.load(0)
    kept = vcpus.engine.keep()
    vcpus.load(1)
    vcpus.map(NEW)
    vcpus.engine.put_back(kept)
    vcpus.current = 0
    assert [vcpus.load(vcpu) for vcpu in (0, 2, 1, 0)] == [0x0202] * 4


def test_vcpus_have_address_spaces_of_their_own(vcpus: Vcpus) -> None:
    vcpus.load(0)
    vcpus.switch(1)
    vcpus.engine.cr3 = OTHER_ROOT << 12  # where DATA leads to itself
    assert [vcpus.load(vcpu) for vcpu in (1, 0, 1)] == [0, 0x0101, 0]


# A page table must not be written through a translation from before.


def test_a_store_traps_once_the_page_is_a_table(vcpus: Vcpus) -> None:
    engine = vcpus.engine
    vcpus.run(1, STORE, rsi=1)
    vcpus.switch(0)
    vcpus.map(OLD, P | US)
    engine.flush_tlb()
    FrameTable(engine._memory).type[OLD] = PGT_l1_page_table
    exits = engine.handler.exits  # type: ignore[union-attr]
    exits.clear()
    vcpus.run(1, STORE, rsi=2)
    assert exits[0][:2] == ("#PF", 7)
    assert vcpus.memory.read_uint(Maddr(OLD << 12), 8) == 1


@pytest.mark.parametrize("where", [0, 1])
def test_an_audit_finds_a_table_that_a_tlb_lets_a_vcpu_write(vcpus: Vcpus, where: int) -> None:
    engine = vcpus.engine
    vcpus.run(where, STORE)
    vcpus.switch(0)
    assert engine.audit() == []
    FrameTable(engine._memory).type[OLD] = PGT_l1_page_table
    assert engine.audit() == ["a TLB lets the guest write to a page table"]
    vcpus.map(OLD, P | US)
    engine.flush_tlb()
    assert engine.audit() == []
    vcpus.load(0)
    vcpus.load(1)
    assert engine.audit() == []


def test_an_audit_looks_at_translations_that_another_one_has_displaced(vcpus: Vcpus) -> None:
    vcpus.memory.words[(L2 << 9) + 1] = L1 << 12 | P | RW | US  # the same pages again
    vcpus.run(1, STORE)
    vcpus.run(1, LOAD, rdi=DATA + (2 << 20))
    vcpus.switch(0)
    FrameTable(vcpus.memory).type[OLD] = PGT_l1_page_table
    assert vcpus.engine.audit()


# Code that changes.


def test_code_that_one_vcpu_runs_and_another_changes_is_translated_anew(vcpus: Vcpus) -> None:
    store = b"\x66\x89\x77\x01"  # mov %si, 1(%rdi): the number that the code returns
    vcpus.memory.write(Maddr(OLD << 12), MOV_1_RET)
    vcpus.run(1, store, rsi=1)  # a fast store, because nothing has been fetched from the page
    assert vcpus.run(0, CALL) == 1
    for number in (2, 3):
        vcpus.run(1, store, rsi=number)
        assert vcpus.run(0, CALL) == number


def test_code_that_the_hypervisor_changes_is_translated_anew_for_all(vcpus: Vcpus) -> None:
    vcpus.memory.write(Maddr(OLD << 12), MOV_1_RET)
    assert [vcpus.run(vcpu, CALL) for vcpu in (0, 1, 0, 1)] == [1] * 4
    vcpus.memory.write(Maddr(OLD << 12), MOV_2_RET)
    assert [vcpus.run(vcpu, CALL) for vcpu in (0, 1, 0, 1)] == [2] * 4


def test_an_address_leads_to_the_code_of_the_vcpus_own_address_space(vcpus: Vcpus) -> None:
    vcpus.memory.write(Maddr(OLD << 12), MOV_1_RET)
    vcpus.memory.write(Maddr(DATA), MOV_2_RET)
    vcpus.switch(1)
    vcpus.engine.cr3 = OTHER_ROOT << 12
    assert [vcpus.run(vcpu, CALL) for vcpu in (0, 1, 0, 1)] == [1, 2, 1, 2]


# A debugger.


def test_a_watchpoint_sees_accesses_of_all_vcpus(vcpus: Vcpus) -> None:
    debug = DebugPort(vcpus.engine)
    vcpus.run(1, STORE)
    vcpus.run(0, STORE)
    debug.set_watchpoints({Watchpoint(DATA, 8, Access.WRITE)})
    for vcpu in (0, 1):
        vcpus.run(vcpu, STORE)
        assert debug._take_halt() == Halt(Cause.WATCHPOINT, DATA, Access.WRITE)


def test_watchpoints_in_debug_registers_are_a_vcpus_own(vcpus: Vcpus) -> None:
    exits = vcpus.engine.handler.exits  # type: ignore[union-attr]
    vcpus.run(0, STORE)
    context = vcpus.engine.store()
    debug = (DATA, *context.debug[1:7], context.debug[7] | 1 | 0xD << 16)  # DR0: 8 bytes, stores
    vcpus.fresh = replace(context, debug=debug)
    seen = []
    for vcpu in (1, 0, 1):
        exits.clear()
        vcpus.run(vcpu, STORE)
        seen.append(exits[0][0])
    assert seen == ["#DB", "undefined", "#DB"]
