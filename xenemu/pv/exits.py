"""What happens when a PV guest leaves its code: an `ExitHandler` for each width.

In Xen: arch/x86/traps.c, arch/x86/x86_64/entry.S, arch/x86/pv/hypercall.c.
"""

from __future__ import annotations

from dataclasses import field

from xenemu.abi.xen import Nr
from xenemu.hv import event_channel
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import hypercall
from xenemu.hv.msr import cpuid_faults
from xenemu.hv.prices import EMULATION_NS
from xenemu.hv.shared_info import event_pending
from xenemu.pv import cpuid, traps
from xenemu.pv.bounce32 import in_kernel_mode
from xenemu.pv.callgate import emulate_gate_op
from xenemu.pv.debug_registers import take_debug_status
from xenemu.pv.descriptors import map_ldt_page, mark_accessed
from xenemu.pv.emulate import emulate_invalid_op, emulate_privileged_op
from xenemu.pv.lane import LaneGate
from xenemu.pv.paging import in_guest_range
from xenemu.pv.perdomain import PERDOMAIN_VIRT_START, ldt_base
from xenemu.pv.ptwr import emulate_store
from xenemu.pv.state import NO_TRAP, PvVcpu, pv
from xenemu.records import dataclass
from xenemu.x86 import flags
from xenemu.x86.fault import Fault
from xenemu.x86.paging import PFEC_I, PFEC_P, PFEC_RSVD, PFEC_U, PFEC_W

HYPERCALL_VECTOR = 0x82  # a 32-bit guest's, from ring 1 alone
IDT_BIT = 1 << 1  # in a selector error code: the selector is a gate of the IDT
INT_N_LENGTH = 2
IRET, RAX = int(Nr.iret), Reg.RAX
HYPERCALL_LENGTH = 2  # of SYSCALL, and of int 0x82
INT80 = 0x80
LDT_BYTES = 0x10000


@dataclass
class PvExits:
    """Handles the exits of the vcpu in `current`."""

    current: Current
    _lane: LaneGate = field(default_factory=LaneGate)

    def syscall(self) -> None:
        """A hypercall from the kernel, a system call from user mode; #UD from 32-bit code.

        The CPU that guests see is Intel's, which has SYSCALL in 64-bit code only.
        """
        current, cpu, state = self.current, self.current.cpu, self.current.vcpu.arch
        assert isinstance(state, PvVcpu)
        if not cpu.code64:
            cpu.rip -= traps.SYSCALL_LENGTH
            traps.inject(current, flags.UD)
        elif not state.kernel_mode:
            traps.syscall_from_user(current)
        elif cpu.regs[RAX] == IRET:  # by far the commonest, and not worth a line in the log
            traps.iret(current)
        else:
            traps.load_syscall_state(current)
            hypercall(current, HYPERCALL_LENGTH)
        self._deliver_events()

    def _deliver_events(self) -> None:
        current = self.current
        vcpu, state = current.vcpu, current.vcpu.arch
        assert isinstance(state, PvVcpu)
        if vcpu.blocked or not vcpu.online:
            return
        if state.nmi_pending and not state.nmi_masked:
            traps.deliver_nmi(current)
        self._lane.look(current, state)
        if current.domain.memory.bytes[vcpu.info] and event_pending(current.domain, vcpu):
            traps.deliver_event(current)

    def deliver_events(self) -> None:
        """Enter the guest's handler if an NMI, or events that are not masked, are pending."""
        self._deliver_events()

    def rung(self, bell: int, at_ns: int) -> None:
        """The guest has sent an event to a backend with a bell."""
        event_channel.rung(self.current.domain, bell, at_ns)

    def stopped(self) -> None:
        """A PV guest leaves its vcpu only through hypercalls."""

    def sysenter(self) -> None:
        """SYSENTER: whatever the mode it comes from, the callback for it; #GP without."""
        traps.sysenter(self.current)
        self._deliver_events()

    def exception(self, vector: int, error_code: int) -> None:
        """Emulate, fix up, or give the guest its exception."""
        if vector == flags.PAGE_FAULT:
            self._page_fault(error_code)
        elif vector == flags.GP:
            self._general_protection(error_code)
        elif vector == flags.NM:
            self._device_not_available()
        elif vector == flags.DB:
            self._debug()
        else:
            traps.inject(self.current, vector, error_code)

    def _page_fault(self, error_code: int) -> None:
        current = self.current
        vaddr = current.cpu.cr2
        if in_guest_range(vaddr, current.domain.width):
            wrote_read_only = error_code & (PFEC_P | PFEC_W | PFEC_RSVD | PFEC_I) == PFEC_P | PFEC_W
            if wrote_read_only and emulate_store(current, vaddr):
                current.cpu.spend(EMULATION_NS)
                return
        elif not error_code & (PFEC_U | PFEC_RSVD):  # the CPU's own access, to a descriptor
            offset = vaddr - ldt_base(current.vcpu.vcpu_id, current.domain.width)
            if 0 <= offset < LDT_BYTES:
                try:
                    map_ldt_page(current, offset, error_code)
                    self._lane.look(current, pv(current))
                except Fault as fault:
                    traps.deliver(current, fault)
                return
        traps.inject_page_fault(current, vaddr, error_code)

    def _general_protection(self, error_code: int) -> None:
        current = self.current
        if not error_code & 0xFFFF:
            if emulate_privileged_op(current):
                current.cpu.spend(EMULATION_NS)
                self._deliver_events()
                return
        elif current.domain.width == 4:
            emulate_gate_op(current, error_code)
            return
        traps.inject(current, flags.GP, error_code)

    def _device_not_available(self) -> None:
        current = self.current
        current.cpu.set_task_switched(False)
        if pv(current).task_switched:
            pv(current).task_switched = False
            traps.inject(current, flags.NM)

    def _debug(self) -> None:
        take_debug_status(self.current)
        traps.inject(self.current, flags.DB)

    def software_interrupt(self, vector: int, length: int) -> None:
        """INT n by the guest's own gate, whose DPL is checked here.

        Xen has gates for int3, into and int 0x80 that do without the check. Any other is a #GP,
        whose instruction Xen takes to be two bytes long, whatever its prefixes.
        """
        current = self.current
        trap = pv(current).traps.get(vector)
        direct = vector in (flags.BP, flags.OF_TRAP) or (trap is not None and vector == INT80)
        needed = 1 if pv(current).kernel_mode else 3
        if not direct:
            current.cpu.rip -= INT_N_LENGTH if vector == INT80 else length
            if trap is None or trap.dpl < needed:
                traps.inject(current, flags.GP, vector << 3 | IDT_BIT)
                return
            current.cpu.rip += INT_N_LENGTH
        traps.bounce(current, trap or NO_TRAP, f"int {vector:#x}")

    def invalid_opcode(self) -> None:
        """Forced emulation, what the engine does not know, or #UD."""
        current = self.current
        if emulate_invalid_op(current):
            current.cpu.spend(EMULATION_NS)
        else:
            traps.inject(current, flags.UD)

    def cpuid(self) -> bool:
        """CPUID without the prefix: the same model, or #GP where the guest asked for faulting."""
        current = self.current
        if cpuid_faults(current.vcpu) and not pv(current).kernel_mode:
            return False
        cpuid.execute(current)
        return True


@dataclass
class Pv32Exits(PvExits):
    """Handles the exits of a 32-bit guest, whose kernel is in ring 1.

    The vcpu's code segment shows which of its two modes it is in. What Xen remembers does not.
    """

    def _see_mode(self) -> None:
        pv(self.current).kernel_mode = in_kernel_mode(self.current)

    def exception(self, vector: int, error_code: int) -> None:
        """Emulate, fix up, or give the guest its exception."""
        self._see_mode()
        super().exception(vector, error_code)

    def _page_fault(self, error_code: int) -> None:
        """The kernel's ring may read where its descriptor tables are mapped, and never writes."""
        vaddr = self.current.cpu.cr2
        if vaddr >= PERDOMAIN_VIRT_START[4] and error_code & PFEC_P:
            if error_code & (PFEC_W | PFEC_U) == PFEC_W and mark_accessed(self.current, vaddr):
                return
            error_code &= ~PFEC_P  # as far as the guest knows, there is nothing
            traps.inject_page_fault(self.current, vaddr, error_code)
            return
        super()._page_fault(error_code)

    def deliver_events(self) -> None:
        """Enter the guest's event callback if events are pending and not masked."""
        self._see_mode()
        super().deliver_events()

    def invalid_opcode(self) -> None:
        """Forced emulation, or #UD."""
        self._see_mode()
        super().invalid_opcode()

    def cpuid(self) -> bool:
        """CPUID without the prefix."""
        self._see_mode()
        return super().cpuid()

    def syscall(self) -> None:
        """SYSCALL: the CPU that guests see is Intel's, which has none in 32-bit code."""
        self._see_mode()
        self.current.cpu.rip -= traps.SYSCALL_LENGTH
        traps.inject(self.current, flags.UD)

    def software_interrupt(self, vector: int, length: int) -> None:
        """INT n: a hypercall if it is the kernel's int 0x82."""
        self._see_mode()
        if vector != HYPERCALL_VECTOR or not pv(self.current).kernel_mode:
            super().software_interrupt(vector, length)
            return
        self._hypercall32()
        self._deliver_events()

    def _hypercall32(self) -> None:
        current = self.current
        if current.cpu.regs[RAX] & 0xFFFFFFFF == IRET:
            traps.iret(current)
        else:
            hypercall(current, HYPERCALL_LENGTH)
