"""Debug registers of a PV guest.

In Xen: arch/x86/pv/misc-hypercalls.c (set_debugreg), arch/x86/x86_emulate.c (x86emul_read_dr),
arch/x86/pv/emul-priv-op.c (check_guest_io_breakpoint).
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL, ENODEV, EPERM
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.pv.msr import CR4_DE
from xenemu.pv.paging import in_guest_range
from xenemu.pv.state import DR6_DEFAULT, DR7_DEFAULT, pv

BREAKPOINTS = range(4)
DR6_WRITABLE = 0xE00F  # B0-B3, BD, BS, BT
DR7_WRITABLE = 0xFFFF03FF
DR7_GD = 1 << 13
DR7_ACTIVE = 0xFF  # the enable bits, two for each breakpoint
RW_IO = 2
WIDTHS = (1, 2, 8, 4)  # bytes, by the length field


def get_debugreg(current: Current, index: int) -> int:
    """Read DR0-3, 6 or 7; 4 and 5 are these unless CR4.DE is set. ENODEV if there is none."""
    state = pv(current)
    if index in BREAKPOINTS:
        return current.cpu.debug_register(index)
    return state.dr6 if _alias(current, index) == 6 else state.dr7 | state.dr7_emul


def set_debugreg(current: Current, index: int, value: int) -> None:
    """Write DR0-3, 6 or 7.

    EPERM for a breakpoint on Xen's own addresses, for GD, and for an I/O breakpoint without CR4.DE.
    EINVAL for bits above 31 of DR6 and DR7. ENODEV for a register that does not exist.
    """
    if index in BREAKPOINTS:
        if not in_guest_range(value):
            raise XenError(EPERM, f"a breakpoint at {value:#x} is outside the guest's addresses")
        current.cpu.set_debug_register(index, value)
        return
    index = _alias(current, index)
    if value >> 32:
        raise XenError(EINVAL, f"DR{index} = {value:#x} has reserved bits set")
    if index == 6:
        _set_dr6(current, value & DR6_WRITABLE | DR6_DEFAULT)
    else:
        _set_dr7(current, value)


def _alias(current: Current, index: int) -> int:
    if index in (6, 7):
        return index
    if index not in (4, 5) or pv(current).cr4 & CR4_DE:
        raise XenError(ENODEV, f"there is no DR{index}")
    return index + 2


def _set_dr6(current: Current, value: int) -> None:
    pv(current).dr6 = value
    current.cpu.set_debug_register(6, value)


def _set_dr7(current: Current, value: int) -> None:
    state = pv(current)
    if value & DR7_GD:
        raise XenError(EPERM, "DR7.GD is not a guest's to set")
    value = value & DR7_WRITABLE | DR7_DEFAULT
    emulated = 0
    if value & DR7_ACTIVE:
        for number in BREAKPOINTS:
            if _kind(value, number) == RW_IO:
                if not state.cr4 & CR4_DE:
                    raise XenError(EPERM, "an I/O breakpoint needs CR4.DE")
                emulated |= value & _enable_bits(number)
    state.dr7, state.dr7_emul = value & ~emulated, emulated
    current.cpu.set_debug_register(7, state.dr7)


def io_breakpoints(current: Current, port: int, size: int) -> int:
    """DR6's bits of the breakpoints that an access to a port hits."""
    state = pv(current)
    hit = 0
    if state.dr7_emul and state.cr4 & CR4_DE:
        for number in BREAKPOINTS:
            start = current.cpu.debug_register(number)
            width = WIDTHS[state.dr7 >> (18 + 4 * number) & 3]
            covers = start < port + size and port < start + width
            if covers and state.dr7_emul & _enable_bits(number):
                hit |= 1 << number
    return hit


def take_debug_status(current: Current) -> None:
    """After a #DB: merge what the CPU noted in DR6 into the guest's, and reset the CPU's."""
    noted = current.cpu.debug_register(6) & DR6_WRITABLE
    pv(current).dr6 |= noted
    current.cpu.set_debug_register(6, DR6_DEFAULT)


def _kind(dr7: int, number: int) -> int:
    return dr7 >> (16 + 4 * number) & 3


def _enable_bits(number: int) -> int:
    return 3 << (2 * number)
