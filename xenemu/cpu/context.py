"""A vcpu's registers, by name, while another vcpu is in the CPU.

Plain data: there is no pointer in it, and nothing of the engine's own layout. Unicorn derives some
state from registers: the mode, armed breakpoints, rounding. That state is derived anew when a
context is loaded. `Registers.store` makes a context, `Registers.load` takes one.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenemu.hv.cpu import Seg, Segment, Undefined
from xenemu.x86 import msr, segment


@dataclass(frozen=True)
class Interrupts:
    """What waits to be delivered, and what keeps it from that.

    * `shadow` is the shadow of STI and MOV SS.
    * `debug_hits` has a bit for each of DR0 to DR3 whose access has happened while its #DB still
      waits. With `debug_held`, the #DB waits until the instruction after MOV SS.
    * `apic_vector` is the local APIC's next interrupt. `apic_accepted` is the last interrupt that
      the CPU took and the APIC does not know of.
    * `callback_vector` is Xen's callback. It is raised while the byte at the machine address
      `upcall` is set.
    """

    halted: bool = False
    requested: bool = False
    nmi: bool = False
    nmi_blocked: bool = False
    shadow: bool = False
    debug_hits: int = 0
    debug_held: bool = False
    apic_vector: int | None = None
    apic_accepted: int | None = None
    callback_vector: int | None = None
    upcall: int | None = None


@dataclass(frozen=True)
class Context:
    """All registers of a vcpu, and what else a CPU tells of it alone.

    It is read as a `hv.cpu.Cpu` is, so that a report can look at a vcpu that is not in the CPU.

    * `general` has the order of `hv.cpu.Reg`, and `segments` that of `Seg`. `debug` are DR0 to DR7.
    * `cpl` need not be the DPL of CS, since a conforming segment has another.
    * `msrs`, by number, are those MSRs that the CPU keeps and no other field has.
    * `fpu` is the state of x87, MMX and SSE as FXSAVE64 writes it (Intel SDM volume 1, section
      10.5.1), 512 bytes.
    * `undefined` is the last instruction that the CPU did not know, and `delivered` the kind and
      the vector of what the CPU was to deliver last: a report asks for both.
    """

    general: tuple[int, ...]
    rip: int
    rflags: int
    segments: tuple[Segment, ...]
    cpl: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    debug: tuple[int, ...]
    msrs: dict[int, int]
    fpu: bytes
    interrupts: Interrupts
    undefined: Undefined | None = None
    delivered: tuple[int, int] = (0, 0)

    @property
    def regs(self) -> tuple[int, ...]:
        return self.general

    def segment(self, which: Seg) -> Segment:
        return self.segments[which]

    def selector(self, which: Seg) -> int:
        return self.segments[which].selector

    @property
    def apic_vector(self) -> int | None:
        return self.interrupts.apic_vector

    @property
    def code64(self) -> bool:
        long_mode = self.efer & msr.EFER_LMA
        return bool(long_mode and self.segments[Seg.CS].attributes & segment.L)
