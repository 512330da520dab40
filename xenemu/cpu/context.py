"""A vcpu's registers, by name, while another vcpu is in the CPU.

Plain data: there is no pointer in it, and nothing of the engine's own layout. Unicorn derives some
state from registers: the mode, armed breakpoints, rounding. That state is derived anew when a
context is loaded. `Registers.store` makes a context, `Registers.load` takes one.

The shim reads and writes all registers at once, as one struct (`registers` in native/shared.def).
`Packed` is that struct. A switch of vcpus needs no more, and only who looks at a vcpu by name needs
a `Context`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from xenemu.cpu import shim
from xenemu.hv.cpu import Seg, Segment, Undefined
from xenemu.records import dataclass
from xenemu.x86 import msr, segment

# The MSRs that the CPU keeps, in the order of context.c's `msr_places`.
MSRS = (
    msr.IA32_SYSENTER_CS,
    msr.IA32_SYSENTER_ESP,
    msr.IA32_SYSENTER_EIP,
    msr.IA32_CR_PAT,
    msr.STAR,
    msr.LSTAR,
    msr.CSTAR,
    msr.FMASK,
    msr.KERNEL_GS_BASE,
    msr.TSC_AUX,
)
NOWHERE = (1 << 64) - 1


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
        vector = self.interrupts.apic_vector
        return None if vector is None else vector & 0xFF

    @property
    def code64(self) -> bool:
        long_mode = self.efer & msr.EFER_LMA
        return bool(long_mode and self.segments[Seg.CS].attributes & segment.L)


@dataclass(frozen=True)
class Packed:
    """All registers of a vcpu as the shim packs them. It is read as a `Context` is."""

    data: bytes

    @property
    def context(self) -> Context:
        """The registers by name."""
        return unpack(self.data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.context, name)


def by_name(kept: Packed | Context) -> Context:
    """The registers by name, in whatever form they are kept."""
    return kept.context if isinstance(kept, Packed) else kept


@lru_cache(maxsize=8)
def unpack(data: bytes) -> Context:
    """The registers by name."""
    loaded = shim.load()
    r, at = type(loaded.registers).from_buffer_copy(data), loaded.constants
    parts = zip(r.selectors, r.bases, r.limits, r.attributes, strict=True)
    waits, code = r.waits, bytes(r.undefined_code[: r.undefined_bytes])
    return Context(
        general=tuple(r.general),
        rip=r.rip,
        rflags=r.rflags,
        segments=tuple([Segment(*part) for part in parts]),
        cpl=r.cpl,
        cr0=r.cr0,
        cr2=r.cr2,
        cr3=r.cr3,
        cr4=r.cr4,
        efer=r.efer,
        debug=tuple(r.debug),
        msrs=dict(zip(MSRS, r.msrs, strict=True)),
        fpu=bytes(r.fpu),
        interrupts=Interrupts(
            halted=bool(waits & at.WAITS_HALTED),
            requested=bool(waits & at.WAITS_REQUESTED),
            nmi=bool(waits & at.WAITS_NMI),
            nmi_blocked=bool(waits & at.WAITS_NMI_BLOCKED),
            shadow=bool(waits & at.WAITS_SHADOW),
            debug_hits=r.debug_hits,
            debug_held=bool(waits & at.WAITS_DEBUG_HELD),
            apic_vector=_or_none(r.apic_vector, at.NO_VECTOR),
            apic_accepted=_or_none(r.apic_accepted, at.NO_VECTOR),
            callback_vector=_or_none(r.callback_vector, at.NO_VECTOR),
            upcall=_or_none(r.upcall, NOWHERE),
        ),
        undefined=Undefined(r.undefined_rip, r.undefined_bits, code) if r.undefined_bits else None,
        delivered=(r.delivered_kind, r.delivered_vector),
    )


def pack(context: Context) -> bytes:
    """The registers as `unpack` takes them."""
    loaded = shim.load()
    r, at = type(loaded.registers)(), loaded.constants
    waits, found = context.interrupts, context.undefined
    r.general[:] = context.general
    for i, part in enumerate(context.segments):
        r.selectors[i], r.bases[i] = part.selector, part.base
        r.limits[i], r.attributes[i] = part.limit, part.attributes
    for name in ("rip", "rflags", "cpl", "cr0", "cr2", "cr3", "cr4", "efer"):
        setattr(r, name, getattr(context, name))
    r.debug[:] = context.debug
    r.msrs[:] = [context.msrs[number] for number in MSRS]
    r.fpu[:] = context.fpu
    bits = {
        at.WAITS_HALTED: waits.halted,
        at.WAITS_REQUESTED: waits.requested,
        at.WAITS_NMI: waits.nmi,
        at.WAITS_NMI_BLOCKED: waits.nmi_blocked,
        at.WAITS_SHADOW: waits.shadow,
        at.WAITS_DEBUG_HELD: waits.debug_held,
    }
    r.waits = sum(bit for bit, waiting in bits.items() if waiting)
    r.debug_hits = waits.debug_hits
    r.apic_vector = at.NO_VECTOR if waits.apic_vector is None else waits.apic_vector
    r.apic_accepted = at.NO_VECTOR if waits.apic_accepted is None else waits.apic_accepted
    r.callback_vector = at.NO_VECTOR if waits.callback_vector is None else waits.callback_vector
    r.upcall = NOWHERE if waits.upcall is None else waits.upcall
    if found:
        r.undefined_bits, r.undefined_rip = found.bits, found.rip
        r.undefined_bytes = len(found.code)
        r.undefined_code[: len(found.code)] = found.code
    r.delivered_kind, r.delivered_vector = context.delivered
    return bytes(r)


def _or_none(number: int, none: int) -> int | None:
    return None if number == none else number
