"""Looks at a run that is repeated, at any instruction: for who compares it with another.

A probe is in a process of its own, beside its machine. It notes where each turn of the guest began,
what the guest asked of the hypervisor and what it printed. Then it goes back, as often as it is
asked to, and tells what the machine was at certain instructions.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable
from dataclasses import field
from typing import Final

import capstone
import msgspec

from xenemu.console_text import PlainText
from xenemu.decode import call_name
from xenemu.errors import XenError
from xenemu.hv.calls import CallRecord
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current, Observer
from xenemu.hv.debug import RunEnded, WentBack
from xenemu.hv.dispatch import Hypercall
from xenemu.hv.observe import Watch
from xenemu.image import Image
from xenemu.kaslr import as_mapped
from xenemu.linux import Linux
from xenemu.machine import Machine
from xenemu.machine.snapshot import Snapshot
from xenemu.outcome import End, Outcome
from xenemu.peek import Pages, kernel_tables
from xenemu.records import dataclass
from xenemu.report import call_lines
from xenemu.x86.paging import PAGE_SIZE

KEPT: Final = 3  # snapshots, besides that of the start
LAST_CALLS: Final = 6
MAX_INSTRUCTION: Final = 15


class Turn(msgspec.Struct, array_like=True):
    """Where a vcpu began its turn; the last field is a checksum of its general registers."""

    turns: int
    instructions: int
    now_ns: int
    vcpu: int
    rip: int
    registers: int

    @property
    def place(self) -> tuple[int, ...]:
        """All but how many turns there were: idle time may pass in several."""
        return self.instructions, self.now_ns, self.vcpu, self.rip, self.registers


class Call(msgspec.Struct, array_like=True):
    """A hypercall."""

    instructions: int
    name: str
    args: tuple[int, ...]
    result: int | None


class Line(msgspec.Struct, array_like=True):
    """A line of the console, and when its end was printed."""

    instructions: int
    now_ns: int
    text: str


class Log(msgspec.Struct):
    """A whole run."""

    turns: list[Turn]
    calls: list[Call]
    lines: list[Line]
    end: str


class Sample(msgspec.Struct, array_like=True):
    """What the machine is at an instruction; the last fields are checksums.

    That of memory is 0 if nobody asked for it.
    """

    instructions: int
    now_ns: int
    vcpu: int
    rip: int
    registers: int
    memory: int


class View(msgspec.Struct):
    """A closer look at the machine: `pages` has a checksum of each frame, 4 bytes."""

    sample: Sample
    where: str
    code: str
    registers: dict[str, int]
    calls: list[str]
    pages: bytes


class Ask(msgspec.Struct, array_like=True):
    """A request to look at the machine: at `points`, of which none is before that many turns."""

    turns: int
    points: list[int]
    memory: bool = False
    closely: bool = False


Samples = list[Sample | None]  # None: the run ended before
Views = list[View | None]


class _Calls(Observer):
    def __init__(self, log: Log) -> None:
        self.log = log
        self.begun: list[Call] = []

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        call = Call(current.cpu.instructions, call_name(row, record), record.args, None)  # type: ignore[attr-defined]
        self.log.calls.append(call)
        self.begun.append(call)

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        if self.begun:
            self.begun.pop().result = record.result


class Listener:
    """A terminal for which nobody is there: what is printed becomes lines of a log."""

    interactive, exhausted, due_ns = False, True, None

    def __init__(self, machine: Machine, log: Log) -> None:
        self._machine, self._log = machine, log
        self._text, self._begun = PlainText(), ""

    def write(self, data: bytes) -> None:
        """Note what the guest printed."""
        engine = self._machine.engine
        *lines, self._begun = (self._begun + self._text.feed(data)).split("\n")
        self._log.lines += [Line(engine.instructions, engine.now_ns, line) for line in lines]

    def read(self, *_: object) -> bytes:
        """Nobody types."""
        return b""

    def leaves(self) -> bool:
        """Nobody leaves."""
        return False

    def check(self) -> Outcome | None:
        """Nobody stops the run."""
        return None


@dataclass
class Probe:
    """Implements `xenemu.hv.debug.Debugger`.

    `receive` gives the next request, or None if there is none any more; `send` takes an answer.
    """

    machine: Machine
    image: Image
    receive: Callable[[], Ask | None]
    send: Callable[[object], None]
    log: Log = field(default_factory=lambda: Log([], [], [], ""))

    def __post_init__(self) -> None:
        self._calls = _Calls(self.log)
        Watch.of(self.machine.current).add(self._calls)
        self._is_logging = True
        self._start: Snapshot | None = None
        self._near: dict[int, Snapshot] = {}  # by how many turns there were
        self._ask = Ask(0, [])
        self._found: list[Sample | View | None] = []

    # What the machine calls.

    def look(self) -> None:
        """Between two slices: take the snapshots that are gone back to."""
        if self._start is None:
            self._start = self.machine.snapshot()
        turns = self.machine.past.turns
        if not self._is_logging and turns == self._ask.turns and turns not in self._near:
            while len(self._near) >= KEPT:
                del self._near[max(self._near)]
            self._near[turns] = self.machine.snapshot()

    def run(self, deadline_ns: int) -> None:
        """Run a slice, with a look at each instruction that is asked for."""
        debug, engine = self.machine.debug, self.machine.engine
        turns = self.log.turns
        if self._is_logging and not (turns and turns[-1].turns == self.machine.past.turns):
            turns.append(self._turn())  # the last slice of a replay may come in pieces
        debug.begin(deadline_ns)
        while not debug.over:
            left = [point for point in self._ask.points if point > engine.instructions]
            while len(self._found) < len(self._ask.points) - len(left):
                self._found.append(self._view() if self._ask.closely else self._sample())
            if not self._is_logging and not left:
                self._answer()
            debug.run(left[0] - engine.instructions if left else None)

    def calls(self) -> bool:
        """Nobody has a word while the guest runs."""
        return False

    def idle(self) -> bool:
        """Nobody wakes a guest that waits for ever."""
        return False

    def ended(self, outcome: Outcome) -> None:
        """The run is over: now it is known, and it can be gone back."""
        if self._is_logging:
            self._is_logging = False
            Watch.of(self.machine.current).remove(self._calls)
            self.log.turns.append(self._turn())
            self.log.end = f"{outcome.end.value}: {outcome.reason}"
            self.send(self.log)
            self._await()
        self._answer()

    # Requests.

    def _answer(self) -> None:
        missing = len(self._ask.points) - len(self._found)
        self.send(self._found + [None] * missing)
        self._await()

    def _await(self) -> None:
        """Go back for the next request; `WentBack`, or `RunEnded` if there is none."""
        ask = self.receive()
        if ask is None:
            raise RunEnded(Outcome(End.STOPPED, "nobody asks any more"))
        self._ask, self._found = ask, []
        assert self._start is not None
        near = max((turns for turns in self._near if turns <= ask.turns), default=None)
        self.machine.restore(self._start if near is None else self._near[near])
        raise WentBack

    # What the machine is.

    def _turn(self) -> Turn:
        machine, engine = self.machine, self.machine.engine
        registers = zlib.crc32(array("Q", engine.regs).tobytes())
        vcpu_id = machine.current.vcpu.vcpu_id
        place = (engine.instructions, engine.now_ns, vcpu_id, engine.rip, registers)
        return Turn(machine.past.turns, *place)

    def _sample(self) -> Sample:
        machine, engine = self.machine, self.machine.engine
        registers = zlib.crc32(repr(engine.store()).encode())
        memory = zlib.crc32(machine.domain.memory.bytes) if self._ask.memory else 0
        vcpu_id = machine.current.vcpu.vcpu_id
        return Sample(engine.instructions, engine.now_ns, vcpu_id, engine.rip, registers, memory)

    def _view(self) -> View:
        current = self.machine.current
        image = as_mapped(current, self.image)
        code = Linux(current, image, Pages(current, kernel_tables(current, image))).code
        memory = current.domain.memory.bytes
        frames = range(0, len(memory), PAGE_SIZE)
        sums = array("I", (zlib.crc32(memory[at : at + PAGE_SIZE]) for at in frames))
        return View(
            self._sample(),
            code.format(current.cpu.rip),
            self._instruction(),
            self._registers(),
            call_lines(current, LAST_CALLS),
            sums.tobytes(),
        )

    def _instruction(self) -> str:
        """The instruction that is next, in words; empty if it cannot be read."""
        current, cpu = self.machine.current, self.machine.engine
        read, data = Pages(current), b""
        for size in range(MAX_INSTRUCTION, 0, -1):
            try:
                data = read(cpu.rip, size)
                break
            except XenError:  # the end of a page
                continue
        bits = capstone.CS_MODE_64 if cpu.store().code64 else capstone.CS_MODE_32
        reader = capstone.Cs(capstone.CS_ARCH_X86, bits)
        reader.syntax = capstone.CS_OPT_SYNTAX_ATT
        found = next(reader.disasm(data, cpu.rip, 1), None)
        return f"{found.mnemonic} {found.op_str}".strip() if found else ""

    def _registers(self) -> dict[str, int]:
        kept = self.machine.engine.store()
        found = {each.name.lower(): kept.general[each] for each in Reg}
        found |= {"rip": kept.rip, "rflags": kept.rflags}
        found |= {name: getattr(kept, name) for name in ("cr0", "cr2", "cr3", "cr4", "efer")}
        for each in Seg:
            found[each.name.lower()] = kept.segments[each].selector
            found[f"{each.name.lower()}.base"] = kept.segments[each].base
        found["fpu"] = zlib.crc32(kept.fpu)
        found |= {f"msr {number:#x}": value for number, value in kept.msrs.items()}
        return found
