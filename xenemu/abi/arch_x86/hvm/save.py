"""What the hypervisor saves of an HVM domain, apart from its memory: a record for each thing.

Header: public/hvm/save.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import U16, U32, U64, Struct, blob

HVM_FILE_MAGIC: Final = 0x54381286
HVM_FILE_VERSION: Final = 1

# HVM_SAVE_CODE of each record.
HVM_SAVE_END: Final = 0
HVM_SAVE_HEADER: Final = 1
HVM_SAVE_CPU: Final = 2
HVM_SAVE_LAPIC: Final = 5
HVM_SAVE_LAPIC_REGS: Final = 6
HVM_SAVE_MTRR: Final = 14
HVM_SAVE_VMCE_VCPU: Final = 18
HVM_SAVE_TSC_ADJUST: Final = 19
CPU_MSR_CODE: Final = 20

XEN_X86_FPU_INITIALISED: Final = 1 << 0


class hvm_save_descriptor(Struct, size=(8, 8)):
    """What is before each record; `instance` is the vcpu's number."""

    typecode: U16
    instance: U16
    length: U32


class hvm_save_header(Struct, size=(24, 24)):
    """The first record."""

    magic: U32
    version: U32
    changeset: U64
    cpuid: U32
    gtsc_khz: U32


class hvm_hw_cpu(Struct, size=(1032, 1032)):
    """A vcpu's registers."""

    fpu_regs: Annotated[bytes, blob(512)]
    rax: U64
    rbx: U64
    rcx: U64
    rdx: U64
    rbp: U64
    rsi: U64
    rdi: U64
    rsp: U64
    r8: U64
    r9: U64
    r10: U64
    r11: U64
    r12: U64
    r13: U64
    r14: U64
    r15: U64
    rip: U64
    rflags: U64
    cr0: U64
    cr2: U64
    cr3: U64
    cr4: U64
    dr0: U64
    dr1: U64
    dr2: U64
    dr3: U64
    dr6: U64
    dr7: U64
    cs_sel: U32
    ds_sel: U32
    es_sel: U32
    fs_sel: U32
    gs_sel: U32
    ss_sel: U32
    tr_sel: U32
    ldtr_sel: U32
    cs_limit: U32
    ds_limit: U32
    es_limit: U32
    fs_limit: U32
    gs_limit: U32
    ss_limit: U32
    tr_limit: U32
    ldtr_limit: U32
    idtr_limit: U32
    gdtr_limit: U32
    cs_base: U64
    ds_base: U64
    es_base: U64
    fs_base: U64
    gs_base: U64
    ss_base: U64
    tr_base: U64
    ldtr_base: U64
    idtr_base: U64
    gdtr_base: U64
    cs_arbytes: U32
    ds_arbytes: U32
    es_arbytes: U32
    fs_arbytes: U32
    gs_arbytes: U32
    ss_arbytes: U32
    tr_arbytes: U32
    ldtr_arbytes: U32
    sysenter_cs: U64
    sysenter_esp: U64
    sysenter_eip: U64
    shadow_gs: U64
    msr_flags: U64
    msr_lstar: U64
    msr_star: U64
    msr_cstar: U64
    msr_syscall_mask: U64
    msr_efer: U64
    msr_tsc_aux: U64
    tsc: U64
    pending_event: U32
    error_code: U32
    flags: U32
    pad0: U32


class hvm_hw_lapic(Struct, size=(24, 24)):
    """What a local APIC has besides its page."""

    apic_base_msr: U64
    disabled: U32
    timer_divisor: U32
    tdt_msr: U64


class hvm_hw_lapic_regs(Struct, size=(1024, 1024)):
    """A local APIC's page, as far as it has registers: 16 bytes for each."""

    data: Annotated[bytes, blob(1024)]


class hvm_hw_mtrr(Struct, size=(240, 240)):
    """PAT and the memory type range registers."""

    msr_pat_cr: U64
    msr_mtrr_var: Annotated[bytes, blob(128, 8)]
    msr_mtrr_fixed: Annotated[bytes, blob(88, 8)]
    msr_mtrr_cap: U64
    msr_mtrr_def_type: U64


class hvm_vmce_vcpu(Struct, size=(32, 32)):
    """Machine checks."""

    caps: U64
    mci_ctl2_bank0: U64
    mci_ctl2_bank1: U64
    mcg_ext_ctl: U64


class hvm_tsc_adjust(Struct, size=(8, 8)):
    """IA32_TSC_ADJUST."""

    tsc_adjust: U64


class hvm_one_msr(Struct, size=(16, 16)):
    """One register of a CPU_MSR record, which has their number before them, in 8 bytes."""

    index: U32
    _rsvd: U32
    val: U64
