"""I/O ports as a domU without devices sees them: nothing there, except PIT channel 2.

In Xen: arch/x86/pv/emul-priv-op.c (guest_io_read, guest_io_write), arch/x86/time.c
(pv_pit_handler).
"""

from __future__ import annotations

from xenemu.hv.domain import Current
from xenemu.pv.pit import PIT_PORTS
from xenemu.pv.state import pv_domain

ABSENT = 0xFF


def read(current: Current, port: int, size: int) -> int:
    """Read `size` bytes: all ones where nothing is, byte by byte."""
    pit, now = pv_domain(current).pit, current.cpu.now_ns
    value = 0
    for i in range(size):
        byte = pit.read(port + i, now) if port + i in PIT_PORTS else ABSENT
        value |= byte << 8 * i
    return value


def write(current: Current, port: int, size: int, value: int) -> None:
    """Write `size` bytes, which mostly goes nowhere."""
    pit, now = pv_domain(current).pit, current.cpu.now_ns
    for i in range(size):
        if port + i in PIT_PORTS:
            pit.write(port + i, value >> 8 * i & 0xFF, now)
