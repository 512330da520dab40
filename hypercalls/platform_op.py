"""Platform operations: the hardware domain's alone.

Header: public/platform.h
In Xen: arch/x86/platform_hypercall.c
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import EACCES, EPERM
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv.dispatch import ALL, PTR, Hypercall
from xenemu.hv.domain import Current

XENPF_INTERFACE_VERSION: Final = 0x03000001
SIZE: Final = 136  # of struct xen_platform_op, in both widths


def refuse(current: Current, pointer: int) -> int:
    """EFAULT; EACCES: another version of the interface; EPERM: this is a domU."""
    op = current.read(pointer, SIZE)
    version = int.from_bytes(op[4:8], "little")
    if version != XENPF_INTERFACE_VERSION:
        raise XenError(EACCES, f"platform_op has version {XENPF_INTERFACE_VERSION:#x}")
    raise XenError(EPERM, "platform_op is for the hardware domain")


platform_op = Hypercall(Nr.platform_op, "platform_op", ALL, (PTR,), refuse)
