"""Small hypercalls of PV guests: the kernel stack, FPU switching, debug registers, iret.

Header: public/xen.h. In Xen: arch/x86/pv/misc-hypercalls.c, arch/x86/pv/iret.c.
"""

from __future__ import annotations

from xenemu.abi.xen import Nr
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import INT, PV, ULONG, Hypercall
from xenemu.hv.segdesc import fixup_guest_selector
from xenemu.pv import debug_registers, traps
from xenemu.pv.emulate import set_guest_ts
from xenemu.pv.state import pv


def _stack_switch(current: Current, ss: int, esp: int) -> None:
    """Set the stack on which user mode enters the kernel."""
    state = pv(current)
    state.kernel_ss = fixup_guest_selector(ss & 0xFFFF, current.vcpu.width)
    state.kernel_sp = esp


def _fpu_taskswitch(current: Current, set_ts: int) -> None:
    """Set or clear the guest's CR0.TS."""
    set_guest_ts(current, bool(set_ts))


def _set_debugreg(current: Current, index: int, value: int) -> None:
    debug_registers.set_debugreg(current, index, value)


def _get_debugreg(current: Current, index: int) -> int:
    return debug_registers.get_debugreg(current, index)


def _iret(current: Current) -> int:
    """Leave the kernel; returns the RAX that the guest goes on with."""
    traps.iret(current)
    return current.cpu.regs[Reg.RAX]


stack_switch = Hypercall(Nr.stack_switch, "stack_switch", PV, (ULONG, ULONG), _stack_switch)
fpu_taskswitch = Hypercall(Nr.fpu_taskswitch, "fpu_taskswitch", PV, (INT,), _fpu_taskswitch)
set_debugreg = Hypercall(Nr.set_debugreg, "set_debugreg", PV, (INT, ULONG), _set_debugreg)
get_debugreg = Hypercall(Nr.get_debugreg, "get_debugreg", PV, (INT,), _get_debugreg)
iret = Hypercall(Nr.iret, "iret", PV, (), _iret)
