"""A vcpu's registers, by name, while another vcpu is in the CPU.

Plain data: no pointer, nothing of the engine's own layout. What Unicorn derives of registers (the
mode, armed breakpoints, rounding) is derived anew when a context is loaded. `Registers.store` makes
one, `Registers.load` takes one.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenemu.hv.cpu import Segment


@dataclass(frozen=True)
class Interrupts:
    """What waits to be delivered, and what keeps it from that.

    `shadow` is that of STI and MOV SS. `debug_hits` has a bit for each of DR0 to DR3 whose access
    was met, while its #DB waits; it is `debug_held` until the instruction after MOV SS.
    `apic_vector` is the local APIC's next interrupt, `apic_accepted` the last that the CPU took and
    the APIC does not know of. `callback_vector` is Xen's callback, raised while the byte at the
    machine address `upcall` is set.
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
    """All registers of a vcpu.

    `general` are in the order of `hv.cpu.Reg`, `segments` in that of `Seg`, `debug` are DR0 to DR7.
    `cpl` need not be the DPL of CS: a conforming segment has another. `msrs` are those that the CPU
    keeps and no other field has, by number. `fpu` is the x87, MMX and SSE state as FXSAVE64 writes
    it (Intel SDM volume 1, section 10.5.1), 512 bytes.
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
