"""Why a PV guest is crashed when its kernel is entered or left, and what its author can do.

In Xen: arch/x86/x86_64/entry.S and arch/x86/x86_64/compat/entry.S (asm_domain_crash_synchronous),
arch/x86/pv/iret.c
"""

from __future__ import annotations

from xenemu.errors import DomainCrash, XenError
from xenemu.hv.current import Current


def no_handler(current: Current, what: str) -> DomainCrash:
    """An exception or event comes for which nothing is registered."""
    return DomainCrash(
        f"{what} at {current.cpu.rip:#x}, but the guest has no handler for it",
        "register handlers before anything can fault or an event can come: exceptions with"
        " HYPERVISOR_set_trap_table, events with HYPERVISOR_set_callbacks or CALLBACKOP_register;"
        " the registers and the backtrace show what happened first",
    )


def no_frame(what: str, error: XenError) -> DomainCrash:
    """The kernel's stack takes no bounce frame."""
    return DomainCrash(
        f"{what}: no frame on the guest's kernel stack: {error.reason}",
        "Xen writes the frame below %rsp if it interrupts the kernel, else below the stack of the"
        " last HYPERVISOR_stack_switch, which must be mapped writable: did the stack overflow, or"
        " was it unmapped or made read-only? (a PV kernel has no other stack for double faults)",
    )


def no_iret_frame(error: XenError, where: str = "stack") -> DomainCrash:
    """HYPERVISOR_iret finds nothing to return by."""
    return DomainCrash(
        f"iret: no frame on the guest's {where}: {error.reason}",
        "HYPERVISOR_iret returns by the frame at the stack pointer, which is that of the entry with"
        " a word of flags and the stub's own on top: is the stack pointer what it was?",
    )
