"""How much of a guest's time the hypervisor's work and its exits take.

Virtual time is the guest's instructions, a nanosecond each, and a fixed price for each thing that
is no plain instruction. The price is what the thing costs on a real machine under Xen, rounded. So
a guest's clock tells it what a real one would. For example, a guest that polls with SCHEDOP_yield
gets some 9,000 calls into 20 ms, and a loop that waits by PAUSE and the TSC turns as often as on a
CPU. Time remains a function of what the guest does alone. Nothing here is measured while the guest
runs.

The count of instructions is a count of instructions: no price is in it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class Exit(Enum):
    """Ways from a guest to the hypervisor, and instructions, that have a price."""

    # Of PV guests.
    EXCEPTION = auto()  # and of those, page faults
    SOFT_INT = auto()  # a 32-bit guest's hypercalls, too
    UNDEFINED = auto()
    SYSCALL = auto()  # a hypercall, or a system call that Xen hands to the kernel
    SYSENTER = auto()
    # Of PVH guests.
    VMCALL = auto()
    RDMSR = auto()
    WRMSR = auto()
    LOAD = auto()  # where no memory is; the local APIC's page, too
    STORE = auto()
    DELIVERY = auto()  # of an exception by the guest's own IDT: the CPU's work, no exit
    # Of both.
    CPUID = auto()
    IN = auto()
    OUT = auto()
    PAUSE = auto()


# A PV guest traps into Xen; a PVH guest's exit switches the whole VMCS, which takes longer.
PRICES_NS: Final = {
    Exit.EXCEPTION: 400,
    Exit.SOFT_INT: 200,
    Exit.UNDEFINED: 400,
    Exit.SYSCALL: 150,
    Exit.SYSENTER: 150,
    Exit.VMCALL: 1_000,
    Exit.RDMSR: 1_000,
    Exit.WRMSR: 1_000,
    Exit.LOAD: 2_000,
    Exit.STORE: 2_000,
    Exit.DELIVERY: 100,
    Exit.CPUID: 1_000,
    Exit.IN: 1_000,
    Exit.OUT: 1_000,
    Exit.PAUSE: 140,  # on Skylake and later; it was 10 before
}

EMULATION_NS: Final = 1_000  # an instruction that Xen reads, decodes and does itself
YIELD_NS: Final = 2_000  # the scheduler is asked, and finds nobody else
WORK_NS: Final = 20  # a unit of `Frames.work_left`: about an entry of a table looked at
