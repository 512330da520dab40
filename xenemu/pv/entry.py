"""What happens when a PV guest leaves its code: an `ExitHandler` for 64-bit PV kernels.

In Xen: arch/x86/traps.c, arch/x86/x86_64/entry.S, arch/x86/pv/hypercall.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenemu.abi.xen import VMASST_TYPE_writable_pagetables, Nr
from xenemu.hv.cpu import Reg
from xenemu.hv.dispatch import Continue
from xenemu.hv.domain import Current
from xenemu.hv.shared_info import event_pending
from xenemu.hv.timers import Key
from xenemu.pv import cpuid, traps
from xenemu.pv.descriptors import ldt_base, map_ldt_page
from xenemu.pv.emulate import emulate_invalid_op, emulate_privileged_op, set_guest_ts
from xenemu.pv.paging import in_guest_range
from xenemu.pv.ptwr import emulate_store
from xenemu.pv.state import pv
from xenemu.x86 import flags
from xenemu.x86.paging import PFEC_I, PFEC_P, PFEC_RSVD, PFEC_W, is_canonical

ARGUMENTS = (Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10, Reg.R8, Reg.R9)
IDT_BIT = 1 << 1  # in a selector error code: the selector is a gate of the IDT
SYSCALL_LENGTH = 2
INT_N_LENGTH = 2
LDT_BYTES = 0x10000
DR6_BS, DR6_B0_B3 = 1 << 14, 0xF


@dataclass
class PvExits:
    """Handles the exits of the vcpu in `current`."""

    current: Current

    def syscall(self) -> None:
        """A hypercall from the kernel, a system call from user mode."""
        current = self.current
        if not pv(current).kernel_mode:
            traps.syscall_from_user(current)
        else:
            self._hypercall()
        self._deliver_events()

    def _hypercall(self) -> None:
        current = self.current
        assert current.table is not None
        cpu, regs = current.cpu, current.cpu.regs
        number = regs[Reg.RAX] & 0xFFFFFFFF
        if number == Nr.iret:
            traps.iret(current)
            return
        traps.set_syscall_registers(current)
        arguments = [regs[register] for register in ARGUMENTS]
        try:
            regs[Reg.RAX] = current.table.call(current, number, arguments)
        except Continue as again:
            for register, value in zip(ARGUMENTS, again.new_args, strict=False):
                regs[register] = value
            cpu.rip -= SYSCALL_LENGTH
        timers = current.domain.timers
        if timers.moved:
            timers.moved = False
            cpu.limit(timers.next_ns() or 0)

    def _deliver_events(self) -> None:
        current = self.current
        if event_pending(current.domain, current.vcpu) and not current.vcpu.blocked:
            traps.deliver_event(current)

    def deliver_events(self) -> None:
        """Enter the guest's event callback if events are pending and not masked."""
        self._deliver_events()

    def timer(self, key: Key) -> bool:
        """A PV guest has no timers but Xen's."""
        return False

    def stopped(self) -> None:
        """A PV guest leaves its vcpu only through hypercalls."""

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
        vaddr, state = current.cpu.cr2, pv(current)
        if not in_guest_range(vaddr):
            offset = vaddr - ldt_base(current.vcpu.vcpu_id)
            if 0 <= offset < LDT_BYTES:
                if map_ldt_page(current, offset):
                    return
                vaddr = state.ldt_base + offset
        elif (
            state.kernel_mode
            and error_code & (PFEC_P | PFEC_W | PFEC_RSVD | PFEC_I) == PFEC_P | PFEC_W
            and current.domain.vm_assist >> VMASST_TYPE_writable_pagetables & 1
            and emulate_store(current, vaddr)
        ):
            return
        traps.inject_page_fault(current, vaddr, error_code)

    def _general_protection(self, error_code: int) -> None:
        current = self.current
        if not error_code & 0xFFFF:
            if emulate_privileged_op(current):
                self._deliver_events()
                return
            if _is_stack_fault(current):
                traps.inject(current, flags.SS, 0)
                return
        traps.inject(current, flags.GP, error_code)

    def _device_not_available(self) -> None:
        current = self.current
        if pv(current).task_switched:
            set_guest_ts(current, False)
            traps.inject(current, flags.NM)
        else:
            current.cpu.set_task_switched(False)

    def _debug(self) -> None:
        current = self.current
        state = pv(current)
        state.dr6 |= current.cpu.debug_register(6) & (DR6_BS | DR6_B0_B3)
        traps.inject(current, flags.DB)

    def software_interrupt(self, vector: int) -> None:
        """INT n by the guest's own gate, whose DPL is checked here."""
        current = self.current
        trap = pv(current).traps.get(vector)
        if vector not in (flags.BP, flags.OF_TRAP):
            needed = 1 if pv(current).kernel_mode else 3
            if trap is None or trap.dpl < needed:
                current.cpu.rip -= INT_N_LENGTH
                traps.inject(current, flags.GP, vector << 3 | IDT_BIT)
                return
        traps.inject(current, vector)

    def invalid_opcode(self) -> None:
        """Forced emulation, or #UD."""
        current = self.current
        if not emulate_invalid_op(current):
            traps.inject(current, flags.UD)

    def cpuid(self) -> bool:
        """CPUID without the prefix: the same model, or #GP where the guest asked for faulting."""
        current = self.current
        if pv(current).cpuid_faulting and not pv(current).kernel_mode:
            return False
        cpuid.execute(current)
        return True


def _is_stack_fault(current: Current) -> bool:
    """Whether a #GP(0) is really a #SS: the engine has only #GP for non-canonical stacks."""
    return not is_canonical(current.cpu.regs[Reg.RSP])


