"""What gdb sees of a machine: its vcpus as threads, their registers, and the guest's memory.

Looking changes nothing. Writing changes what the person says, as far as `machine.memory` lets it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from xenemu.errors import UsageError
from xenemu.gdb import fpu
from xenemu.gdb.features import DESCRIPTION32, DESCRIPTION64, SEGMENTS, Description, Register
from xenemu.hv.cpu import Cpu, Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.shared_info import UPCALL_MASK
from xenemu.hv.state.vcpu import Vcpu
from xenemu.image import Image
from xenemu.image.elf import parse
from xenemu.image.kernel_modules import Module
from xenemu.machine import Machine, memory, registers
from xenemu.peek import Code, doing, has_begun, in_kernel
from xenemu.pv.state import PvVcpu
from xenemu.records import dataclass
from xenemu.x86 import segment
from xenemu.x86.msr import KERNEL_GS_BASE
from xenemu.x86.paging import PAGE_SHIFT

SEGMENT_BASES: Final = {"fs_base": Seg.FS, "gs_base": Seg.GS}


class Refused(Exception):
    """What was asked for cannot be had; `str()` is a sentence for the person."""


@dataclass
class Target:
    """The machine for one gdb. `description` is the one that gdb has been given.

    `keep` takes a snapshot into a file, and says into which; `dump` writes a core in the same way.
    UsageError and OutputError if it cannot be.
    """

    machine: Machine
    image: Image
    keep: Callable[[], str] | None = None
    dump: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        self._selected = self.current_thread
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
        """Those of all vcpus; one that is down is a thread, too, so that gdb can wait for it."""
        return [vcpu.vcpu_id + 1 for vcpu in self.machine.domain.vcpus]

    def vcpu(self, thread: int) -> Vcpu:
        """The vcpu of a thread; Refused if there is none."""
        if thread not in self.threads:
            raise Refused(f"there is no thread {thread}")
        return self.machine.domain.vcpus[thread - 1]

    def select(self, thread: int) -> None:
        """Make a thread the one whose registers, memory and pc are meant; Refused if none is."""
        self.vcpu(thread)
        self._selected = thread

    @property
    def current(self) -> Current:
        """The selected thread's vcpu."""
        return self.current_of(self._selected)

    def current_of(self, thread: int) -> Current:
        """A thread's vcpu, with its registers in place of a CPU: to be looked at, and no more."""
        vcpu = self.vcpu(thread)
        found: Any = registers.read(self.machine, vcpu)
        return replace(self.machine.current, vcpu=vcpu, cpu=found)

    def thread_name(self, thread: int) -> str:
        """What `info threads` calls it."""
        return f"vcpu {self.vcpu(thread).vcpu_id}"

    def thread_state(self, thread: int) -> str:
        """What `info threads` says of it: what it does, and in which mode if it has begun."""
        current = self.current_of(thread)
        state = doing(self.machine.current, current.vcpu)
        if not has_begun(self.machine.current, current.vcpu):
            return state
        return f"{state}, {'kernel' if in_kernel(current) else 'user'} mode"

    # Registers of the selected thread.

    def registers(self) -> bytes:
        """All of them, in the description's order."""
        current = self.current
        return b"".join(_read(current, register) for register in self.description.registers)

    def read_register(self, register: Register) -> bytes:
        """A register's bytes."""
        return _read(self.current, register)

    def write_register(self, register: Register, data: bytes) -> None:
        """Set a register; Refused if its value is not for a debugger to change."""
        name = register.name
        if len(data) != register.size:
            raise Refused(f"{name} has {register.size} bytes")
        current = self.current
        if _read(current, register) == data:
            return
        changes = _changes(current.cpu, name, data)
        if changes is None:
            raise Refused(f"{name} is the guest's own to change")
        if not has_begun(self.machine.current, current.vcpu):
            raise Refused(
                f"vcpu {current.vcpu.vcpu_id} has yet to begin: it will set its registers"
            )
        registers.change(self.machine, current.vcpu, **changes)

    def write_registers(self, data: bytes) -> None:
        """Set all of them; Refused before the first that may not change."""
        at = 0
        for register in self.description.registers:
            piece = data[at : at + register.size]
            at += register.size
            if len(piece) == register.size:
                self.write_register(register, piece)

    def jump(self, pc: int) -> None:
        """Have the selected thread go on from another place."""
        register = next(r for r in self.description.registers if r.name in ("rip", "eip"))
        self.write_register(
            register, (pc & (1 << register.bits) - 1).to_bytes(register.size, "little")
        )

    # Memory, by the addresses of the selected thread.

    def read_memory(self, vaddr: int, size: int, current: Current | None = None) -> bytes:
        """As many of `size` bytes as are mapped in one piece; Refused if not even the first is.

        With `current`, by the addresses of another vcpu.
        """
        find = memory.virtual(current or self.current, self.image)
        try:
            return memory.read(self.machine, find, vaddr, size)
        except UsageError as error:
            raise Refused(str(error)) from None

    def write_memory(self, vaddr: int, data: bytes) -> None:
        """Store, also where the guest itself could not; Refused, and nothing stored, or all."""
        try:
            memory.write(self.machine, memory.virtual(self.current, self.image), vaddr, data)
        except UsageError as error:
            raise Refused(str(error)) from None

    @property
    def pc(self) -> int:
        """Where the vcpu in the CPU is: a linear address, as breakpoints have it."""
        return pc_of(self.machine.engine)

    def pc_of(self, thread: int) -> int:
        """Where a thread is."""
        return self.pc if thread == self.current_thread else pc_of(self.current_of(thread).cpu)

    @property
    def code_bits(self) -> int:
        """16, 32 or 64: how the CPU reads the instruction at RIP."""
        return code_bits_of(self.machine.engine)


def pc_of(cpu: Cpu) -> int:
    """Where a CPU is, as a linear address. gdb knows no other, and is told so for RIP, too."""
    base = 0 if cpu.code64 else cpu.segment(Seg.CS).base
    return (base + cpu.rip) & (1 << 64) - 1


def code_bits_of(cpu: Cpu) -> int:
    """16, 32 or 64: how a CPU reads the instruction at RIP."""
    if cpu.code64:
        return 64
    return 32 if cpu.segment(Seg.CS).attributes & segment.DB else 16


def event_mask(current: Current) -> int:
    """Whether a vcpu has its event upcalls masked."""
    return current.domain.memory.bytes[current.vcpu.info + UPCALL_MASK]


def roots(current: Current) -> tuple[int, int]:
    """The machine or guest addresses of the kernel's and the user's page tables."""
    arch = current.vcpu.arch
    if isinstance(arch, PvVcpu):
        return arch.kernel_root << PAGE_SHIFT, arch.user_root << PAGE_SHIFT
    return current.cpu.cr3, 0


def _kernel_gs_base(current: Current) -> int:
    """The GS base that SWAPGS, or a PV guest's change of mode, would bring."""
    arch = current.vcpu.arch
    found: Any = current.cpu
    return arch.inactive_gs if isinstance(arch, PvVcpu) else int(found.msrs[KERNEL_GS_BASE])


def _read(current: Current, register: Register) -> bytes:
    """A register of a vcpu's, of which `current` has the context."""
    name, cpu = register.name, current.cpu
    if name in fpu.NAMES:
        found: Any = cpu
        return fpu.read(found.fpu, name)
    if name in GENERAL:
        value = cpu.regs[GENERAL[name]]
    elif name in SEGS:
        value = cpu.selector(SEGS[name])
    elif name in SEGMENT_BASES:
        value = cpu.segment(SEGMENT_BASES[name]).base
    elif name in PLAIN:
        value = getattr(cpu, PLAIN[name])
    else:
        value = _OTHERS[name](current) if name in _OTHERS else 0
    return (value & (1 << register.bits) - 1).to_bytes(register.size, "little")


def _changes(cpu: Any, name: str, data: bytes) -> dict[str, Any] | None:
    """Which fields of a context change with a register; None if gdb may not change it."""
    value = int.from_bytes(data, "little")
    if name in fpu.NAMES:
        return {"fpu": fpu.write(cpu.fpu, name, data)}
    if name in GENERAL:
        general = list(cpu.regs)
        general[GENERAL[name]] = value
        return {"general": tuple(general)}
    if name in ("rip", "eip"):
        return {"rip": value - (pc_of(cpu) - cpu.rip) & (1 << 64) - 1}
    if name == "eflags":
        return {"rflags": value}
    if name in SEGMENT_BASES:
        segments, which = list(cpu.segments), SEGMENT_BASES[name]
        segments[which] = replace(segments[which], base=value)
        return {"segments": tuple(segments)}
    return None


GENERAL: Final = {register.name.lower(): register for register in Reg} | {
    f"e{register.name.lower()[1:]}": register for register in list(Reg)[:8]
}
SEGS: Final = {name: Seg[name.upper()] for name in SEGMENTS}
PLAIN: Final = {name: name for name in ("cr0", "cr2", "cr3", "cr4", "efer")} | {"eflags": "rflags"}
_OTHERS: Final[dict[str, Callable[[Current], int]]] = {
    "rip": lambda current: pc_of(current.cpu),
    "eip": lambda current: pc_of(current.cpu),
    "k_gs_base": _kernel_gs_base,
    "xen_event_mask": event_mask,
    "xen_kernel_root": lambda current: roots(current)[0],
    "xen_user_root": lambda current: roots(current)[1],
    "xen_user_mode": lambda current: int(not in_kernel(current)),
}
