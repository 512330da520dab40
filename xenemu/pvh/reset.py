"""Resets by a triple fault: how a kernel reboots that knows no other way.

Such a kernel takes the gates away and then traps:

* FreeBSD, Linux with ``reboot=t`` and Xen itself load an IDT with the limit 0, and execute INT3.
* NetBSD clears every gate before INT3.
* OpenBSD clears every gate before a division by zero.

A kernel that merely faults before it has an IDT looks much the same, because a vcpu starts with the
limit 0. So three things make a reset. The first exception is a trap that a kernel makes on purpose;
UD2 is not such a trap, because Linux's BUG() has it. The IDT has no gate. And either an IDT with
gates was seen before, or the instruction before the trap is LIDT.

In FreeBSD: sys/x86/x86/cpu_machdep.c (cpu_reset_real). In Linux: arch/x86/kernel/reboot.c
(BOOT_TRIPLE). In NetBSD and OpenBSD: sys/arch/amd64/amd64/machdep.c (cpu_reset).
"""

from __future__ import annotations

import re
from typing import Final

from xenemu.errors import XenError
from xenemu.hv.cpu import Event, Seg
from xenemu.hv.current import Current
from xenemu.pvh.paging import cpu_of
from xenemu.pvh.state import pvh_domain

LONGEST_LIDT: Final = 16  # bytes, with its prefixes
EXCEPTIONS: Final = 32 * 8  # bytes of the first gates, that a kernel fills before all others
DE: Final = 0

# LIDT m (0F 01 /3), and what its address takes.
LIDT_BEFORE: Final = re.compile(rb"\x0f\x01[\x18-\x1f\x58-\x5f\x98-\x9f].{0,5}\Z", re.DOTALL)


def look_at_idt(current: Current) -> None:
    """Note whether the kernel has an IDT with gates; call this now and then, as the kernel runs."""
    state = pvh_domain(current)
    if not state.had_idt:
        state.had_idt = _has_gates(current)


def is_reset(current: Current) -> bool:
    """Whether the current vcpu made its triple fault on purpose, to reset."""
    cpu = cpu_of(current)
    event, vector = cpu.delivered.event, cpu.delivered.vector
    if event is not Event.INT_N and (event, vector) != (Event.EXCEPTION, DE):
        return False
    before = _read(current, cpu.segment(Seg.CS).base + cpu.rip - LONGEST_LIDT, LONGEST_LIDT)
    had_idt = pvh_domain(current).had_idt or LIDT_BEFORE.search(before)
    return bool(had_idt) and not _has_gates(current, whole=True)


def _has_gates(current: Current, whole: bool = False) -> bool:
    """Whether the IDT has a gate for an exception, or, if the `whole` is to be read, any gate.

    If an IDT cannot be read, its gates were not taken away.
    """
    idt = current.cpu.segment(Seg.IDTR)
    if not idt.limit:
        return False
    gates = _read(current, idt.base, idt.limit + 1 if whole else min(idt.limit + 1, EXCEPTIONS))
    return any(gates) if gates else whole


def _read(current: Current, vaddr: int, size: int) -> bytes:
    """What the guest has there; nothing where it cannot be read."""
    try:
        return current.read(max(vaddr, 0), size)
    except XenError:
        return b""
