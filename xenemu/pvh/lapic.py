"""The local APIC that a PVH vcpu has. Plain data: no engine, no domain.

A register is named by its number: its xAPIC offset >> 4, its x2APIC MSR - 0x800. For example, the
task priority is register 8: offset 0x80, MSR 0x808. Registers live in `Lapic.regs`, except for
those that are derived from other state:

* ISR and IRR, which are 256-bit integers;
* PPR;
* the timer's current count, which follows from virtual time.

TMR is always 0, because a PVH domain has no IO-APIC and so no level-triggered source.

The timer ticks at 100 MHz over its divider. Two times describe it: `counting_from_ns`, when its
count began, and the next `expiry_ns`. The count at any time follows from the first.

In Xen: arch/x86/hvm/vlapic.c; the periodic timer, arch/x86/hvm/vpt.c.
Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from xenemu.x86.msr import APIC_BASE_BSP, APIC_BASE_DEFAULT

VERSION = 0x50014  # version 0x14, 6 LVT entries
BUS_CYCLE_NS = 10
MIN_PERIOD_NS = 100_000  # Xen ticks no faster than every 0.1 ms
FIRST_VECTOR = 16  # those below are illegal in an interrupt message

X2APIC_FIRST = 0x800

APIC_BASE_EXTD = 1 << 10  # x2APIC mode
APIC_BASE_ENABLE = 1 << 11
APIC_BASE_ADDR = 0x000F_FFFF_FFFF_F000

# Register numbers, with Xen's names.
ID = 0x02
LVR = 0x03
TASKPRI = 0x08
PROCPRI = 0x0A
EOI = 0x0B
LDR = 0x0D
DFR = 0x0E
SPIV = 0x0F
ISR = 0x10  # ISR, TMR and IRR have 8 registers each
TMR = 0x18
IRR = 0x20
ESR = 0x28
CMCI = 0x2F
ICR = 0x30
ICR2 = 0x31
LVTT = 0x32
LVTTHMR = 0x33
LVTPC = 0x34
LVT0 = 0x35
LVT1 = 0x36
LVTERR = 0x37
TMICT = 0x38
TMCCT = 0x39
TDCR = 0x3E
SELF_IPI = 0x3F

VECTOR = 0xFF
DELIVERY_MODE = 7 << 8
LOGICAL = 1 << 11
BUSY = 1 << 12  # ICR and LVT: delivery status
POLARITY = 1 << 13
ASSERT = 1 << 14  # ICR; in an LVT, remote IRR
LEVEL = 1 << 15
SHORTHAND = 3 << 18
LVT_MASKED = 1 << 16
LVT_PERIODIC = 1 << 17
SPIV_ENABLED = 1 << 8
SPIV_BITS = 0x3FF
DIVIDE_BITS = 0b1011
DFR_FLAT = 0xFFFFFFFF
DFR_CLUSTER = 0x0FFFFFFF
ESR_SEND_ILLEGAL = 1 << 5
ESR_RECEIVE_ILLEGAL = 1 << 6

_LVT = LVT_MASKED | BUSY | VECTOR
_LVT_MODE = _LVT | DELIVERY_MODE
_LVT_LINT = _LVT_MODE | POLARITY | ASSERT | LEVEL

# The bits that a guest can set. Delivery status and remote IRR are among them, as in Xen.
# DIVERGES: TSC-deadline mode is not offered in CPUID, so its bit, 18, is reserved; Xen's
# mask has it even then.
LVT_BITS = {
    LVTT: _LVT | LVT_PERIODIC,
    LVTTHMR: _LVT_MODE,
    LVTPC: _LVT_MODE,
    LVT0: _LVT_LINT,
    LVT1: _LVT_LINT,
    LVTERR: _LVT,
}

# What RDMSR reads, and the bits that WRMSR may set without #GP, in x2APIC mode. The count
# is the one register of which Xen does not check the upper half.
X2APIC_READABLE = frozenset(
    (ID, LVR, TASKPRI, PROCPRI, LDR, SPIV, ESR, ICR, CMCI, *LVT_BITS, TMICT, TMCCT, TDCR)
) | frozenset(range(ISR, IRR + 8))
X2APIC_WRITABLE = LVT_BITS | {
    TASKPRI: 0xFF,
    EOI: 0,
    SPIV: SPIV_BITS,
    ESR: 0,
    CMCI: _LVT_MODE,
    ICR: 0xFFFFFFFF << 32 | VECTOR | DELIVERY_MODE | LOGICAL | ASSERT | LEVEL | SHORTHAND,
    TMICT: 0xFFFFFFFF_FFFFFFFF,
    TDCR: DIVIDE_BITS,
    SELF_IPI: VECTOR,
}


class Delivery(IntEnum):
    """What an IPI does: bits 10:8 of the ICR.

    Xen ignores SMI and REMOTE_READ, and crashes the domain if an EXTINT has a destination.
    """

    FIXED = 0
    LOWEST = 1
    SMI = 2
    REMOTE_READ = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Shorthand(IntEnum):
    """To whom an IPI goes: bits 19:18 of the ICR."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


_DELIVERIES = tuple(Delivery)
_SHORTHANDS = tuple(Shorthand)


@dataclass(frozen=True, slots=True)
class Ipi:
    """An interrupt that one local APIC sends. A STARTUP's vector is the page to start at."""

    kind: Delivery
    vector: int
    destination: int  # APIC ID or logical mask: 8 bits, or 32 if sent in x2APIC mode
    logical: bool = False
    shorthand: Shorthand = Shorthand.NONE


@dataclass
class Lapic:
    """The local APIC of one vcpu, at first as after reset; `apic_id` is twice the vcpu's number."""

    apic_id: int
    apic_base: int = field(init=False)  # IA32_APIC_BASE
    regs: list[int] = field(init=False)
    irr: int = field(init=False)  # requested: bit n is vector n
    isr: int = field(init=False)  # in service
    errors: int = field(init=False)  # not yet latched into ESR
    counting_from_ns: int | None = field(init=False)  # None: the timer is stopped
    expiry_ns: int | None = field(init=False)
    ticks_owed: int = field(init=False)  # periodic ticks that came while one was requested

    def __post_init__(self) -> None:
        self.reset()

    # -- State

    def reset(self) -> None:
        """Return to the state after power-up: xAPIC mode, software-disabled."""
        self.apic_base = APIC_BASE_DEFAULT | (0 if self.apic_id else APIC_BASE_BSP)
        self.regs = [0] * (TDCR + 1)
        self.regs[ID] = self.apic_id << 24 & 0xFFFFFFFF
        self.init()

    def init(self) -> None:
        """Reset as INIT does: all but the mode, the ID and, in x2APIC mode, the LDR."""
        kept_id, kept_ldr = self.regs[ID], self.regs[LDR]
        self.regs = [0] * (TDCR + 1)
        self.regs[ID] = kept_id
        self.regs[LDR] = kept_ldr if self.x2apic else 0
        self.regs[LVR] = VERSION
        self.regs[DFR] = DFR_FLAT
        self.regs[SPIV] = 0xFF
        for reg in LVT_BITS:
            self.regs[reg] = LVT_MASKED
        self.irr = 0
        self.isr = 0
        self.errors = 0
        self._arm(0, 0)

    @property
    def x2apic(self) -> bool:
        """Whether the registers are MSRs."""
        return bool(self.apic_base & APIC_BASE_EXTD)

    @property
    def mmio_base(self) -> int | None:
        """Where the registers' page is, or None if there is none: in x2APIC mode or disabled."""
        if self.apic_base & (APIC_BASE_ENABLE | APIC_BASE_EXTD) != APIC_BASE_ENABLE:
            return None
        return self.apic_base & APIC_BASE_ADDR

    @property
    def enabled(self) -> bool:
        """Enabled both by IA32_APIC_BASE and by the spurious vector register."""
        return bool(self.apic_base & APIC_BASE_ENABLE and self.regs[SPIV] & SPIV_ENABLED)

    @property
    def ppr(self) -> int:
        """The processor priority: the task's, or the class in service if that is higher."""
        tpr = self.regs[TASKPRI]
        in_service = (self.isr.bit_length() - 1) & 0xF0 if self.isr else 0
        return tpr if tpr & 0xF0 >= in_service else in_service

    def set_apic_base(self, value: int) -> bool:
        """Write IA32_APIC_BASE; False, with nothing changed, is #GP.

        Refused are a reserved bit, an xAPIC page that is not at its default, and x2APIC mode if it
        is entered from disabled, or left for xAPIC mode. (SDM, "x2APIC State Transitions".)
        """
        if value & ~(APIC_BASE_ADDR | APIC_BASE_ENABLE | APIC_BASE_EXTD | APIC_BASE_BSP):
            return False
        enable, extd = value & APIC_BASE_ENABLE, value & APIC_BASE_EXTD
        if enable and not extd and (value ^ APIC_BASE_DEFAULT) & APIC_BASE_ADDR:
            return False
        changed = self.apic_base ^ value
        if changed & APIC_BASE_ENABLE:
            if extd:
                return False
            if enable:
                self.reset()
        elif changed & APIC_BASE_EXTD and self.mmio_base is None:
            return False
        self.apic_base = value
        if extd:
            # From the vcpu's number; the SDM and later Xens take it from the APIC ID.
            vcpu_id = self.apic_id >> 1
            self.regs[ID] = self.apic_id
            self.regs[LDR] = (vcpu_id & ~0xF) << 12 | 1 << (vcpu_id & 0xF)
        return True

    # -- Interrupts

    def assert_vector(self, vector: int) -> None:
        """Request an edge-triggered interrupt, even if disabled; below 16 is an error instead."""
        if vector < FIRST_VECTOR:
            self._error(ESR_RECEIVE_ILLEGAL)
        else:
            self.irr |= 1 << vector

    def pending_vector(self) -> int | None:
        """The interrupt that the CPU should take next, or None."""
        if not self.irr:
            return None
        vector, urgent = self.irr.bit_length() - 1, self.isr.bit_length() - 1
        if vector & 0xF0 <= max(self.regs[TASKPRI], urgent) & 0xF0:
            return None
        return vector if self.enabled else None

    def has_only(self, vector: int) -> bool:
        """Whether a requested interrupt is all that there is until it is ended, by an MSR."""
        return self.irr == 1 << vector and not (self.isr or self.ticks_owed) and self.x2apic

    def end(self) -> None:
        """End the interrupt in service that is the most urgent: a write to EOI."""
        if self.isr:
            self.isr ^= 1 << (self.isr.bit_length() - 1)

    def accept(self, vector: int) -> None:
        """Put an interrupt that the CPU takes in service."""
        bit = 1 << vector
        self.isr |= bit
        self.irr &= ~bit
        if self.ticks_owed and vector == self.regs[LVTT] & VECTOR:
            self.ticks_owed -= 1
            self.irr |= bit

    def _error(self, error: int) -> None:
        # LVTERR itself may have an illegal vector: it is then one more error, not a loop.
        if self.errors & error:
            return
        self.errors |= error
        entry = self.regs[LVTERR]
        if not entry & LVT_MASKED:
            if entry & VECTOR < FIRST_VECTOR:
                self.errors |= ESR_RECEIVE_ILLEGAL
            else:
                self.irr |= 1 << (entry & VECTOR)

    def _send(self, command: int) -> list[Ipi]:
        command &= ~BUSY  # sent at once
        self.regs[ICR] = command
        kind = _DELIVERIES[command >> 8 & 7]
        vector = command & VECTOR
        if vector < FIRST_VECTOR and kind <= Delivery.LOWEST:
            self._error(ESR_SEND_ILLEGAL)
            return []
        if kind is Delivery.INIT and command & (LEVEL | ASSERT) == LEVEL:
            return []  # de-assert: of no effect since the Pentium 4
        return [
            Ipi(
                kind,
                vector,
                self.regs[ICR2] if self.x2apic else self.regs[ICR2] >> 24,
                bool(command & LOGICAL),
                _SHORTHANDS[command >> 18 & 3],
            )
        ]

    # -- Registers

    def read(self, offset: int, now_ns: int) -> int:
        """Read the register at a 16-byte aligned offset in the xAPIC page; reserved ones are 0."""
        return self._read(offset >> 4, now_ns)

    def write(self, offset: int, value: int, now_ns: int) -> list[Ipi]:
        """Write a register of the xAPIC page, and return what is to be sent.

        Read-only and reserved registers ignore it.
        """
        return self._write(offset >> 4, value & 0xFFFFFFFF, now_ns)

    def read_msr(self, msr: int, now_ns: int) -> int | None:
        """Read an x2APIC MSR; None is #GP: not in x2APIC mode, write-only or reserved."""
        reg = msr - X2APIC_FIRST
        if not self.x2apic or reg not in X2APIC_READABLE:
            return None
        high = self.regs[ICR2] << 32 if reg == ICR else 0
        return high | self._read(reg, now_ns)

    def write_msr(self, msr: int, value: int, now_ns: int) -> list[Ipi] | None:
        """Write an x2APIC MSR, and return what is to be sent.

        None, with nothing changed, is #GP: not in x2APIC mode, a read-only or reserved
        register, or a reserved bit.
        """
        reg = msr - X2APIC_FIRST
        allowed = X2APIC_WRITABLE.get(reg)
        if not self.x2apic or allowed is None or value & ~allowed:
            return None
        if reg == ICR:
            self.regs[ICR2] = value >> 32
        elif reg == SELF_IPI:
            return self._send(Shorthand.SELF << 18 | value)
        return self._write(reg, value & 0xFFFFFFFF, now_ns)

    def _read(self, reg: int, now_ns: int) -> int:
        if reg > TDCR:
            return 0
        if ISR <= reg < IRR + 8:
            return self._read_vectors(reg)
        if reg == TMCCT:
            return self._current_count(now_ns)
        if reg == PROCPRI:
            return self.ppr
        return self.regs[reg]

    def _read_vectors(self, reg: int) -> int:
        if TMR <= reg < IRR:
            return 0
        vectors = self.isr if reg < TMR else self.irr
        return vectors >> 32 * (reg & 7) & 0xFFFFFFFF

    def _write(self, reg: int, value: int, now_ns: int) -> list[Ipi]:
        if reg == EOI:
            self.end()
        elif reg == ICR:
            return self._send(value)
        elif reg == TASKPRI:
            self.regs[TASKPRI] = value & 0xFF
        elif reg == ICR2:
            self.regs[ICR2] = value & 0xFF000000
        elif reg in LVT_BITS:
            self._write_lvt(reg, value, now_ns)
        elif reg == TMICT:
            self.regs[TMICT] = value
            self._arm(now_ns, self._period_ns)
        elif reg == TDCR:
            self._write_divider(value, now_ns)
        else:
            self._write_setup(reg, value)
        return []

    def _write_setup(self, reg: int, value: int) -> None:
        if reg == ID:
            self.regs[ID] = value
        elif reg == LDR:
            self.regs[LDR] = value & 0xFF000000
        elif reg == DFR:
            self.regs[DFR] = value | 0x0FFFFFFF
        elif reg == SPIV:
            self.regs[SPIV] = value & SPIV_BITS
            if not value & SPIV_ENABLED:
                for entry in LVT_BITS:
                    self.regs[entry] |= LVT_MASKED
        elif reg == ESR:
            # DIVERGES: as the SDM and Xen 4.20 have it; before, Xen showed an error at once,
            # and for ever, as it ignored writes.
            self.regs[ESR] = self.errors
            self.errors = 0

    def _write_lvt(self, reg: int, value: int, now_ns: int) -> None:
        if not self.regs[SPIV] & SPIV_ENABLED:
            value |= LVT_MASKED
        remaining_ns = self._remaining_ns(now_ns) if reg == LVTT else 0
        self.regs[reg] = value & LVT_BITS[reg]
        if reg == LVTT:
            self._arm(now_ns, remaining_ns)

    # -- Timer

    @property
    def _divisor(self) -> int:
        code = self.regs[TDCR]
        return 1 << ((code & 3 | code >> 1 & 4) + 1 & 7)

    @property
    def _period_ns(self) -> int:
        return self.regs[TMICT] * BUS_CYCLE_NS * self._divisor

    def _passed_ns(self, now_ns: int) -> int:
        """How long the present count has run; for a one-shot that expired, its whole period."""
        period_ns = self._period_ns
        if self.counting_from_ns is None:
            return period_ns
        passed_ns = now_ns - self.counting_from_ns
        if self.regs[LVTT] & LVT_PERIODIC:
            return passed_ns % period_ns
        return min(passed_ns, period_ns)

    def _remaining_ns(self, now_ns: int) -> int:
        """How long until the count is 0; 0 if stopped."""
        return self._period_ns - self._passed_ns(now_ns)

    def _current_count(self, now_ns: int) -> int:
        return self.regs[TMICT] - self._passed_ns(now_ns) // (BUS_CYCLE_NS * self._divisor)

    def _arm(self, now_ns: int, remaining_ns: int) -> None:
        """Let the count end in `remaining_ns`; 0 stops the timer until its count is written."""
        self.ticks_owed = 0
        if remaining_ns:
            self.expiry_ns = now_ns + remaining_ns
            self.counting_from_ns = self.expiry_ns - self._period_ns
        else:
            self.expiry_ns = None
            self.counting_from_ns = None

    def rearm(self, now_ns: int) -> None:
        """Begin the count anew, as Xen does for a vcpu that is restored (lapic_rearm)."""
        self._arm(now_ns, self._period_ns)

    def _write_divider(self, value: int, now_ns: int) -> None:
        """Change the divider: a running count keeps its value and goes on at the new rate."""
        remaining_ns, old_divisor = self._remaining_ns(now_ns), self._divisor
        self.regs[TDCR] = value & DIVIDE_BITS
        # Rounded up, so that the count stays as it is, and a running timer runs on.
        self._arm(now_ns, -(-remaining_ns * self._divisor // old_divisor))

    def deadline_ns(self) -> int | None:
        """When to call `fire_timer`, or None: stopped, or its interrupt would be lost.

        May change at any write and at `fire_timer`.
        """
        if self.regs[LVTT] & LVT_MASKED or not self.enabled:
            return None
        return self.expiry_ns

    def fire_timer(self, now_ns: int) -> None:
        """Request the timer's interrupt if it is due; further ticks while requested are owed."""
        expiry_ns = self.deadline_ns()
        if expiry_ns is None or now_ns < expiry_ns:
            return
        vector = self.regs[LVTT] & VECTOR
        if self.regs[LVTT] & LVT_PERIODIC:
            # DIVERGES: Xen adds half a period to the first, to keep the ticks off those of
            # other timers.
            period_ns = max(self._period_ns, MIN_PERIOD_NS)
            late = (now_ns - expiry_ns) // period_ns
            self.counting_from_ns = expiry_ns + late * period_ns
            self.expiry_ns = self.counting_from_ns + period_ns
            self.ticks_owed += late + (self.irr >> vector & 1)
        else:
            self.expiry_ns = None
        self.assert_vector(vector)


# -- Destinations


def destinations(ipi: Ipi, sender: Lapic, lapics: Sequence[Lapic], previous: int = 0) -> list[int]:
    """The positions in `lapics` that `ipi` reaches, in order.

    Fixed and lowest-priority interrupts reach only an enabled APIC. A lowest-priority interrupt
    reaches one of those with the lowest processor priority: the next after `previous`, which is
    where the last such interrupt in the domain went.
    """
    reached = [n for n, target in enumerate(lapics) if _matches(ipi, sender, target)]
    if ipi.kind <= Delivery.LOWEST:
        reached = [n for n in reached if lapics[n].enabled]
    if ipi.kind is Delivery.LOWEST and reached:
        count = len(lapics)
        return [min(reached, key=lambda n: (lapics[n].ppr, (n - previous - 1) % count))]
    return reached


def _matches(ipi: Ipi, sender: Lapic, target: Lapic) -> bool:
    if ipi.shorthand is Shorthand.NONE:
        if ipi.logical:
            return _matches_logical(ipi.destination, target)
        own = target.regs[ID]
        if target.x2apic:
            return ipi.destination in (own, 0xFFFFFFFF)
        return ipi.destination in (own >> 24, 0xFF)
    if ipi.shorthand is Shorthand.ALL:
        return True
    return (target is sender) == (ipi.shorthand is Shorthand.SELF)


def _matches_logical(mask: int, target: Lapic) -> bool:
    """SDM, "Determining IPI Destination": logical mode, flat, cluster and x2APIC."""
    own = target.regs[LDR]
    if target.x2apic:
        return own >> 16 == mask >> 16 and bool(own & mask & 0xFFFF)
    own, mask = own >> 24, mask & 0xFF
    if target.regs[DFR] == DFR_FLAT:
        return bool(own & mask)
    if target.regs[DFR] == DFR_CLUSTER:
        return own >> 4 == mask >> 4 and bool(own & mask & 0xF)
    return False
