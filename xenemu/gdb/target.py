"""What gdb sees of a machine: its vcpus as threads, their registers, and the guest's memory.

Looking changes nothing. Writing changes what the person says, unless that would break Xen's own
rules. For example, a frame that a PV guest uses as a page table cannot be written, and neither can
a descriptor table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from xenemu.errors import XenError
from xenemu.gdb.features import DESCRIPTION32, DESCRIPTION64, SEGMENTS, Description, Register
from xenemu.hv.cpu import Reg, Seg
from xenemu.hv.frame_table import LEVELS, TYPE_NAMES, PGT_seg_desc_page
from xenemu.hv.state.vcpu import Vcpu
from xenemu.image import Image
from xenemu.image.elf import parse
from xenemu.image.kernel_modules import Module
from xenemu.machine import Machine
from xenemu.peek import Code, in_kernel, kernel_tables, locate, tables
from xenemu.pv.state import PvVcpu
from xenemu.x86 import segment
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Maddr

UPCALL_MASK: Final = 1  # offset in vcpu_info
SEGMENT_BASES: Final = {"fs_base": Seg.FS, "gs_base": Seg.GS}


class Refused(Exception):
    """What was asked for cannot be had; `str()` is a sentence for the person."""


@dataclass
class Target:
    """The machine for one gdb. `description` is the one that gdb has been given."""

    machine: Machine
    image: Image

    def __post_init__(self) -> None:
        self.follows_mode = False  # gdb gets another description when the CPU's mode changes
        self.description: Description = self._wanted_description()

    # The description.

    def _wanted_description(self) -> Description:
        bits = self.image.elf_class if not self.follows_mode else self.code_bits
        return DESCRIPTION64 if bits == 64 else DESCRIPTION32

    def describe_now(self) -> bool:
        """Set the description that gdb should have now; whether it was another."""
        was, self.description = self.description, self._wanted_description()
        return was is not self.description

    @property
    def shows_physical(self) -> bool:
        """Whether a 64-bit kernel is shown in its 32-bit code, where it was loaded."""
        return self.image.elf_class == 64 and self.description is DESCRIPTION32

    @property
    def misread(self) -> bool:
        """Whether gdb, by its description, takes the running code for code of another mode."""
        return self.description is DESCRIPTION64 and self.code_bits != 64 and not self.follows_mode

    @property
    def os_abi(self) -> str | None:
        """The system whose mark the kernel's file bears: gdb may lack a handler for it."""
        return parse(self.image.symbol_file.elf).os_abi

    @cached_property
    def code(self) -> Code:
        """The kernel's code by name, and that of its modules."""
        return Code(self.image, self.machine.current)

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that a Linux has loaded by now."""
        return self.code.modules.loaded() if self.code.modules else ()

    def aliases(self, vaddr: int) -> list[int]:
        """The addresses that a breakpoint means: where the kernel was loaded, where it will run."""
        if self.shows_physical:
            for part in self.image.segments:
                if part.vaddr >> 32 and part.paddr <= vaddr < part.paddr + part.memsz:
                    return [vaddr, part.vaddr + vaddr - part.paddr]
        return [vaddr]

    # Threads: vcpu n is thread n + 1.

    @property
    def current_thread(self) -> int:
        """The thread of the vcpu that is in the CPU."""
        return self.machine.current.vcpu.vcpu_id + 1

    @property
    def threads(self) -> list[int]:
        """Those of all vcpus that have been brought up, and of the current one."""
        vcpus = self.machine.domain.vcpus
        return [v.vcpu_id + 1 for v in vcpus if v.saved or v is self.machine.current.vcpu]

    def vcpu(self, thread: int) -> Vcpu:
        """The vcpu of a thread; Refused if there is none."""
        if thread not in self.threads:
            raise Refused(f"there is no thread {thread}")
        return self.machine.domain.vcpus[thread - 1]

    def thread_name(self, thread: int) -> str:
        """What `info threads` says of it."""
        vcpu = self.vcpu(thread)
        with self.loaded(thread):
            mode = "kernel" if in_kernel(self.machine.current) else "user"
        return f"vcpu {vcpu.vcpu_id}: {vcpu.runstate.name.lower()}, {mode} mode"

    @contextmanager
    def loaded(self, thread: int) -> Iterator[None]:
        """Have a thread's vcpu in the CPU for a while."""
        current, engine, vcpu = self.machine.current, self.machine.engine, self.vcpu(thread)
        was = current.vcpu
        if vcpu is was:
            yield
            return
        assert vcpu.saved is not None
        was.saved, current.vcpu = engine.store(), vcpu
        engine.load(vcpu.saved)
        try:
            yield
        finally:
            vcpu.saved, current.vcpu = engine.store(), was
            engine.load(was.saved)
            was.saved = None

    # Registers of the vcpu that is loaded.

    def registers(self) -> bytes:
        """All of them, in the description's order."""
        return b"".join(self.read_register(register) for register in self.description.registers)

    def read_register(self, register: Register) -> bytes:
        """A register's bytes."""
        name = register.name
        if name.startswith(("st", "xmm")) or name in ("fctrl", "fstat", "ftag", "mxcsr"):
            return self.machine.debug.float_register(name)
        value = self._value(name) & (1 << register.bits) - 1
        return value.to_bytes(register.size, "little")

    def _value(self, name: str) -> int:
        cpu = self.machine.engine
        if name in GENERAL:
            return cpu.regs[GENERAL[name]]
        if name in SEGMENTS:
            return cpu.selector(SEGS[name])
        if name in SEGMENT_BASES:
            return cpu.segment(SEGMENT_BASES[name]).base
        return _OTHERS[name](self) if name in _OTHERS else 0

    def write_register(self, register: Register, data: bytes) -> None:
        """Set a register; Refused if its value is not for a debugger to change."""
        name, cpu = register.name, self.machine.engine
        value = int.from_bytes(data, "little")
        if len(data) != register.size:
            raise Refused(f"{name} has {register.size} bytes")
        if name.startswith(("st", "xmm")) or name in ("fctrl", "fstat", "ftag", "mxcsr"):
            self.machine.debug.set_float_register(name, data)
        elif name in GENERAL:
            cpu.regs[GENERAL[name]] = value
        elif name in ("rip", "eip"):
            cpu.rip = value
        elif name == "eflags":
            cpu.rflags = value
        elif name in SEGMENT_BASES:
            which = SEGMENT_BASES[name]
            cpu.set_segment(which, replace(cpu.segment(which), base=value))
        elif self.read_register(register) != data:
            raise Refused(f"{name} is the guest's own to change")

    def write_registers(self, data: bytes) -> None:
        """Set all of them; Refused before the first that may not change."""
        at = 0
        for register in self.description.registers:
            piece = data[at : at + register.size]
            at += register.size
            if len(piece) == register.size and self.read_register(register) != piece:
                self.write_register(register, piece)

    # Memory, by the addresses of the vcpu that is loaded.

    def read_memory(self, vaddr: int, size: int) -> bytes:
        """As many of `size` bytes as are mapped in one piece; Refused if not even the first is."""
        pieces: list[bytes] = []
        while size:
            n = min(size, PAGE_SIZE - (vaddr & PAGE_MASK))
            try:
                pieces.append(self.machine.domain.memory.read(self._locate(vaddr), n))
            except Refused:
                if not pieces:
                    raise
                break
            vaddr, size = vaddr + n, size - n
        return b"".join(pieces)

    def write_memory(self, vaddr: int, data: bytes) -> None:
        """Store, also where the guest itself could not; Refused, and nothing stored, or all."""
        places, start = [], 0
        while start < len(data):
            n = min(len(data) - start, PAGE_SIZE - (vaddr + start & PAGE_MASK))
            places.append((self._writable(vaddr + start), data[start : start + n]))
            start += n
        for maddr, piece in places:
            self.machine.domain.memory.write(maddr, piece)

    def _writable(self, vaddr: int) -> Maddr:
        maddr, frames = self._locate(vaddr), self.machine.domain.frames
        mfn = maddr >> PAGE_SHIFT
        used_as = frames.type[mfn] if frames.type_count[mfn] else 0
        if self.machine.domain.p2m is None and (used_as in LEVELS or used_as == PGT_seg_desc_page):
            raise Refused(f"{vaddr:#x} is in a {TYPE_NAMES[used_as]}, which Xen has checked")
        return maddr

    def _locate(self, vaddr: int) -> Maddr:
        """Where an address is in the machine.

        The kernel's addresses are found even before it has turned paging on, where it was loaded,
        and even while a program runs on page tables that lack them.
        """
        current = self.machine.current
        if vaddr >> 64:
            raise Refused(f"{vaddr:#x} is no address")
        try:
            if tables(current) is None and vaddr >> 32:
                return self._linked(vaddr)
            return locate(current, vaddr)
        except XenError as error:
            if tables(current) is None:
                return self._linked(vaddr)
            try:
                return locate(current, vaddr, kernel_tables(current, self.image))
            except XenError:
                raise Refused(error.reason) from None

    def _linked(self, vaddr: int) -> Maddr:
        for part in self.image.segments:
            if part.vaddr <= vaddr < part.vaddr + part.memsz:
                return locate(self.machine.current, part.paddr + vaddr - part.vaddr)
        raise Refused(f"{vaddr:#x} is not in the kernel's image, and paging is off")

    @property
    def pc(self) -> int:
        """Where the vcpu in the CPU is: a linear address, as breakpoints have it."""
        cpu = self.machine.engine
        return (cpu.segment(Seg.CS).base + cpu.rip) & (1 << 64) - 1

    @property
    def code_bits(self) -> int:
        """16, 32 or 64: how the CPU reads the instruction at RIP."""
        cpu = self.machine.engine
        if cpu.code64:
            return 64
        return 32 if cpu.segment(Seg.CS).attributes & segment.DB else 16

    def event_mask(self) -> int:
        """Whether the vcpu has its event upcalls masked."""
        return self.machine.domain.memory.read(self._info(), 2)[UPCALL_MASK]

    def _info(self) -> Maddr:
        return self.machine.current.vcpu.info

    def roots(self) -> tuple[int, int]:
        """The machine or guest addresses of the kernel's and the user's page tables."""
        arch = self.machine.current.vcpu.arch
        if isinstance(arch, PvVcpu):
            return arch.kernel_root << PAGE_SHIFT, arch.user_root << PAGE_SHIFT
        return self.machine.engine.cr3, 0

    def kernel_gs_base(self) -> int:
        """The GS base that SWAPGS, or a PV guest's change of mode, would bring."""
        arch = self.machine.current.vcpu.arch
        return arch.inactive_gs if isinstance(arch, PvVcpu) else self.machine.debug.kernel_gs_base


GENERAL: Final = {register.name.lower(): register for register in Reg} | {
    f"e{register.name.lower()[1:]}": register for register in list(Reg)[:8]
}
SEGS: Final = {name: Seg[name.upper()] for name in SEGMENTS}
_OTHERS: Final[dict[str, Callable[[Target], int]]] = {
    "rip": lambda target: target.machine.engine.rip,
    "eip": lambda target: target.machine.engine.rip,
    "eflags": lambda target: target.machine.engine.rflags,
    "cr0": lambda target: target.machine.engine.cr0,
    "cr2": lambda target: target.machine.engine.cr2,
    "cr3": lambda target: target.machine.engine.cr3,
    "cr4": lambda target: target.machine.engine.cr4,
    "efer": lambda target: target.machine.engine.efer,
    "k_gs_base": Target.kernel_gs_base,
    "xen_event_mask": Target.event_mask,
    "xen_kernel_root": lambda target: target.roots()[0],
    "xen_user_root": lambda target: target.roots()[1],
    "xen_user_mode": lambda target: int(not in_kernel(target.machine.current)),
}
