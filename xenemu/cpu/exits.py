"""Which of a handler's methods answers which kind of exit.

C and Python share the struct `exit`. The shim writes there what happened, and reads the answer from
there: see `shared.def`.
"""

from __future__ import annotations

from collections.abc import Callable

from xenemu.cpu.shim import Shim
from xenemu.hv.cpu import ExitHandler, Msr, NativeExitHandler

Exits = dict[int, Callable[[], None]]  # by kind


def pv_exits(shim: Shim, handler: ExitHandler) -> Exits:
    """The exits of a guest whose exceptions are all the hypervisor's."""
    kinds, shared = shim.constants, shim.exit

    def exception() -> None:
        handler.exception(shared.vector, shared.error)

    def software_interrupt() -> None:
        handler.software_interrupt(shared.vector, shared.size)

    def cpuid() -> None:
        if not handler.cpuid():
            shared.answer = kinds.REFUSED

    return {
        kinds.EXIT_EXCEPTION: exception,
        kinds.EXIT_SOFT_INT: software_interrupt,
        kinds.EXIT_UNDEFINED: handler.invalid_opcode,
        kinds.EXIT_SYSCALL: handler.syscall,
        kinds.EXIT_SYSENTER: handler.sysenter,
        kinds.EXIT_CPUID: cpuid,
    }


def native_exits(shim: Shim, handler: NativeExitHandler, ecx: Callable[[], int]) -> Exits:
    """The exits of a guest that runs natively; `ecx` reads that register."""
    kinds, shared = shim.constants, shim.exit
    answers = {Msr.REFUSED: kinds.REFUSED, Msr.NATIVE: kinds.NATIVE}

    def cpuid() -> None:
        if not handler.cpuid():
            shared.answer = kinds.REFUSED

    def rdmsr() -> None:
        answer = handler.read_msr(ecx())
        if isinstance(answer, Msr):
            shared.answer = answers[answer]
        else:
            shared.value = answer

    def wrmsr() -> None:
        refused = handler.write_msr(ecx(), shared.value)
        if refused:
            shared.answer = answers[refused]

    def read_cr8() -> None:
        shared.value = handler.read_cr8()

    def write_cr8() -> None:
        handler.write_cr8(shared.value)

    def port_in() -> None:
        shared.value = handler.read_port(shared.port, shared.size)

    def port_out() -> None:
        handler.write_port(shared.port, shared.size, shared.value)

    def load() -> None:
        shared.value = handler.read_apic(shared.port, shared.size)

    def store() -> None:
        handler.write_apic(shared.port, shared.size, shared.value)

    return {
        kinds.EXIT_VMCALL: handler.vmcall,
        kinds.EXIT_CPUID: cpuid,
        kinds.EXIT_RDMSR: rdmsr,
        kinds.EXIT_WRMSR: wrmsr,
        kinds.EXIT_READ_CR8: read_cr8,
        kinds.EXIT_WRITE_CR8: write_cr8,
        kinds.EXIT_IN: port_in,
        kinds.EXIT_OUT: port_out,
        kinds.EXIT_LOAD: load,
        kinds.EXIT_STORE: store,
    }
