"""Two vcpus of a machine take turns: each does what it does alone, whatever it meets.

Theirs are the modes, the debug registers, the FPUs, the local APICs and the ways of being called
for events; turns.S has what they run. What happens to a vcpu happens while another runs, too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guests.build import Environment, Guest, build
from xenemu.cpu.context import Context
from xenemu.hv import shared_info, waking
from xenemu.hv.cpu import Seg
from xenemu.image import Image, load
from xenemu.machine import DomainConfig, Machine
from xenemu.pvh import lapic_glue
from xenemu.pvh.lapic import Lapic
from xenemu.pvh.state import StartState, pvh_domain, pvh_vcpu
from xenemu.x86.paging import Maddr

FOLDER = Path(__file__).parent / "turns"
CALLBACK, OF_APIC, VECTOR = 0xF3, 0xE3, 0x41
SIZE, WATCHED, VCPU_INFO = 0x4000, 64, 0x800  # of what a vcpu has for itself, and within
DR7 = 0x400
COUNTERS = ("rounds", "upcalls", "vectors", "debugs")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Image:
    environment = Environment("turns", ("-m64",), (), "pvh")
    guest = Guest(FOLDER, ("turns",), "16M", "", 0, 10)
    return load(build(guest, environment, tmp_path_factory.mktemp("turns") / "turns"))


@dataclass(frozen=True)
class Start:
    """How a vcpu begins, as far as hypothesis chooses it."""

    dr7: int
    flags: int
    control: int
    mxcsr: int
    numbers: tuple[float, ...]
    upcall_vector: int

    def packed(self, base: int) -> bytes:
        words = (base + WATCHED, self.dr7, self.flags, self.control, self.mxcsr)
        return struct.pack("<5I12x4d", *words, *self.numbers)


@dataclass(frozen=True)
class Step:
    """A vcpu's turn of so many instructions, after something has happened to it."""

    vcpu_id: int
    instructions: int
    happens: str


@dataclass(frozen=True)
class End:
    """Where a vcpu has come to."""

    registers: Context
    lapic: Lapic
    memory: bytes
    blocked: bool

    def counted(self) -> dict[str, int]:
        return dict(zip(COUNTERS, struct.unpack_from("<4I", self.memory, WATCHED), strict=True))


class Host:
    """A machine of two vcpus, of which a test says who runs."""

    def __init__(self, image: Image, starts: tuple[Start, Start]) -> None:
        self.machine = machine = Machine(image, DomainConfig(16 << 20, vcpus=2), "pvh")
        machine.engine.set_prices({})  # an instruction is a nanosecond
        pvh_domain(machine.current).callback_vector = CALLBACK
        symbols = {name: image.symbols.address(name) for name in ("own", "wide", "narrow")}
        for vcpu, start in zip(machine.domain.vcpus, starts, strict=True):
            base = symbols["own"] + SIZE * vcpu.vcpu_id
            machine.domain.memory.write(Maddr(base), start.packed(base))
            vcpu.info = Maddr(base + VCPU_INFO)
            state = pvh_vcpu(vcpu)
            state.entry = StartState(symbols["wide" if vcpu.vcpu_id else "narrow"], base)
            state.upcall_vector = start.upcall_vector
            vcpu.online = vcpu.initialised = True
        machine.personality.start(machine.current)
        self.own = symbols["own"]

    def step(self, step: Step) -> None:
        machine, vcpu = self.machine, self.machine.domain.vcpus[step.vcpu_id]
        if step.happens == "event" and shared_info.mark_events_pending(machine.domain, vcpu):
            waking.wake(machine.domain, vcpu)
        if step.happens == "vector":
            lapic_glue.assert_vector(machine.current, vcpu, VECTOR)
        if not vcpu.runnable:
            return
        machine.switch_to(vcpu)
        machine.exits.deliver_events()
        machine.engine.run(machine.engine.now_ns + step.instructions)
        machine.exits.stopped()

    def run(self, steps: Iterable[Step]) -> dict[int, End]:
        for step in steps:
            self.step(step)
        return {vcpu_id: self._end(vcpu_id) for vcpu_id in {step.vcpu_id for step in steps}}

    def _end(self, vcpu_id: int) -> End:
        machine = self.machine
        vcpu = machine.domain.vcpus[vcpu_id]
        blocked = vcpu.blocked
        machine.switch_to(vcpu)
        machine.personality.leave(machine.current)
        registers = machine.engine.store()
        registers = replace(registers, interrupts=replace(registers.interrupts, requested=True))
        memory = machine.domain.memory.read(Maddr(self.own + SIZE * vcpu_id), SIZE)
        return End(registers, pvh_vcpu(vcpu).lapic, bytes(memory), blocked)


BEGUN = [Step(vcpu_id, 100, "") for vcpu_id in (0, 1)]  # their APICs are enabled, and more


def joined(steps: Iterable[Step]) -> list[Step]:
    """The same, with turns in one between which nothing happens."""
    found: list[Step] = []
    for step in steps:
        if found and not step.happens:
            found[-1] = replace(found[-1], instructions=found[-1].instructions + step.instructions)
        else:
            found.append(step)
    return found


starts = st.builds(
    Start,
    st.sampled_from([DR7, DR7 | 2 | 0xD << 16, DR7 | 2 | 0xF << 16]),
    st.sampled_from([2, 0x403, 0x8D7]),
    st.sampled_from([0x7F | rounding << 10 | precision << 8 for rounding in range(4)
                     for precision in (0, 2, 3)]),
    st.sampled_from([0x1F80 | rounding << 13 for rounding in range(4)]),
    st.tuples(*[st.floats(0.1, 10.0)] * 4),
    st.sampled_from([0, OF_APIC]),
)  # fmt: skip
steps = st.builds(
    Step, st.integers(0, 1), st.integers(1, 60), st.sampled_from(["", "", "event", "vector"])
)


@settings(max_examples=40)
@given(narrow=starts, wide=starts, turns=st.lists(steps, max_size=50))
def test_vcpus_that_take_turns_do_what_each_does_alone(kernel, narrow, wide, turns) -> None:
    turns = BEGUN + turns
    together = Host(kernel, (narrow, wide)).run(turns)
    for vcpu_id, end in together.items():
        alone = Host(kernel, (narrow, wide)).run(
            joined(step for step in turns if step.vcpu_id == vcpu_id)
        )
        assert end == alone[vcpu_id]


def test_all_that_can_happen_has_happened(kernel) -> None:
    """Else the property would say little."""
    watched = DR7 | 2 | 0xD << 16
    numbers = (1.0, 2.0, 3.0, 4.0)
    pair = (
        Start(watched, 2, 0x37F, 0x1F80, numbers, 0),
        Start(watched, 3, 0x27F, 0x3F80, numbers, OF_APIC),
    )
    turns = [
        Step(n % 2, 13, ("", "event", "event", "vector", "vector", "")[n % 6]) for n in range(400)
    ]
    ends = Host(kernel, pair).run(turns)
    for end in ends.values():
        assert all(count > 10 for count in end.counted().values()), end.counted()
    long_mode = [bool(ends[which].registers.efer >> 10 & 1) for which in (0, 1)]
    assert long_mode == [False, True]
    assert ends[0].registers.segments[Seg.CS] != ends[1].registers.segments[Seg.CS]
