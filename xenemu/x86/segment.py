"""Segment descriptors: their bits, their fields, and Xen's rules for a guest's own.

Intel SDM volume 3, "Segment Descriptors". In Xen: arch/x86/pv/descriptor-tables.c.
"""

from __future__ import annotations

from xenemu.abi.arch_x86.xen import (
    FIRST_RESERVED_GDT_ENTRY,
    FLAT_RING1_CS,
    FLAT_RING3_CS32,
    FLAT_RING3_CS64,
)

# Bits of a descriptor's high word, which are also those of hv.cpu.Segment.attributes.
TYPE = 0xF << 8
TYPE_CODE = 1 << 11  # with S
TYPE_WRITABLE = 1 << 9  # data, with S; readable for code
TYPE_CONFORMING = 1 << 10  # code, with S; expand-down for data
TYPE_ACCESSED = 1 << 8
TYPE_CALL_GATE = 0xC << 8  # without S
S = 1 << 12  # code or data
DPL_SHIFT = 13
DPL = 3 << DPL_SHIFT
PRESENT = 1 << 15
AVL = 1 << 20
L = 1 << 21
DB = 1 << 22
G = 1 << 23
ATTRIBUTES = 0x00F0FF00

HYPERVISOR_COMPAT_VIRT_START = 0xF580_0000  # where Xen begins for a 32-bit guest

# The flat segments of Xen's own GDT entries, as attributes.
CODE64_RING3 = 0x00A0FB00
CODE32_RING3 = 0x00C0FB00
DATA_RING3 = 0x00C0F300
CODE32_RING1 = 0x00C0BB00
DATA_RING1 = 0x00C0B300

SEL_TI = 4  # a selector's table bit: LDT
SEL_RPL = 3


def base(descriptor: int) -> int:
    """The 32-bit base of a code or data descriptor."""
    return (descriptor >> 16) & 0xFFFFFF | (descriptor >> 32) & 0xFF000000


def limit(descriptor: int) -> int:
    """The limit in bytes (inclusive) of a code or data descriptor."""
    value = descriptor & 0xFFFF | (descriptor >> 32) & 0xF0000
    return value << 12 | 0xFFF if descriptor >> 32 & G else value


def attributes(descriptor: int) -> int:
    """The attributes as `hv.cpu.Segment` has them."""
    return (descriptor >> 32) & ATTRIBUTES


def dpl(attributes_or_high: int) -> int:
    """The descriptor privilege level in a high word or in attributes."""
    return (attributes_or_high & DPL) >> DPL_SHIFT


def gate_selector_okay(selector: int, width: int) -> bool:
    """Whether a guest's gate may lead to `selector`: its own entry, or Xen's flat code."""
    flat = (FLAT_RING3_CS64, FLAT_RING3_CS32) if width == 8 else (FLAT_RING1_CS,)
    return (
        selector >> 3 < FIRST_RESERVED_GDT_ENTRY
        or bool(selector & SEL_TI)
        or selector & ~SEL_RPL in {value & ~SEL_RPL for value in flat}
    )


def check_descriptor(descriptor: int, width: int) -> int | None:
    """Apply Xen's rules to one GDT or LDT entry of a PV guest with longs of `width` bytes.

    Returns the descriptor to store, its DPL raised to the guest kernel's ring where it was
    lower (a call gate's lowered to 0, so that its use faults and is emulated), or None if the
    guest may not have such an entry: a system segment, a gate into Xen, 64-bit code in a 32-bit
    guest.
    """
    low, high = descriptor & 0xFFFFFFFF, descriptor >> 32
    if not high & PRESENT:
        return descriptor
    kernel_ring = 3 if width == 8 else 1
    own_dpl = dpl(high)
    if own_dpl < kernel_ring:
        high = high & ~DPL | kernel_ring << DPL_SHIFT
    if high & S:
        if width == 4:
            if high & L:
                return None
            if base(descriptor) == 0 and limit(descriptor) >= HYPERVISOR_COMPAT_VIRT_START:
                # Older PAE guests stop below the M2P of their day: let them reach this one.
                low, high = low | 0xFFFF, high | 0xF0000
        return high << 32 | low
    if high & TYPE == 0:  # the second half of a 64-bit call gate
        return descriptor
    if high & TYPE != TYPE_CALL_GATE or not gate_selector_okay(low >> 16, width):
        return None
    if high & (0xFF if width == 8 else 0xE0):
        return None
    selector = (low >> 16) & ~SEL_RPL | own_dpl
    return (high & ~DPL) << 32 | selector << 16 | low & 0xFFFF
