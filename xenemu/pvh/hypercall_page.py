"""The hypercall page of PVH guests: VMCALL stubs, the same in 32- and 64-bit code.

In Xen: arch/x86/hvm/vmx/vmx.c (vmx_init_hypercall_page)
"""

from __future__ import annotations

import struct

from xenemu.abi.xen import Nr
from xenemu.x86.paging import PAGE_SIZE

STUB_SIZE = 32
MOV_EAX, VMCALL, RET, UD2 = b"\xb8", b"\x0f\x01\xc1", b"\xc3", b"\x0f\x0b"
INT3 = b"\xcc"


def hypercall_page() -> bytes:
    """The page's contents."""
    return b"".join(_stub(n).ljust(STUB_SIZE, INT3) for n in range(PAGE_SIZE // STUB_SIZE))


def _stub(number: int) -> bytes:
    if number == Nr.iret:  # a native guest has its own
        return UD2
    return MOV_EAX + struct.pack("<I", number) + VMCALL + RET
