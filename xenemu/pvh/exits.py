"""What happens when a PVH guest leaves its code: a `NativeExitHandler`.

In Xen: arch/x86/hvm/hypercall.c (hvm_hypercall), arch/x86/hvm/vmx/vmx.c
"""

from __future__ import annotations

from dataclasses import field

from xenemu.abi.errno import EPERM
from xenemu.abi.hvm.params import HVM_PARAM_TRIPLE_FAULT_REASON
from xenemu.abi.sched import SHUTDOWN_reboot
from xenemu.errors import DomainCrash
from xenemu.hv import event_channel, scheduler
from xenemu.hv.cpu import Msr, Reg, Seg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import hypercall
from xenemu.hv.msr import cpuid_faults
from xenemu.hv.prices import Exit
from xenemu.hv.state.domain import OUTPUT_LIMIT
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pvh import callbacks, cpuid, lapic_glue, msr, reset
from xenemu.pvh.paging import cpu_of
from xenemu.pvh.state import pvh_domain
from xenemu.records import dataclass
from xenemu.x86 import flags

VMCALL_LENGTH = 3
DEBUG_PORT = 0xE9  # XEN_HVM_DEBUGCONS_IOPORT
PORTS = frozenset({DEBUG_PORT})
MASK64 = (1 << 64) - 1


class TripleFault(DomainCrash):
    """The guest could not deliver an exception, nor the double fault that followed."""


@dataclass
class PvhExits:
    """Handles the exits of the vcpu in `current`."""

    current: Current
    _joined: Vcpu | None = field(default=None, init=False)  # what the lane knows

    def cpuid(self) -> bool:
        """CPUID: fill the registers; #GP outside ring 0, if the guest asked for that."""
        if cpuid_faults(self.current.vcpu) and cpu_of(self.current).cpl:
            return False
        cpuid.execute(self.current)
        return True

    def vmcall(self) -> None:
        """A hypercall, in the ABI of the code segment; from other rings than 0 it is refused."""
        current, cpu = self.current, cpu_of(self.current)
        if cpu.cpl:
            cpu.regs[Reg.RAX] = -EPERM & MASK64
            return
        firmware = pvh_domain(current).firmware
        if firmware is not None and firmware.answers(current):
            self.deliver_events()
            return
        vcpu = current.vcpu
        vcpu.width, vcpu.environment = (8, "pvh64") if cpu.code64 else (4, "pvh32")
        hypercall(current, VMCALL_LENGTH)
        self.deliver_events()

    def read_msr(self, number: int) -> int | Msr:
        """RDMSR."""
        self.current.asked(Exit.RDMSR, number)
        return msr.read(self.current, number)

    def write_msr(self, number: int, value: int) -> Msr | None:
        """WRMSR."""
        self.current.asked(Exit.WRMSR, number)
        return msr.write(self.current, number, value)

    def read_cr8(self) -> int:
        """MOV from CR8."""
        return lapic_glue.read_cr8(self.current)

    def write_cr8(self, value: int) -> None:
        """MOV to CR8."""
        lapic_glue.write_cr8(self.current, value)

    def read_port(self, port: int, size: int) -> int:
        """IN from one of PORTS."""
        self.current.asked(Exit.IN, port)
        return DEBUG_PORT if port == DEBUG_PORT and size == 1 else (1 << 8 * size) - 1

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT to one of PORTS: Xen's debug console shows the byte."""
        self.current.asked(Exit.OUT, port)
        if port == DEBUG_PORT and size == 1:
            output = self.current.domain.output
            output.append(value)
            if len(output) >= OUTPUT_LIMIT:
                self.current.cpu.stop()

    def read_apic(self, offset: int, size: int) -> int:
        """A load from the local APIC's page."""
        return lapic_glue.read(self.current, offset, size)

    def write_apic(self, offset: int, size: int, value: int) -> None:
        """A store to the local APIC's page."""
        lapic_glue.write(self.current, offset, size, value)

    # ---- what the machine asks ----

    def rung(self, bell: int, at_ns: int) -> None:
        """The guest has sent an event to a backend with a bell."""
        event_channel.rung(self.current.domain, bell, at_ns)

    def deliver_events(self) -> None:
        """Let the CPU take an interrupt for pending events, and go on without the model."""
        callbacks.deliver_event(self.current)
        self._look_at_lane()

    def _look_at_lane(self) -> None:
        """Open the lane, or shut it: somebody watches, or a call would change more than it says."""
        current = self.current
        domain, vcpu, cpu = current.domain, current.vcpu, cpu_of(current)
        if vcpu is not self._joined:
            self._joined = vcpu
            cpu.join_native_lane(vcpu.vcpu_id, domain.calls.by_cpu, domain.events.bells)
        cpu.open_lane(
            domain.watch is None
            and not domain.debug_xen
            and vcpu.environment == "pvh64"
            and pvh_domain(current).firmware is None
        )

    def stopped(self) -> None:
        """The engine returned: see whether the guest halted, or died."""
        current, cpu = self.current, cpu_of(self.current)
        if cpu.triple_fault:
            self._triple_fault()
            return
        reset.look_at_idt(current)
        if not cpu.halted or current.domain.shutdown_code is not None:
            return
        if callbacks.interrupt_due(current):
            return
        if cpu.rflags & flags.IF:
            scheduler.block(current)
        else:
            self._vcpu_down()

    def _triple_fault(self) -> None:
        """Shut the domain down, as Xen does; TripleFault unless the guest has reset itself so."""
        current, idt = self.current, self.current.cpu.segment(Seg.IDTR)
        why = pvh_domain(current).params.get(HVM_PARAM_TRIPLE_FAULT_REASON, SHUTDOWN_reboot)
        meant = reset.is_reset(current)
        scheduler.shutdown(current.domain, why, "the guest reset itself by a triple fault")
        if meant:
            return
        # DIVERGES: Xen does not tell apart, and reboots the domain. A person wants to know.
        raise TripleFault(
            f"triple fault at {current.cpu.rip:#x}; its IDT is at {idt.base:#x},"
            f" with the limit {idt.limit:#x}",
            "the guest faulted, and then could not enter a handler: is the gate of the first"
            " exception in the IDT, and are its code segment and its stack mapped? cr2 is the"
            " last page fault's address",
        )

    def _vcpu_down(self) -> None:
        """HLT with interrupts off: the vcpu goes, and with the last one the domain."""
        why = "the guest powered off: its last vcpu halted with interrupts off"
        scheduler.take_down(self.current, self.current.vcpu, why)
