"""x86's part of the interface: trap tables, flat selectors, reserved ranges.

Header: public/arch-x86/xen.h, public/arch-x86/xen-x86_64.h, public/arch-x86/xen-x86_32.h
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xenemu.abi.layout import U8, U16, U64, ULONG, Struct

FIRST_RESERVED_GDT_PAGE: Final = 14
FIRST_RESERVED_GDT_BYTE: Final = FIRST_RESERVED_GDT_PAGE * 4096
FIRST_RESERVED_GDT_ENTRY: Final = FIRST_RESERVED_GDT_BYTE // 8

# 64-bit guests.
FLAT_RING3_CS32: Final = 0xE023
FLAT_RING3_DS32: Final = 0xE02B
FLAT_RING3_CS64: Final = 0xE033
FLAT_RING3_SS64: Final = FLAT_RING3_DS32
FLAT_RING3_DS64: Final = 0
HYPERVISOR_VIRT_START: Final = 0xFFFF_8000_0000_0000
HYPERVISOR_VIRT_END: Final = 0xFFFF_8800_0000_0000
MACH2PHYS_VIRT_START: Final = 0xFFFF_8000_0000_0000
MACH2PHYS_VIRT_END: Final = 0xFFFF_8040_0000_0000

SEGBASE_FS: Final = 0
SEGBASE_GS_USER: Final = 1
SEGBASE_GS_KERNEL: Final = 2
SEGBASE_GS_USER_SEL: Final = 3

VGCF_in_syscall: Final = 1 << 8  # iret_context.flags: restore neither RCX nor R11

# 32-bit guests.
FLAT_RING1_CS: Final = 0xE019
FLAT_RING1_DS: Final = 0xE021
FLAT_RING1_SS: Final = FLAT_RING1_DS
COMPAT_RING3_CS: Final = 0xE02B  # FLAT_RING3_CS in the 32-bit header
COMPAT_RING3_DS: Final = 0xE033

HYPERVISOR_COMPAT_VIRT_START: Final = 0xF580_0000  # where Xen begins

VGCF_i387_valid: Final = 1 << 0
VGCF_in_kernel: Final = 1 << 2
VGCF_failsafe_disables_events: Final = 1 << 3
VGCF_syscall_disables_events: Final = 1 << 4
VGCF_online: Final = 1 << 5

TI_DPL: Final = 3  # trap_info.flags: privilege level
TI_IF: Final = 4  # trap_info.flags: mask events on entry


@dataclass
class trap_info(Struct, size=(16, 8)):
    """One entry of a PV guest's trap table."""

    vector: U8
    flags: U8
    cs: U16
    address: ULONG


@dataclass
class iret_context(Struct, size=(72, 72)):
    """The frame on the kernel's stack for the 64-bit iret hypercall."""

    rax: U64
    r11: U64
    rcx: U64
    flags: U64
    rip: U64
    cs: U64
    rflags: U64
    rsp: U64
    ss: U64
