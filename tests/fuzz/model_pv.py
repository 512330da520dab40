"""PV guests without an engine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import elfwriter
from fakes import FakeCpu, connect_backends
from fuzz.furnish import furnish_pv
from fuzz.model import ModelWorld
from fuzz.world import MASK64, Step
from xenemu.entries import ENTRIES
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.current import Current
from xenemu.image import load
from xenemu.pv.exits import HYPERCALL_VECTOR
from xenemu.pv.paging import toggle_guest_mode
from xenemu.pv.personality import CODE32, DATA32, PV32, PV64
from xenemu.pv.state import pv
from xenemu.pv.traps import CS64, SS64
from xenemu.x86 import flags, segment
from xenemu.x86.paging import ADDR, PAGE_SHIFT, PFEC_P, PFEC_U, PFEC_W, RW, US, Mfn, P, walk

MIB = 1 << 20
IMAGE_AT = 0x10000  # in the guest's memory
IMAGE_PAGES = 48  # code, stack, and the arena
CALL_LENGTHS = {8: b"\x0f\x05", 4: b"\xcd\x82"}


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
