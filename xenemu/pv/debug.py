"""Debug registers of a PV guest.

In Xen: arch/x86/pv/misc-hypercalls.c (set_debugreg, do_get_debugreg).
"""

from __future__ import annotations

from xenemu.abi.errno import EINVAL, ENODEV, EPERM
from xenemu.errors import XenError
from xenemu.hv.domain import Current
from xenemu.pv.msr import CR4_DE
from xenemu.pv.paging import in_guest_range
from xenemu.pv.state import DR6_DEFAULT, pv

DR6_RESERVED = ~0xF00F & 0xFFFFFFFFFFFFFFFF  # bits other than B0-B3, BD.., written as default
DR7_GD = 1 << 13
DR7_LEN_8 = 2
DR7_IO = 2


def get_debugreg(current: Current, index: int) -> int:
    """Read DR0-3, 6 or 7; 4 and 5 alias 6 and 7 unless CR4.DE. ENODEV, or EINVAL for others."""
    state = pv(current)
    if index in (0, 1, 2, 3):
        return current.cpu.debug_register(index)
    if index in (4, 5):
        if state.cr4 & CR4_DE:
            raise XenError(ENODEV, f"DR{index} does not exist while CR4.DE is set")
        index += 2
    if index == 6:
        return state.dr6
    if index == 7:
        return state.dr7
    raise XenError(ENODEV, f"there is no DR{index}")


def set_debugreg(current: Current, index: int, value: int) -> None:
    """Write DR0-3, 6 or 7.

    EPERM for a breakpoint on Xen's own addresses or a forbidden kind; EINVAL for reserved bits
    or registers that do not exist.
    """
    state = pv(current)
    if index in (0, 1, 2, 3):
        if not in_guest_range(value):
            raise XenError(EPERM, f"a breakpoint at {value:#x} is outside the guest's addresses")
        current.cpu.set_debug_register(index, value)
        return
    if index in (4, 5):
        if state.cr4 & CR4_DE:
            raise XenError(ENODEV, f"DR{index} does not exist while CR4.DE is set")
        index += 2
    if index == 6:
        if value >> 32:
            raise XenError(EINVAL, f"DR6 = {value:#x} has reserved bits set")
        state.dr6 = value & 0xE00F | DR6_DEFAULT & ~0xE00F
        return
    if index != 7:
        raise XenError(EINVAL, f"there is no DR{index}")
    if value >> 32:
        raise XenError(EINVAL, f"DR7 = {value:#x} has reserved bits set")
    value = value & ~(0xD800 | DR7_GD) | 0x400
    for breakpoint in range(4):
        kind = value >> (16 + 4 * breakpoint) & 3
        length = value >> (18 + 4 * breakpoint) & 3
        if value >> (2 * breakpoint) & 3:
            if kind == DR7_IO and not state.cr4 & CR4_DE:
                raise XenError(EPERM, "an I/O breakpoint needs CR4.DE")
            if kind == 0 and length:
                raise XenError(EPERM, "an execute breakpoint has a length of one byte")
    state.dr7 = value
    current.cpu.set_debug_register(7, value)
