"""The hypercall page: a 32-byte stub for each hypercall of a PV guest.

In Xen: arch/x86/pv/hypercall.c (pv_ring3_init_hypercall_page, pv_ring1_init_hypercall_page).
"""

from __future__ import annotations

import struct

from xenemu.abi.xen import Nr
from xenemu.x86.paging import PAGE_SIZE

STUB_SIZE = 32
INT3 = b"\xcc"
PUSH_RCX, PUSH_R11, PUSH_RAX = b"\x51", b"\x41\x53", b"\x50"
POP_R11, POP_RCX, RET = b"\x41\x5b", b"\x59", b"\xc3"
MOV_EAX, SYSCALL, INT82 = b"\xb8", b"\x0f\x05", b"\xcd\x82"


def hypercall_page(width: int) -> bytes:
    """The page's contents for a guest with longs of `width` bytes."""
    stub = _stub64 if width == 8 else _stub32
    stubs = (stub(number).ljust(STUB_SIZE, INT3) for number in range(PAGE_SIZE // STUB_SIZE))
    return b"".join(stubs)


def _stub64(number: int) -> bytes:
    load = MOV_EAX + struct.pack("<I", number)
    if number == Nr.iret:  # never returns; its frame starts with RAX, R11, RCX
        return PUSH_RCX + PUSH_R11 + PUSH_RAX + load + SYSCALL
    return PUSH_RCX + PUSH_R11 + load + SYSCALL + POP_R11 + POP_RCX + RET


def _stub32(number: int) -> bytes:
    load = MOV_EAX + struct.pack("<I", number)
    if number == Nr.iret:  # never returns; its frame starts with EAX
        return PUSH_RAX + load + INT82
    return load + INT82 + RET
