"""x86's part of the interface: trap tables, flat selectors, reserved ranges.

Header: public/arch-x86/xen.h, public/arch-x86/xen-x86_64.h, public/arch-x86/xen-x86_32.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import U8, U16, U32, U64, ULONG, Struct, blob

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


class trap_info(Struct, size=(16, 8)):
    """One entry of a PV guest's trap table."""

    vector: U8
    flags: U8
    cs: U16
    address: ULONG


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


class cpu_user_regs(Struct, size=(200, 200)):
    """The registers in a 64-bit guest's vcpu_guest_context."""

    r15: U64
    r14: U64
    r13: U64
    r12: U64
    rbp: U64
    rbx: U64
    r11: U64
    r10: U64
    r9: U64
    r8: U64
    rax: U64
    rcx: U64
    rdx: U64
    rsi: U64
    rdi: U64
    error_code: U32
    entry_vector: U32
    rip: U64
    cs: U16
    pad0: U16
    saved_upcall_mask: U8
    pad1: Annotated[bytes, blob(3)]
    rflags: U64
    rsp: U64
    ss: U16
    pad2: Annotated[bytes, blob(6)]
    es: U16
    pad3: Annotated[bytes, blob(6)]
    ds: U16
    pad4: Annotated[bytes, blob(6)]
    fs: U16
    pad5: Annotated[bytes, blob(6)]
    gs: U16
    pad6: Annotated[bytes, blob(6)]


class cpu_user_regs32(Struct, size=(68, 68)):
    """The registers in a 32-bit guest's vcpu_guest_context."""

    ebx: U32
    ecx: U32
    edx: U32
    esi: U32
    edi: U32
    ebp: U32
    eax: U32
    error_code: U16
    entry_vector: U16
    eip: U32
    cs: U16
    saved_upcall_mask: U8
    pad0: U8
    eflags: U32
    esp: U32
    ss: U16
    pad1: U16
    es: U16
    pad2: U16
    ds: U16
    pad3: U16
    fs: U16
    pad4: U16
    gs: U16
    pad5: U16


class vcpu_guest_context(Struct, size=(5168, 2800)):
    """All that a PV vcpu begins with. Fields of no bytes are not in that width's struct."""

    fpu_ctxt: Annotated[bytes, blob(512)]
    flags: ULONG
    user_regs: Annotated[bytes, blob(200, 8, 68, 4)]
    trap_ctxt: Annotated[bytes, blob(4096, 8, 2048, 4)]
    ldt_base: ULONG
    ldt_ents: ULONG
    gdt_frames: Annotated[bytes, blob(128, 8, 64, 4)]
    gdt_ents: ULONG
    kernel_ss: ULONG
    kernel_sp: ULONG
    ctrlreg: Annotated[bytes, blob(64, 8, 32, 4)]
    debugreg: Annotated[bytes, blob(64, 8, 32, 4)]
    event_callback_cs: Annotated[bytes, blob(0, 1, 4, 4)]
    event_callback_eip: ULONG
    failsafe_callback_cs: Annotated[bytes, blob(0, 1, 4, 4)]
    failsafe_callback_eip: ULONG
    syscall_callback_eip: Annotated[bytes, blob(8, 8, 0)]
    vm_assist: ULONG
    fs_base: Annotated[bytes, blob(8, 8, 0)]
    gs_base_kernel: Annotated[bytes, blob(8, 8, 0)]
    gs_base_user: Annotated[bytes, blob(8, 8, 0)]


class arch_shared_info(Struct, size=(48, 28)):
    """x86's part of shared_info: where a PV guest's list of its frames is."""

    max_pfn: ULONG  # how many entries it has
    pfn_to_mfn_frame_list_list: ULONG
    nmi_reason: ULONG
    p2m_cr3: ULONG
    p2m_vaddr: ULONG
    p2m_generation: ULONG
    wc_sec_hi: Annotated[bytes, blob(0, 1, 4, 4)]
