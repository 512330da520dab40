"""What the hypervisor may ask of a CPU, and what a CPU tells the hypervisor.

Two Protocols and one value: the engine implements `Cpu` and calls an `ExitHandler`; tests
use a fake of either. Everything is about the vcpu that is current in the CPU.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from enum import Enum, IntEnum
from typing import Protocol

from xenemu.records import dataclass


class Reg(IntEnum):
    """General registers in hardware encoding order: indices into `Cpu.regs`."""

    RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
    R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)


class Seg(IntEnum):
    """Segment registers in hardware encoding order, then the system ones."""

    ES, CS, SS, DS, FS, GS, LDTR, TR, GDTR, IDTR = range(10)


@dataclass(frozen=True)
class Segment:
    """A segment register with its hidden part.

    `attributes` are bits 8..23 of a descriptor's high word, in place (type, S, DPL, P, AVL, L,
    D/B, G); `limit` is in bytes.
    """

    selector: int
    base: int = 0
    limit: int = 0
    attributes: int = 0


@dataclass(frozen=True)
class Undefined:
    """An undefined instruction: where it was, its first bytes, and how wide its code was."""

    rip: int
    bits: int
    code: bytes


class Cpu(Protocol):
    """The current vcpu's registers, and the few verbs that the model needs."""

    regs: MutableSequence[int]  # 16 words, indexed by `Reg`
    rip: int
    rflags: int
    cr2: int
    cr3: int  # writing it flushes the TLB

    @property
    def cr0(self) -> int:
        """CR0 as the CPU has it."""

    @property
    def now_ns(self) -> int:
        """Virtual time: instructions run so far, prices paid, and idle time skipped."""

    def segment(self, which: Seg) -> Segment:
        """Read a segment register with its hidden part."""

    def selector(self, which: Seg) -> int:
        """Read what the guest sees of a segment register, in a tenth of the time."""

    def set_segment(self, which: Seg, value: Segment) -> None:
        """Load a segment register; CS and SS also set the CPU's mode and CPL (from CS's DPL)."""

    @property
    def code64(self) -> bool:
        """Whether the CPU runs 64-bit code: in long mode, with a code segment for that."""

    def set_task_switched(self, value: bool) -> None:
        """Set or clear CR0.TS, so that the next FPU instruction raises #NM."""

    def set_tsc_disabled(self, value: bool) -> None:
        """Set or clear CR4.TSD, so that RDTSC faults."""

    def set_fsgsbase(self, value: bool) -> None:
        """Set or clear CR4.FSGSBASE: without it, RDFSBASE and the like are undefined."""

    def set_tsc_aux(self, value: int) -> None:
        """Set what RDTSCP leaves in ECX."""

    def set_fpu(self, area: bytes) -> None:
        """Load x87, MMX and SSE from 512 bytes, as FXRSTOR64 would."""

    def undefined(self) -> Undefined | None:
        """The last instruction that raised #UD, except for UD2 and others that are meant to."""

    def debug_register(self, index: int) -> int:
        """Read DR0..DR7."""

    def set_debug_register(self, index: int, value: int) -> None:
        """Load DR0..DR7, arming breakpoints."""

    def came_from(self) -> int:
        """Where the jump stands that led to RIP, a linear address; 0 if none did, or unknown."""

    def leave_by_iret(self) -> None:
        """After a SYSCALL, return as IRET does: where TF is set, #DB comes after an instruction.

        Otherwise it comes at once, as after the SYSRET of a kernel whose user steps.
        """

    def translate(self, vaddr: int, writing: bool) -> int | None:
        """The machine address of the kernel's memory at a linear address, marked as accessed.

        None if the kernel has none there, and whenever that takes longer to find out.
        """

    def flush_tlb(self) -> None:
        """Forget all translations before the guest runs again; cheap to ask for repeatedly."""

    def flush_tlb_page(self, vaddr: int) -> None:
        """Forget the translations of one page before the guest runs again."""

    def spend(self, ns: int) -> None:
        """Let this much of the guest's time pass for the hypervisor's work (hv/prices.py)."""

    def limit(self, deadline_ns: int) -> None:
        """Leave the run loop no later than at a virtual time."""

    def leave_after_pauses(self, count: int) -> None:
        """Leave the run loop after so many PAUSEs of the guest from now on; 0: after none."""

    def stop(self) -> None:
        """Leave the run loop before the next guest instruction (blocked, shut down, due)."""

    def join_lane(self, lane: Lane) -> None:
        """Know what ordinary hypercalls of the PV vcpu in the CPU need; do none until told so."""

    def open_lane(self, value: bool) -> None:
        """Do ordinary work without the hypervisor from now on, or leave all of it to it."""

    def take_l1(self, mfn: int) -> bytes | None:
        """Take what the entries hold of a frame that becomes an L1 table, if each may be had.

        The table as Xen adjusts it, empty if it does not; None, and nothing was taken, if it is for
        the caller. The lane must know of the domain whose frame it is.
        """

    def drop_l1(self, mfn: int) -> bool:
        """Drop what the entries of an L1 table hold; False: nothing was, it is for the caller."""


@dataclass(frozen=True)
class Lane:
    """What a CPU needs to do ordinary work for a PV vcpu by itself.

    It changes page-table entries that map the domain's own pages or lead to tables of its own,
    switches between page tables that are pinned, and enters and leaves the guest's kernel, as the
    hypervisor would. It never refuses anything, but that it says which vcpus there are not.

    * `words` is what `pv.state.PvVcpu` shares; `info` is the machine address of its vcpu_info.
    * `width` is that of the guest's unsigned long in bytes.
    * `nr_vcpus` are the domain's; `xen_version` is what XENVER_version tells.
    * `root_type` and the bits are those of the domain's page tables (`hv.paging_rules`).
    * `m2p_entry` shows the machine-to-physical table in a root; if `m2p_strict`, no root of a
      user's may have it.
    * `log` takes the records of the calls (`hv.calls.CallLog.by_cpu`).
    * `bells` are those of the domain (`hv.state.events.EventChannels`).
    * A request of mmu_update takes `request_ns`, an operation of mmuext_op `operation_ns`, an
      emulated instruction `emulation_ns`, an L1 table that is validated or dropped `l1_ns`.
    * `plain_iopl`: VMASST_TYPE_architectural_iopl is off. `writable_tables`: the guest may store
      to its L1 tables.
    * `gdt_frame` is the first page of the GDT, 0 if there is none; `xen_gdt` is Xen's page of it.
    * The handlers are addresses, 0 if there is none; `masks`: events are masked on entry. `cs` is
      the code segment of a 32-bit guest's handler, null if there is none. `int80` is such a guest's
      handler of system calls.
    """

    words: memoryview
    info: int
    vcpu_id: int
    domid: int
    width: int
    nr_vcpus: int
    xen_version: int
    root_type: int
    l1_disallow: int
    l1_kernel_bits: int
    l1_user_bits: int
    table_disallow: int
    table_bits: int
    m2p_entry: int
    m2p_strict: bool
    log: bytearray
    bells: bytearray
    request_ns: int
    operation_ns: int
    emulation_ns: int
    l1_ns: int
    plain_iopl: bool
    writable_tables: bool
    gdt_frame: int
    xen_gdt: int
    pf_handler: int
    pf_masks: bool
    syscall_handler: int
    syscall_masks: bool
    pf_cs: int
    int80_cs: int
    int80_handler: int
    int80_masks: bool


class ExitHandler(Protocol):
    """What the engine calls when the guest needs the hypervisor.

    RIP is on the instruction, except after a software interrupt and a SYSCALL, where it is
    after it. On return the guest goes on from the CPU's registers.
    """

    def exception(self, vector: int, error_code: int) -> None:
        """A fault or trap of the CPU; for vector 14, `Cpu.cr2` is the address."""

    def software_interrupt(self, vector: int, length: int) -> None:
        """``int n``, ``int3`` or ``into``, so many bytes long: no gate was consulted."""

    def invalid_opcode(self) -> None:
        """An instruction that is undefined, or that xenemu forces to be (the 0f0b prefix)."""

    def syscall(self) -> None:
        """SYSCALL: RIP is after it; RCX, R11 and the mode are as before it."""

    def sysenter(self) -> None:
        """SYSENTER: RIP is after it; nothing else has changed."""

    def cpuid(self) -> bool:
        """CPUID, not yet executed: fill RAX..RDX and return True; False raises #GP instead."""

    def rung(self, bell: int, at_ns: int) -> None:
        """The guest has rung a bell, before all else that the handler is told of."""


class Event(Enum):
    """What a CPU enters a handler for."""

    INT_N = 1  # INT n, INT3 and INTO
    EXCEPTION = 2
    INTERRUPT = 3


@dataclass(frozen=True)
class Delivered:
    """An event, and its vector; that of an interrupt is not kept."""

    event: Event
    vector: int = 0


class Msr(Enum):
    """Answers to RDMSR and WRMSR other than a value."""

    REFUSED = 1  # #GP
    NATIVE = 2  # the CPU's own register


class NativeCpu(Cpu, Protocol):
    """A CPU whose guest runs in ring 0 with its own tables (PVH)."""

    apic_vector: int | None  # the local APIC's next interrupt, taken when the guest allows
    ended: bool  # the guest has ended the interrupt that `take_accepted` returned last

    @property
    def cr4(self) -> int:
        """CR4 as the guest has it."""

    @property
    def cpl(self) -> int:
        """The current privilege level: 0 in real mode, 3 in virtual-8086 mode."""

    @property
    def efer(self) -> int:
        """EFER as the guest has it."""

    @property
    def halted(self) -> bool:
        """The guest executed HLT."""

    @property
    def triple_fault(self) -> bool:
        """The guest faulted while a double fault was being delivered."""

    @property
    def delivered(self) -> Delivered:
        """What was to be delivered last; of a triple fault, what that began with."""

    def begin(self, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        """Become as after INIT, but with these control registers.

        General registers and CR2 are 0, breakpoints are off, and no event waits or is held back.
        Segments, the FPU and MSRs stay as they are.
        """

    def enter_long_mode(self, cr3: int, sse: bool = False) -> None:
        """Turn 4-level paging on, and all of EFER and CR4 off that long mode does not need.

        With `sse`, its instructions are allowed. CS then says whether the code has 64 bits.
        """

    def request_interrupt(self) -> None:
        """Take `apic_vector`, or the event upcall, as soon as the guest allows interrupts."""

    def request_nmi(self) -> None:
        """Take an NMI as soon as none is being handled."""

    @property
    def nmi_pending(self) -> bool:
        """An NMI was requested, and not taken yet."""

    def take_accepted(self) -> int | None:
        """The interrupt of the local APIC that was taken since the last call."""

    def may_end(self) -> None:
        """Do without the hypervisor if the guest ends the interrupt `apic_vector` at once.

        The interrupt must be the only one that the local APIC has, in x2APIC mode.
        """

    def join_native_lane(self, vcpu_id: int, log: bytearray, bells: bytearray) -> None:
        """Know what is needed to do ordinary work for the vcpu in the CPU; see `Cpu.open_lane`.

        `log` and `bells` are as in a `Lane`.
        """

    def set_upcall(self, info_maddr: int, vector: int | None) -> None:
        """Raise `vector` while the byte at `info_maddr` is set and interrupts are allowed."""


class NativeExitHandler(Protocol):
    """What the engine calls for a guest that runs natively. RIP is after a VMCALL."""

    def cpuid(self) -> bool:
        """CPUID: fill RAX..RDX and return True; False raises #GP instead."""

    def vmcall(self) -> None:
        """VMCALL or VMMCALL: a hypercall."""

    def read_msr(self, number: int) -> int | Msr:
        """RDMSR: its value, or why there is none."""

    def write_msr(self, number: int, value: int) -> Msr | None:
        """WRMSR: None if done."""

    def read_cr8(self) -> int:
        """The task priority's class, 0 to 15."""

    def write_cr8(self, value: int) -> None:
        """Set the task priority's class, 0 to 15."""

    def read_port(self, port: int, size: int) -> int:
        """IN from a port of `PORTS`."""

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT to a port of `PORTS`."""

    def read_apic(self, offset: int, size: int) -> int:
        """A load from the local APIC's page."""

    def write_apic(self, offset: int, size: int, value: int) -> None:
        """A store to the local APIC's page."""

    def rung(self, bell: int, at_ns: int) -> None:
        """The guest has rung a bell, before all else that the handler is told of."""
