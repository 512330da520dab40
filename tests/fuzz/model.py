"""Worlds without an engine: the hypervisor alone, with a FakeCpu that says what a guest did.

`model_pv` and `model_pvh` have the kinds of guest.

The guest is the fuzzer itself. It sets the registers, and enters the model where the CPU would
enter it: by SYSCALL, `int 0x82`, VMCALL, or a fault. Its stores go by its own page tables.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from fuzz.world import MASK64, STACK_BYTES, SWITCH, CountingTable, Ended, Step
from xenemu.dom0.console import Console
from xenemu.hv import scheduler
from xenemu.hv.clock import refresh_time
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.personality import Personality
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.hv.timers import fire_due, join

MAX_AGAIN = 8  # times that a preempted hypercall is issued again in one step
MAX_WAITS = 100


class ModelWorld:
    """What the environments share: registers, time, and going back to the start."""

    environment: str
    personality: Personality
    arena_pages = 24
    hang_s = 1.0
    call_length: int  # of the instruction
    audit_every = 100
    growth_limit = 64 << 20

    def __init__(self, vcpus: int = 1) -> None:
        self.vcpus = vcpus
        self._saved: dict[int, dict[str, Any]] = {}  # the CPU's state, of vcpus that have had it
        self._unfinished: set[int] = set()  # vcpus whose hypercall was preempted, and left
        self.table = CountingTable()
        self.windows: dict[str, int] = {}
        self.crashes: Counter[str] = Counter()
        self.current = self._build()
        self.current.table = self.table
        self.exits: Any = self.personality.exits(self.current)
        self._untouched = _state(type(self.current.cpu)())
        self._furnish()
        self._snapshot = DomainSnapshot.of(self.current.domain)
        self._cpu = _state(self.current.cpu)

    def _build(self) -> Current:
        raise NotImplementedError

    def _furnish(self) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        """Make everything as it was at first."""
        current = self.current
        current.domain = self._snapshot.restore(current.domain)
        current.vcpu = current.domain.vcpus[0]
        self.table.work = 0
        self._saved.clear()
        self._unfinished.clear()
        _set_state(current.cpu, self._cpu)
        self.exits = self.personality.exits(current)

    def audit(self) -> list[str]:
        """What the hypervisor has wrong."""
        return self.personality.audit(self.current.domain)

    def perform(self, step: Step) -> None:
        """Do a step as the run loop would have the guest do it."""
        domain = self.current.domain
        if step["kind"] != SWITCH:
            self._reset_cpu()
        for vaddr, data in step.get("data", ()):
            self._store_quietly(vaddr, bytes.fromhex(data))
        getattr(self, "_" + step["kind"])(step)
        domain.memory.stale_code.clear()
        self._pass_time(0)
        for _ in range(MAX_WAITS):
            if self.current.vcpu.runnable:
                return
            if not self._give_turn():
                self._wait()
        raise Ended("waits, and timers do not wake it")

    def _pass_time(self, ns: int) -> None:
        """What the machine does between two slices of the guest."""
        current = self.current
        domain, cpu = current.domain, current.cpu
        cpu.now_ns += ns  # type: ignore[misc]
        fire_due(current, join(scheduler.TIMERS, self.personality.timers))
        for backend in domain.backends.values():
            backend.pump(domain)
        domain.output.clear()
        if domain.shutdown_code is not None:
            raise Ended(f"shut down for reason {domain.shutdown_code}")
        if current.vcpu.runnable:
            if current.vcpu.runstate is not RunState.RUNNING:
                scheduler.enter(current)
            refresh_time(current)
            self.exits.deliver_events()

    def _wait(self) -> None:
        current = self.current
        next_ns = current.domain.timers.next_ns()
        if next_ns is None or not any(vcpu.online for vcpu in current.domain.vcpus):
            raise Ended("waits for ever")
        self._pass_time(max(0, next_ns - current.cpu.now_ns))

    # ---- turns ----

    def _switch(self, step: Step) -> None:
        vcpus = self.current.domain.vcpus
        vcpu = vcpus[step["vcpu"] % len(vcpus)]
        if vcpu.runnable and vcpu is not self.current.vcpu:
            self._turn_to(vcpu)

    def _give_turn(self) -> bool:
        """Let another vcpu do the next steps, if one can."""
        vcpu = scheduler.next_vcpu(self.current.domain, self.current.vcpu)
        if vcpu is None or vcpu is self.current.vcpu:
            return False
        self._turn_to(vcpu)
        return True

    def _turn_to(self, vcpu: Vcpu) -> None:
        """Put a vcpu into the CPU as the machine does, and let it go on with what it had begun."""
        current, cpu = self.current, self.current.cpu
        current.domain.reschedule = False
        scheduler.leave(current)
        self.personality.leave(current)
        self._saved[current.vcpu.vcpu_id] = _state(cpu)
        current.vcpu, now_ns = vcpu, cpu.now_ns
        state = self._saved.pop(vcpu.vcpu_id, None)
        _set_state(cpu, (state or self._untouched) | {"now_ns": now_ns})
        if state is None:
            self.personality.start(current)
        self.personality.enter(current)
        self._pass_time(0)
        if vcpu.vcpu_id in self._unfinished:
            self._unfinished.remove(vcpu.vcpu_id)
            if cpu.rip == self.code:
                self._issue(leaves=False)

    def _issue(self, leaves: bool) -> None:
        """Make the hypercall that the registers ask for, again while it is preempted."""
        cpu = self.current.cpu
        for _ in range(MAX_AGAIN):
            cpu.rip = self.code + self.call_length
            self._enter_hypercall()
            if cpu.rip != self.code or not self.current.vcpu.runnable:
                return
            if leaves:
                self._unfinished.add(self.current.vcpu.vcpu_id)
                if self._give_turn():
                    return
                self._unfinished.remove(self.current.vcpu.vcpu_id)
            self._pass_time(0)
            if cpu.rip != self.code:  # an event came between
                return

    def _enter_hypercall(self) -> None:
        raise NotImplementedError

    @property
    def _stack(self) -> int:
        """Where the current vcpu's stack begins."""
        return self.stack - self.current.vcpu.vcpu_id * STACK_BYTES

    def _time(self, step: Step) -> None:
        typed = bytes.fromhex(step.get("input", ""))
        console = self.current.domain.backends["console"]
        assert isinstance(console, Console)
        console.feed(self.current.domain, typed)
        self._pass_time(step["ns"])

    def _set_registers(self, step: Step) -> None:
        mask = MASK64 if self.environment.endswith("64") else 0xFFFFFFFF
        for register, value in enumerate(step.get("regs", ())):
            if register != Reg.RSP:
                self.current.cpu.regs[register] = value & mask
        if "rsp" in step:
            self.current.cpu.regs[Reg.RSP] = step["rsp"] & mask

    def _store_quietly(self, vaddr: int, data: bytes) -> None:
        """The guest's own store, where it can."""
        start = 0
        while start < len(data):
            at = (vaddr + start) & MASK64
            size = min(len(data) - start, 4096 - at % 4096)
            maddr = self._writable(at)
            if maddr is not None:
                self.current.domain.memory.write(maddr, data[start : start + size])  # type: ignore[arg-type]
            start += size

    def _writable(self, vaddr: int) -> int | None:
        raise NotImplementedError

    def _reset_cpu(self) -> None:
        raise NotImplementedError


def _state(cpu: object) -> dict[str, Any]:
    """What a CPU is, with copies of its lists and dictionaries."""
    return {key: _copied(value) for key, value in vars(cpu).items()}


def _set_state(cpu: object, state: dict[str, Any]) -> None:
    vars(cpu).update({key: _copied(value) for key, value in state.items()})


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, list | dict) else value
