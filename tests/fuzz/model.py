"""Worlds without an engine: the hypervisor alone, with a FakeCpu that says what a guest did.

The guest is the fuzzer itself. It sets the registers, and enters the model where the CPU would
enter it: by SYSCALL, `int 0x82`, VMCALL, or a fault. Its stores go by its own page tables.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import elfwriter
from fakes import FakeCpu, FakeNativeCpu, connect_backends, enter_long_mode, make_pvh_current
from fuzz.furnish import furnish_pv, furnish_pvh
from fuzz.world import MASK64, STACK_BYTES, SWITCH, CountingTable, Ended, Step
from xenemu.boot import ENTRIES
from xenemu.dom0.console import Console
from xenemu.errors import XenError
from xenemu.hv import scheduler
from xenemu.hv.building import DomainConfig, give_rings
from xenemu.hv.clock import refresh_time
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.personality import Personality
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.hv.timers import fire_due, join
from xenemu.image import load
from xenemu.pv.exits import HYPERCALL_VECTOR
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.personality import CODE32, DATA32, PV32, PV64
from xenemu.pv.state import pv
from xenemu.pv.traps import CS64, SS64
from xenemu.pvh.paging import guest_physical
from xenemu.pvh.personality import PVH
from xenemu.x86 import flags, segment
from xenemu.x86.paging import ADDR, PAGE_SHIFT, PFEC_P, PFEC_U, PFEC_W, PSE, RW, US, Mfn, P, walk

MIB = 1 << 20
IMAGE_AT = 0x10000  # in the guest's memory
IMAGE_PAGES = 48  # code, stack, and the arena
MAX_AGAIN = 8  # times that a preempted hypercall is issued again in one step
MAX_WAITS = 100
RINGS = 250  # the frame of a PVH guest's console; its xenstore's is after it
CALL_LENGTHS = {8: b"\x0f\x05", 4: b"\xcd\x82"}


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


class PvWorld(ModelWorld):
    """A PV guest of either width, of 4 MiB."""

    virt_base: int
    call_length = 2

    def _build(self) -> Current:
        width = 8 if self.environment == "pv64" else 4
        self.code = self.virt_base + IMAGE_AT
        self.stack = self.code + 0x3000
        self.arena = self.stack + 0x1000
        self.handler = self.code + 0x100
        self.entry = self.code
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel"
            path.write_bytes(_pv_kernel(self.virt_base, self.code, width))
            config = DomainConfig(4 * MIB, vcpus=self.vcpus + 1)
            domain = ENTRIES[self.environment].build(load(path), config)
            connect_backends(domain, config)
        current = Current(
            domain,
            domain.vcpus[0],
            FakeCpu(),
            self.personality.translate,
        )
        current.cpu.cr3 = self.personality.address_space(current) << PAGE_SHIFT
        self.personality.start(current)
        return current

    def _furnish(self) -> None:
        furnish_pv(self)

    def _reset_cpu(self) -> None:
        """Be in the kernel again, on its stack."""
        state, cpu, wide = pv(self.current), self.current.cpu, self.environment == "pv64"
        if not wide:
            state.kernel_mode = True
            for which in (Seg.DS, Seg.ES, Seg.FS, Seg.GS):
                cpu.set_segment(which, DATA32)
        elif not state.kernel_mode:
            toggle_guest_mode(self.current)
        cpu.set_segment(Seg.SS, SS64 if wide else DATA32)
        cpu.set_segment(Seg.CS, CS64 if wide else CODE32)
        cpu.rip, cpu.regs[Reg.RSP] = self.code, self._stack
        cpu.rflags = flags.IF | flags.FIXED

    def _enter_user_mode(self) -> bool:
        """Whether there is a user mode to enter."""
        state, cpu = pv(self.current), self.current.cpu
        if self.environment == "pv64":
            if not state.user_root:
                return False
            toggle_guest_mode(self.current)
            return True
        code = cpu.segment(Seg.CS)
        ring3 = code.attributes | segment.DPL
        cpu.set_segment(Seg.CS, type(code)(code.selector | 3, code.base, code.limit, ring3))
        state.kernel_mode = False
        return True

    def _enter(self, step: Step, code: bytes) -> None:
        """Set the registers, put code where RIP is, and change to user mode if asked."""
        self._store_quietly(self.code, code)
        self._set_registers(step)
        if step.get("user"):
            self._enter_user_mode()

    def _call(self, step: Step) -> None:
        cpu, wide = self.current.cpu, self.environment == "pv64"
        order = (Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10, Reg.R8, Reg.R9)
        if not wide:
            order = (Reg.RBX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI, Reg.RBP)
        self._enter(step, CALL_LENGTHS[8 if wide else 4])
        cpu.regs[Reg.RAX] = step["number"]
        for register, value in zip(order, step["args"], strict=False):
            cpu.regs[register] = value & MASK64
        self._issue(bool(step.get("leave")))

    def _enter_hypercall(self) -> None:
        if self.environment == "pv64":
            self.exits.syscall()
        else:
            self.exits.software_interrupt(HYPERCALL_VECTOR, self.call_length)

    def _walk(self, vaddr: int) -> int:
        """The L1 entry for an address, with RW and US where all levels have them; 0: none."""
        current = self.current
        levels = current.domain.frames.rules.root_type
        root = Mfn(current.cpu.cr3 >> PAGE_SHIFT)
        steps = walk(current.domain.memory.words, root, vaddr & (1 << 48) - 1, levels)
        if not steps or steps[-1].level != 1 or not steps[-1].entry & P:
            return 0
        entry = steps[-1].entry
        for one in steps[:-1]:
            if one.level != 3 or levels != 3:
                entry &= one.entry | ~(RW | US)
        return entry

    def _writable(self, vaddr: int) -> int | None:
        entry = self._walk(vaddr)
        if entry & RW and (entry & ADDR) >> PAGE_SHIFT < self.current.domain.memory.nr_frames:
            return entry & ADDR | vaddr & 0xFFF
        return None

    def _store(self, step: Step) -> None:
        """A store by an instruction, with the fault that it meets."""
        cpu = self.current.cpu
        code, vaddr = bytes.fromhex(step["code"]), step["address"]
        self._enter(step, code)
        cpu.regs[Reg.RDI] = vaddr
        maddr = self._writable(vaddr)
        user = bool(step.get("user"))
        if maddr is not None and not user:
            self._store_quietly(vaddr, step["value"].to_bytes(8, "little")[: step["size"]])
            return
        cpu.regs[Reg.RAX] = step["value"]
        cpu.cr2 = vaddr
        present = PFEC_P if self._walk(vaddr) else 0
        # To the CPU, a 64-bit kernel is in ring 3, too.
        ring3 = PFEC_U if user or self.environment == "pv64" else 0
        self.exits.exception(flags.PAGE_FAULT, PFEC_W | present | ring3)

    def _insn(self, step: Step) -> None:
        """A privileged or undefined instruction."""
        self._enter(step, bytes.fromhex(step["code"]))
        how = step["how"]
        if how == "gp":
            self.exits.exception(flags.GP, 0)
        elif how == "ud":
            self.exits.invalid_opcode()
        elif how == "int":
            self.current.cpu.rip += 2
            self.exits.software_interrupt(step["vector"], 2)
        elif how == "syscall":
            self.current.cpu.rip += 2
            self.exits.syscall()
        elif how == "sysenter":
            self.current.cpu.rip += 2
            self.exits.sysenter()
        else:
            self.exits.cpuid()

    def _trap(self, step: Step) -> None:
        self._enter(step, b"\x90")
        self.current.cpu.cr2 = step.get("cr2", 0)
        self.exits.exception(step["vector"], step["error"])


class Pv64World(PvWorld):
    environment, personality, virt_base = "pv64", PV64, 0xFFFF_FFFF_8000_0000


class Pv32World(PvWorld):
    environment, personality, virt_base = "pv32", PV32, 0xC000_0000


def _pv_kernel(virt_base: int, entry: int, width: int) -> bytes:
    note, image = elfwriter.note, elfwriter.Phdr
    notes = (
        note(6, "fuzz"), note(5, "xen-3.0"), note(8, "generic"), note(9, "yes"),
        note(3, virt_base, width=width), note(4, 0, width=width), note(1, entry, width=width),
    )  # fmt: skip
    body = image(b"\x90" * 64, paddr=IMAGE_AT, vaddr=entry, memsz=IMAGE_PAGES << PAGE_SHIFT)
    described = image(b"".join(notes), elfwriter.PT_NOTE, paddr=0, vaddr=0)
    return elfwriter.elf((body, described), bits=8 * width, entry=entry)


class PvhWorld(ModelWorld):
    """A PVH guest, flat in 32 bits, or in 64 bits on tables that map all as it is."""

    personality = PVH
    call_length = 3

    def _build(self) -> Current:
        current = make_pvh_current(pages=240, vcpus=self.vcpus + 1)
        current.domain.frames.add_to_heap(range(7, 16))
        current.domain.pages.max_pages += 8
        current.domain.console.mfn, current.domain.xenstore.mfn = Mfn(RINGS), Mfn(RINGS + 1)
        give_rings(current.domain)
        connect_backends(current.domain, DomainConfig(MIB, vcpus=self.vcpus + 1))
        self.code, self.stack, self.arena = 0x20000, 0x30000, 0x31000
        self.handler = self.entry = self.code
        if self.environment == "pvh64":
            words, root = current.domain.memory.words, 0xE0  # after the arena
            words[root << 9] = root + 1 << 12 | P | RW | US
            words[root + 1 << 9] = root + 2 << 12 | P | RW | US
            for n in range(512):
                words[root + 2 << 9 | n] = n << 21 | PSE | P | RW | US
            enter_long_mode(current, root << 12)
        cpu = current.cpu
        assert isinstance(cpu, FakeNativeCpu)
        self._segments = dict(cpu.segments)
        self._mode = cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer
        return current

    def _furnish(self) -> None:
        furnish_pvh(self)

    def _reset_cpu(self) -> None:
        cpu = self.current.cpu
        assert isinstance(cpu, FakeNativeCpu)
        cpu.segments.update(self._segments)
        cpu.rip, cpu.regs[Reg.RSP], cpu.rflags = self.code, self._stack, 0x202
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = self._mode

    def _call(self, step: Step) -> None:
        cpu, wide = self.current.cpu, self.environment == "pvh64"
        order = (Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10, Reg.R8, Reg.R9)
        if not wide:
            order = (Reg.RBX, Reg.RCX, Reg.RDX, Reg.RSI, Reg.RDI, Reg.RBP)
        self._set_registers(step)
        cpu.regs[Reg.RAX] = step["number"]
        for register, value in zip(order, step["args"], strict=False):
            cpu.regs[register] = value & MASK64
        self._issue(bool(step.get("leave")))

    def _enter_hypercall(self) -> None:
        self.exits.vmcall()

    def _writable(self, vaddr: int) -> int | None:
        try:
            paddr = guest_physical(self.current, vaddr, True)
        except XenError:
            return None
        p2m = self.current.domain.p2m
        assert p2m is not None
        mfn = p2m.get(paddr >> PAGE_SHIFT)
        return None if mfn is None else mfn << PAGE_SHIFT | paddr & 0xFFF

    def _store(self, step: Step) -> None:
        self._store_quietly(step["address"], step["value"].to_bytes(8, "little")[: step["size"]])

    def _msr(self, step: Step) -> None:
        if "value" in step:
            self.exits.write_msr(step["number"], step["value"])
        else:
            self.exits.read_msr(step["number"])

    def _apic(self, step: Step) -> None:
        if "value" in step:
            self.exits.write_apic(step["offset"], step["size"], step["value"])
        else:
            self.exits.read_apic(step["offset"], step["size"])

    def _trap(self, step: Step) -> None:
        """An exception is the CPU's business; what the model sees of it is an interrupt taken."""
        cpu = self.current.cpu
        assert isinstance(cpu, FakeNativeCpu)
        cpu.take_interrupt()

    def _insn(self, step: Step) -> None:
        self._set_registers(step)
        if step["how"] == "cpuid":
            self.exits.cpuid()
        elif step["how"] == "halt":
            cpu = self.current.cpu
            assert isinstance(cpu, FakeNativeCpu)
            cpu.halted = True
            self.exits.stopped()
            cpu.halted = False
        else:
            port, size = step["port"], step["size"]
            self.exits.write_port(port, size, step["value"])
            self.exits.read_port(port, size)


class Pvh64World(PvhWorld):
    environment = "pvh64"


class Pvh32World(PvhWorld):
    environment = "pvh32"


WORLDS: dict[str, type[ModelWorld]] = {
    world.environment: world for world in (Pv64World, Pv32World, Pvh64World, Pvh32World)
}
