"""What a PVH vcpu begins with, if another vcpu initialises it.

Header: public/hvm/hvm_vcpu.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import U16, U32, U64A, Struct, blob

VCPU_HVM_MODE_32B: Final = 0
VCPU_HVM_MODE_64B: Final = 1


class vcpu_hvm_x86_32(Struct, size=(120, 120)):
    """The registers of a vcpu that starts in 32-bit code."""

    eax: U32
    ecx: U32
    edx: U32
    ebx: U32
    esp: U32
    ebp: U32
    esi: U32
    edi: U32
    eip: U32
    eflags: U32
    cr0: U32
    cr3: U32
    cr4: U32
    pad1: U32
    efer: U64A
    cs_base: U32
    ds_base: U32
    ss_base: U32
    es_base: U32
    tr_base: U32
    cs_limit: U32
    ds_limit: U32
    ss_limit: U32
    es_limit: U32
    tr_limit: U32
    cs_ar: U16
    ds_ar: U16
    ss_ar: U16
    es_ar: U16
    tr_ar: U16
    pad2: Annotated[bytes, blob(6, 2)]


class vcpu_hvm_x86_64(Struct, size=(112, 112)):
    """The registers of a vcpu that starts in 64-bit code."""

    rax: U64A
    rcx: U64A
    rdx: U64A
    rbx: U64A
    rsp: U64A
    rbp: U64A
    rsi: U64A
    rdi: U64A
    rip: U64A
    rflags: U64A
    cr0: U64A
    cr3: U64A
    cr4: U64A
    efer: U64A


class vcpu_hvm_context(Struct, size=(128, 128)):
    """One of the two above, as `mode` says."""

    mode: U32
    pad: U32
    cpu_regs: Annotated[bytes, blob(120, 8)]
