"""Resets by a triple fault: how a kernel that knows no other way reboots.

It takes the gates away and traps. FreeBSD, Linux with ``reboot=t`` and Xen itself load an IDT with
the limit 0, and execute INT3; NetBSD clears every gate before INT3, OpenBSD before a division by
zero. A kernel that merely faults before it has an IDT looks much the same, since a vcpu starts
with the limit 0. So a reset must be a trap that a kernel makes on purpose, under an IDT without a
gate; and either an IDT with gates was seen before, or the instruction before the trap is LIDT.

In FreeBSD: sys/x86/x86/cpu_machdep.c (cpu_reset_real). In Linux: arch/x86/kernel/reboot.c
(BOOT_TRIPLE). In NetBSD and OpenBSD: sys/arch/amd64/amd64/machdep.c (cpu_reset).
"""

from __future__ import annotations

import re
from typing import Final

from xenemu.errors import XenError
from xenemu.hv.cpu import Seg
from xenemu.hv.domain import Current
from xenemu.pvh.state import pvh_domain

LONGEST_LIDT: Final = 16  # bytes, with its prefixes
EXCEPTIONS: Final = 32 * 8  # bytes of the first gates, that a kernel fills before all others

# INT3, INT n, UD2, or a division by a register.
_TRAP: Final = rb"(?:\xcc|\xcd.|\x0f\x0b|[\x40-\x4f]?[\xf6\xf7][\xf0-\xff])"
TRAP: Final = re.compile(_TRAP, re.DOTALL)
# RIP is on a trap that faults by itself, but behind one that has no gate (Intel SDM volume 2, INT).
TRAP_BEFORE: Final = re.compile(_TRAP + rb"\Z", re.DOTALL)
# LIDT m (0F 01 /3), and what its address takes.
LIDT_BEFORE: Final = re.compile(
    rb"\x0f\x01[\x18-\x1f\x58-\x5f\x98-\x9f].{0,5}" + _TRAP + rb"?\Z", re.DOTALL
)


def look_at_idt(current: Current) -> None:
    """Note whether the kernel has an IDT with gates; to be asked now and then, as it runs."""
    state = pvh_domain(current)
    if not state.had_idt:
        state.had_idt = _has_gates(current)


def is_reset(current: Current) -> bool:
    """Whether the triple fault that the current vcpu has met was meant."""
    rip = current.cpu.segment(Seg.CS).base + current.cpu.rip
    before, after = _read(current, rip - LONGEST_LIDT, LONGEST_LIDT), _read(current, rip, 3)
    if not (TRAP.match(after) or TRAP_BEFORE.search(before)):
        return False
    had_idt = pvh_domain(current).had_idt or LIDT_BEFORE.search(before)
    return bool(had_idt) and not _has_gates(current, whole=True)


def _has_gates(current: Current, whole: bool = False) -> bool:
    """Whether the IDT has a gate for an exception, or, if the `whole` is to be read, any gate.

    Of one that cannot be read, it is not the gates that were taken away.
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
