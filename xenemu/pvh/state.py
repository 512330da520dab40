"""The private state of PVH domains and vcpus. Plain data.

In Xen: include/asm-x86/hvm/domain.h, include/asm-x86/hvm/vcpu.h
"""

from __future__ import annotations

from dataclasses import field
from typing import Protocol

from xenemu.hv.cpu import Seg, Segment
from xenemu.hv.current import Current
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pvh.lapic import Lapic
from xenemu.pvh.mtrr import Mtrrs
from xenemu.records import dataclass


@dataclass(frozen=True)
class StartState:
    """Where a vcpu starts, and where the data begins that it is told of; both are physical."""

    ip: int
    info: int


class Firmware(Protocol):
    """What runs below the kernel, and answers some of its VMCALLs."""

    def answers(self, current: Current) -> bool:
        """Serve the VMCALL before RIP, if it is the firmware's; whether it was."""


@dataclass(frozen=True)
class StartContext:
    """What a vcpu starts with that another vcpu has brought up.

    `general` are the first registers of `hv.cpu.Reg`; the others are 0. Without an `fpu`, which is
    as FXSAVE64 writes it, x87 and SSE are as the vcpu left them.
    """

    general: tuple[int, ...]
    rip: int
    rflags: int
    segments: dict[Seg, Segment]
    cr0: int
    cr3: int
    cr4: int
    efer: int
    fpu: bytes | None = None


@dataclass
class PvhDomain:
    """What Xen keeps for a PVH domain: HVM_PARAM_* by index, and the way it hears of events.

    * `callback_vector` is the vector of HVM_PARAM_CALLBACK_IRQ, or None if that names no vector.
    * `had_idt` says that the kernel was once seen with gates in its IDT (pvh/reset.py).
    * `last_lowest` is the vcpu that had the last IPI of lowest priority; the next such IPI looks at
      that vcpu last.
    """

    params: dict[int, int] = field(default_factory=dict)
    callback_vector: int | None = None
    had_idt: bool = False
    last_lowest: int = 0
    firmware: Firmware | None = None


@dataclass
class PvhVcpu:
    """What Xen keeps for a PVH vcpu.

    * `entry` is where vcpu 0 starts.
    * `start` is what another vcpu starts with when it next comes into the CPU.
    * `upcall_vector` is HVMOP_set_evtchn_upcall_vector's, or 0.
    * `nmi_pending` says that an NMI came while another vcpu was in the CPU.
    """

    lapic: Lapic
    entry: StartState | None = None
    start: StartContext | None = None
    upcall_vector: int = 0
    nmi_pending: bool = False
    mtrrs: Mtrrs = field(default_factory=Mtrrs)


def pvh_vcpu(vcpu: Vcpu) -> PvhVcpu:
    """A vcpu's PVH state."""
    assert isinstance(vcpu.arch, PvhVcpu)
    return vcpu.arch


def pvh(current: Current) -> PvhVcpu:
    """The current vcpu's PVH state."""
    return pvh_vcpu(current.vcpu)


def pvh_domain(current: Current) -> PvhDomain:
    """The current domain's PVH state."""
    state = current.domain.arch
    assert isinstance(state, PvhDomain)
    return state
