"""Segment descriptors and selectors: their bits and fields.

Intel SDM volume 3, "Segment Descriptors".
"""

from __future__ import annotations

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

# The flat segments of Xen's own GDT entries, as attributes.
CODE64_RING3 = 0x00A0FB00
CODE32_RING3 = 0x00C0FB00
DATA_RING3 = 0x00C0F300
CODE32_RING1 = 0x00C0BB00
DATA_RING1 = 0x00C0B300

HYPERVISOR_COMPAT_VIRT_START = 0xF580_0000  # where Xen begins for a 32-bit guest

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


def is_null(selector: int) -> bool:
    """Whether a selector names no descriptor at all."""
    return not selector & ~SEL_RPL
