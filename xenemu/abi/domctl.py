"""What the toolstack gets of a PV vcpu, besides its vcpu_guest_context; and kinds of frames.

Header: public/domctl.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import U8, U16, U32, U64A, Struct, blob

# XEN_DOMCTL_PFINFO_*, without the shift of 28 bits.
PFINFO_NOTAB: Final = 0
PFINFO_LTABTYPE_MASK: Final = 7
PFINFO_LPINTAB: Final = 8
PFINFO_BROKEN: Final = 0xD
PFINFO_XALLOC: Final = 0xE
PFINFO_XTAB: Final = 0xF


class xen_domctl_ext_vcpucontext(Struct, size=(64, 64)):
    """The callbacks of SYSCALL from 32-bit mode and of SYSENTER, and machine checks."""

    vcpu: U32
    size: U32
    syscall32_callback_eip: U64A
    sysenter_callback_eip: U64A
    syscall32_callback_cs: U16
    sysenter_callback_cs: U16
    syscall32_disables_events: U8
    sysenter_disables_events: U8
    pad0: U16
    vmce: Annotated[bytes, blob(32, 8)]


class xen_domctl_vcpu_msr(Struct, size=(16, 16)):
    """One of a vcpu's model-specific registers."""

    index: U32
    reserved: U32
    value: U64A
