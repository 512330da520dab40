"""Worlds through the real engine: guests/fuzz executes each step, in its own ring.

The guest asks for a step by hypercall 63, which the table here has beside the real ones. The driver
then sets the guest's registers and lets it go on, at a hypercall instruction or at the instruction
of the step. When the guest asks again, the step is done. In between, everything is the machine's
own run loop.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fuzz.furnish import furnish_pv, furnish_pvh
from fuzz.world import MASK64, STACK_BYTES, SWITCH, CountingTable, Ended, Step
from guests.build import ENVIRONMENTS, build, guests
from xenemu import image
from xenemu.errors import XenError
from xenemu.hv import scheduler
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.memory import Memory
from xenemu.image.symbols import load_symbols
from xenemu.machine import DomainConfig, Machine
from xenemu.outcome import End, Outcome
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.state import PvVcpu
from xenemu.x86 import segment

FETCH = 63
MIB = 1 << 20
MEMORY = {"pv": 8 * MIB, "pvh": 8 * MIB}
SLICE_NS = 10_000  # the guest is lost if it does not ask again within some of these
MAX_SLICES = 6
CODE_BYTES = 16
NOP = b"\x90"
ORDER64 = (Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10, Reg.R8, Reg.R9)
ORDER32 = (Reg.RBX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI, Reg.RBP)
APIC = 0xFEE00000


class Driver(CountingTable):
    """The hypercalls, and the one that asks for a step."""

    def __init__(self, world: EngineWorld) -> None:
        super().__init__()
        self._world = world

    def call(self, current: Current, number: int, registers: Sequence[int]) -> int:
        if number == FETCH:
            return self._world.fetch()
        try:
            return super().call(current, number, registers)
        except Continue:
            self._world.preempted()
            raise


class EngineWorld:
    """A guest in one of the four environments; also its own terminal, for `Machine.run`."""

    arena_pages = 24
    hang_s = 3.0  # of a step, with the time that the guest takes
    interactive = False

    def __init__(self, environment: str, vcpus: int = 1) -> None:
        self.environment, self.vcpus = environment, vcpus
        self.growth_limit = vcpus * 64 * MIB  # within 40,000 steps it levels off, far below
        self._turn = 0  # the vcpu that does the steps, while it can run
        self._leaves = False  # whether another one does, if the call is preempted
        # A PVH guest's machine has a million frames, most of them nobody's.
        self.audit_every = 1000 if environment.startswith("pvh") else 100
        self.table = Driver(self)
        self.windows: dict[str, int] = {}
        self._pending: Step | None = None
        self._started = self._asked = False
        self._slices = 0
        self._input = b""
        kind = ENVIRONMENTS[environment]
        with tempfile.TemporaryDirectory() as folder:
            loaded = image.load(build(guests()["fuzz"], kind, Path(folder) / "fuzz"))
            symbols = load_symbols(loaded.elf, loaded.segments)
            self._addresses = {
                name: symbols.address(f"fuzz_{name}") or 0
                for name in ("code", "call", "again", "arena", "stack_top", "vcpu")
            }
        self.code, self.handler = self._addresses["code"], self._addresses["again"]
        self.arena, self.stack = self._addresses["arena"], self._addresses["stack_top"]
        self.entry = self._addresses["vcpu"]
        several = vcpus + 1 if vcpus > 1 else 1  # one more, that nobody has started
        config = DomainConfig(MEMORY[kind.mode], vcpus=several)
        self.machine = Machine(loaded, config, kind.mode)
        self.machine.slice_ns = SLICE_NS
        self.current = self.machine.current
        self.current.table = self.table
        self._run()
        (furnish_pv if kind.mode == "pv" else furnish_pvh)(self)
        self._snapshot = self.machine.snapshot()
        self.restart()  # so that the first life begins as all others do

    # ---- World ----

    def restart(self) -> None:
        """Make everything as it was when the guest had finished its preparations."""
        self.machine.restore(self._snapshot)
        self.table.work = 0
        self._forget()
        self._pending, self._asked, self._input = None, False, b""
        self._turn, self._leaves = 0, False

    def _forget(self) -> None:
        """Let nothing be left of an earlier life's translations: each life finds the same."""
        engine, memory = self.machine.engine, self.current.domain.memory
        engine._shim.set_breakpoints(None, 0)  # which drops all of them
        memory.code[:] = engine._written[:] = bytes(memory.nr_frames)
        memory.stale_code.clear()

    def audit(self) -> list[str]:
        """What the hypervisor has wrong."""
        return self.machine.personality.audit(self.current.domain)

    def perform(self, step: Step) -> None:
        """Let the guest do a step, until it asks for the next."""
        if step["kind"] == "trap":  # only the CPU raises those here
            return
        self._leaves = bool(step.get("leave"))
        if step["kind"] == SWITCH:
            self._turn = step["vcpu"] % len(self.current.domain.vcpus)
            self._pending = None
        else:
            self._pending = step
        self._run()

    def _run(self) -> None:
        self._asked, self._slices = False, 0
        outcome = self.machine.run(self)
        if not self._asked:
            raise Ended(f"{outcome.end.value}: {outcome.reason}")

    def fetch(self) -> int:
        """The guest asks what to do; its RAX, or Continue if there is nothing to be done."""
        current = self.current
        if not self._started:
            self._started = True
            return 0
        current.cpu.regs[Reg.RSP] = self.stack - current.vcpu.vcpu_id * STACK_BYTES
        step, self._pending = self._pending, None
        if step is None:
            self._asked = True
            self.current.cpu.stop()
            raise Continue
        return self._begin(step)

    def preempted(self) -> None:
        """The current vcpu's call is to go on later: another vcpu's turn, if the step says so."""
        domain, vcpu = self.current.domain, self.current.vcpu
        other = scheduler.next_vcpu(domain, vcpu)
        if self._leaves and other is not None:
            self._leaves, self._turn = False, other.vcpu_id
            self.current.cpu.stop()

    # ---- Terminal ----

    def write(self, data: bytes) -> None:
        """Drop what the guest printed."""

    def read(
        self,
        room: int,
        wait_ns: int | None,
        reading: Sequence[int] = (),
        writing: Sequence[int] = (),
    ) -> bytes:
        """What the step types."""
        typed, self._input = self._input[:room], self._input[room:]
        return typed

    due_ns = None

    @property
    def exhausted(self) -> bool:
        """No more input can come."""
        return not self._input

    def leaves(self) -> bool:
        return False

    def check(self) -> Outcome | None:
        """Stop when the guest has asked for the next step, or will never."""
        self._slices += 1
        if self._asked:
            return Outcome(End.STOPPED, "the guest asks for a step")
        if self._slices > MAX_SLICES * self.vcpus:
            return Outcome(End.TIMEOUT, "the guest is lost")
        chosen = self.current.domain.vcpus[self._turn]
        self.machine.let_run = frozenset({self._turn}) if chosen.runnable else None
        return None

    # ---- beginning a step ----

    def _begin(self, step: Step) -> int:
        """Make the guest do a step; return its RAX."""
        cpu, wide = self.current.cpu, self.environment.endswith("64")
        for vaddr, data in step.get("data", ()):
            self._put(vaddr, bytes.fromhex(data))
        mask = MASK64 if wide else 0xFFFFFFFF
        for register, value in enumerate(step.get("regs", ())):
            if register != Reg.RSP:
                cpu.regs[register] = value & mask
        if "rsp" in step:
            cpu.regs[Reg.RSP] = step["rsp"] & mask
        result = int(getattr(self, "_" + step["kind"])(step, wide))
        if step.get("user"):
            self._enter_user_mode(wide)
        return result

    def _call(self, step: Step, wide: bool) -> int:
        cpu = self.current.cpu
        mask = MASK64 if wide else 0xFFFFFFFF
        for register, value in zip(ORDER64 if wide else ORDER32, step["args"], strict=False):
            cpu.regs[register] = value & mask
        cpu.rip = self._addresses["call"]
        number: int = step["number"]
        return number if number != FETCH else 0

    def _execute(self, code: bytes) -> None:
        self._put(self.code, code.ljust(CODE_BYTES, NOP))
        self.current.cpu.rip = self.code

    def _store(self, step: Step, wide: bool) -> int:
        cpu = self.current.cpu
        cpu.regs[Reg.RDI] = step["address"]
        self._execute(bytes.fromhex(step["code"]))
        value: int = step["value"]
        return value

    def _insn(self, step: Step, wide: bool) -> int:
        code = bytes.fromhex(step["code"])
        if step["how"] == "halt":
            code = b"\xf4"
        elif step["how"] == "cpuid":
            code = b"\x0f\xa2"
        elif "port" in step:
            self.current.cpu.regs[Reg.RDX] = step["port"]
            code = b"\xee\xed"
        self._execute(code)
        return self.current.cpu.regs[Reg.RAX]

    def _msr(self, step: Step, wide: bool) -> int:
        regs = self.current.cpu.regs
        regs[Reg.RCX] = step["number"]
        value: int = step.get("value", 0)
        regs[Reg.RDX] = value >> 32
        self._execute(b"\x0f\x30" if "value" in step else b"\x0f\x32")
        return value & 0xFFFFFFFF

    def _apic(self, step: Step, wide: bool) -> int:
        self.current.cpu.regs[Reg.RDI] = APIC + step["offset"]
        self._execute(b"\x89\x07" if "value" in step else b"\x8b\x07")
        value: int = step.get("value", 0)
        return value

    def _time(self, step: Step, wide: bool) -> int:
        engine = self.machine.engine
        engine.skip_to(engine.now_ns + step["ns"])
        self._input += bytes.fromhex(step.get("input", ""))
        self._execute(NOP)
        return 0

    def _enter_user_mode(self, wide: bool) -> None:
        state, cpu = self.current.vcpu.arch, self.current.cpu
        if not isinstance(state, PvVcpu):
            return
        if wide:
            if state.user_root:
                toggle_guest_mode(self.current)
            return
        for which in (Seg.CS, Seg.SS):
            old = cpu.segment(which)
            ring3 = old.attributes | segment.DPL
            cpu.set_segment(which, Segment(old.selector | 3, old.base, old.limit, ring3))

    def _put(self, vaddr: int, data: bytes) -> None:
        """The guest's own store, where it can."""
        current, start = self.current, 0
        memory: Memory = current.domain.memory
        while start < len(data):
            at = (vaddr + start) & MASK64
            size = min(len(data) - start, 4096 - at % 4096)
            with suppress(XenError):
                memory.write(current.translate(current, at, True), data[start : start + size])
            start += size
