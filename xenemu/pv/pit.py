"""Channel 2 of the PIT, which kernels use to measure time; no interrupt comes from it.

Intel 8254 data sheet. In Xen: arch/x86/emul-i8254.c.
"""

from __future__ import annotations

from dataclasses import dataclass

COUNTER_2, CONTROL, SPEAKER = 0x42, 0x43, 0x61
PIT_PORTS = frozenset({COUNTER_2, CONTROL, SPEAKER})
FREQUENCY_HZ = 1193182

ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH = 1, 2, 3
SPEAKER_GATE, SPEAKER_DATA, SPEAKER_OUT = 1 << 0, 1 << 1, 1 << 5


@dataclass
class Pit:
    """The channel's state; times are virtual nanoseconds."""

    mode: int = 0
    access: int = ACCESS_BOTH
    reload: int = 0x10000
    loaded_ns: int = 0
    latched: int | None = None
    low_byte: int | None = None  # written, waiting for the high one
    high_next: bool = False  # the next read gives the high byte
    speaker: int = 0

    def _elapsed(self, now_ns: int) -> int:
        return (now_ns - self.loaded_ns) * FREQUENCY_HZ // 1_000_000_000

    def _count(self, now_ns: int) -> int:
        ticks = self._elapsed(now_ns)
        if self.mode in (2, 3):
            return self.reload - ticks * (2 if self.mode == 3 else 1) % self.reload
        return (self.reload - ticks) & 0xFFFF

    def _out(self, now_ns: int) -> bool:
        ticks = self._elapsed(now_ns)
        if self.mode == 0:
            return ticks >= self.reload
        if self.mode == 3:
            return ticks % self.reload < (self.reload + 1) // 2
        return ticks % self.reload != self.reload - 1

    def read(self, port: int, now_ns: int) -> int:
        """Read one of PIT_PORTS."""
        if port == SPEAKER:
            return self.speaker | (SPEAKER_OUT if self._out(now_ns) else 0)
        if port == CONTROL:
            return 0xFF
        value = self._count(now_ns) if self.latched is None else self.latched
        if self.access == ACCESS_BOTH:
            high, self.high_next = self.high_next, not self.high_next
        else:
            high = self.access == ACCESS_HIGH
        if not self.high_next:
            self.latched = None
        return value >> 8 & 0xFF if high else value & 0xFF

    def write(self, port: int, value: int, now_ns: int) -> None:
        """Write one of PIT_PORTS."""
        if port == SPEAKER:
            if value & ~self.speaker & SPEAKER_GATE:
                self.loaded_ns = now_ns  # a rising gate restarts the count
            self.speaker = value & (SPEAKER_GATE | SPEAKER_DATA)
        elif port == CONTROL:
            self._control(value, now_ns)
        else:
            self._load(value, now_ns)

    def _control(self, value: int, now_ns: int) -> None:
        if value >> 6 != 2:  # another channel, or the read-back command
            return
        access = value >> 4 & 3
        if not access:
            self.latched = self._count(now_ns)
            return
        self.access, self.mode = access, min(value >> 1 & 7, 5)
        self.low_byte, self.high_next, self.latched = None, False, None

    def _load(self, value: int, now_ns: int) -> None:
        if self.access == ACCESS_BOTH:
            if self.low_byte is None:
                self.low_byte = value
                return
            value = value << 8 | self.low_byte
            self.low_byte = None
        elif self.access == ACCESS_HIGH:
            value <<= 8
        self.reload, self.loaded_ns = value or 0x10000, now_ns
