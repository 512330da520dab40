"""PVH guests without an engine."""

from __future__ import annotations

from fakes import FakeNativeCpu, connect_backends, enter_long_mode, make_pvh_current
from fuzz.furnish import furnish_pvh
from fuzz.model import ModelWorld
from fuzz.world import MASK64, Step
from xenemu.errors import XenError
from xenemu.hv.building import DomainConfig, give_rings
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.pvh.paging import guest_physical
from xenemu.pvh.personality import PVH
from xenemu.x86.paging import PAGE_SHIFT, PSE, RW, US, Mfn, P

MIB = 1 << 20
RINGS = 250  # the frame of a PVH guest's console; its xenstore's is after it


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
