"""The core of Xen's interface: hypercall numbers, domain ids, VIRQs, start_info, shared_info.

Header: public/xen.h
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from xenemu.abi.layout import U8, U32, U64, ULONG, Struct, blob


class Nr(IntEnum):
    """``__HYPERVISOR_*``: hypercall numbers."""

    set_trap_table = 0
    mmu_update = 1
    set_gdt = 2
    stack_switch = 3
    set_callbacks = 4
    fpu_taskswitch = 5
    sched_op_compat = 6
    platform_op = 7
    set_debugreg = 8
    get_debugreg = 9
    update_descriptor = 10
    memory_op = 12
    multicall = 13
    update_va_mapping = 14
    set_timer_op = 15
    event_channel_op_compat = 16
    xen_version = 17
    console_io = 18
    physdev_op_compat = 19
    grant_table_op = 20
    vm_assist = 21
    update_va_mapping_otherdomain = 22
    iret = 23
    vcpu_op = 24
    set_segment_base = 25
    mmuext_op = 26
    xsm_op = 27
    nmi_op = 28
    sched_op = 29
    callback_op = 30
    xenoprof_op = 31
    event_channel_op = 32
    physdev_op = 33
    hvm_op = 34
    sysctl = 35
    domctl = 36
    kexec_op = 37
    tmem_op = 38
    argo_op = 39
    xenpmu_op = 40
    dm_op = 41
    hypfs_op = 42
    mca = 48  # __HYPERVISOR_arch_0
    paging_domctl_cont = 49  # __HYPERVISOR_arch_1


class Virq(IntEnum):
    """``VIRQ_*``; those up to NR_VIRQS."""

    TIMER = 0
    DEBUG = 1
    CONSOLE = 2
    DOM_EXC = 3
    TBUF = 4
    DEBUGGER = 6
    XENOPROF = 7
    CON_RING = 8
    PCPU_STATE = 9
    MEM_EVENT = 10
    ARGO = 11
    ENOMEM = 12
    XENPMU = 13
    ARCH_0 = 16
    NR_VIRQS = 24


DOMID_SELF: Final = 0x7FF0
DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2
DOMID_COW: Final = 0x7FF3
DOMID_INVALID: Final = 0x7FF4
DOMID_IDLE: Final = 0x7FFF
DOMID_FIRST_RESERVED: Final = 0x7FF0

# mmu_update: the two low bits of `ptr`.
MMU_NORMAL_PT_UPDATE: Final = 0
MMU_MACHPHYS_UPDATE: Final = 1
MMU_PT_UPDATE_PRESERVE_AD: Final = 2
MMU_PT_UPDATE_NO_TRANSLATE: Final = 3
MMU_UPDATE_PREEMPTED: Final = 1 << 31  # in the count: the call is a continuation

# mmuext_op commands.
MMUEXT_PIN_L1_TABLE: Final = 0
MMUEXT_PIN_L2_TABLE: Final = 1
MMUEXT_PIN_L3_TABLE: Final = 2
MMUEXT_PIN_L4_TABLE: Final = 3
MMUEXT_UNPIN_TABLE: Final = 4
MMUEXT_NEW_BASEPTR: Final = 5
MMUEXT_TLB_FLUSH_LOCAL: Final = 6
MMUEXT_INVLPG_LOCAL: Final = 7
MMUEXT_TLB_FLUSH_MULTI: Final = 8
MMUEXT_INVLPG_MULTI: Final = 9
MMUEXT_TLB_FLUSH_ALL: Final = 10
MMUEXT_INVLPG_ALL: Final = 11
MMUEXT_FLUSH_CACHE: Final = 12
MMUEXT_SET_LDT: Final = 13
MMUEXT_NEW_USER_BASEPTR: Final = 15
MMUEXT_CLEAR_PAGE: Final = 16
MMUEXT_COPY_PAGE: Final = 17
MMUEXT_FLUSH_CACHE_GLOBAL: Final = 18
MMUEXT_MARK_SUPER: Final = 19
MMUEXT_UNMARK_SUPER: Final = 20

# update_va_mapping flags.
UVMF_NONE: Final = 0
UVMF_TLB_FLUSH: Final = 1
UVMF_INVLPG: Final = 2
UVMF_FLUSHTYPE_MASK: Final = 3
UVMF_MULTI: Final = 0
UVMF_LOCAL: Final = 0
UVMF_ALL: Final = 1 << 2

CONSOLEIO_write: Final = 0
CONSOLEIO_read: Final = 1

VMASST_CMD_enable: Final = 0
VMASST_CMD_disable: Final = 1
VMASST_TYPE_4gb_segments: Final = 0
VMASST_TYPE_4gb_segments_notify: Final = 1
VMASST_TYPE_writable_pagetables: Final = 2
VMASST_TYPE_pae_extended_cr3: Final = 3
VMASST_TYPE_architectural_iopl: Final = 4
VMASST_TYPE_runstate_update_flag: Final = 5
VMASST_TYPE_m2p_strict: Final = 32

SIF_PRIVILEGED: Final = 1 << 0
SIF_INITDOMAIN: Final = 1 << 1
SIF_MULTIBOOT_MOD: Final = 1 << 2
SIF_MOD_START_PFN: Final = 1 << 3
SIF_VIRT_P2M_4TOOLS: Final = 1 << 4

MAX_GUEST_CMDLINE: Final = 1024
XEN_LEGACY_MAX_VCPUS: Final = 32


class mmu_update(Struct, size=(16, 16)):
    """A page-table update: the entry's machine address (command in bits 1:0), the value."""

    ptr: U64
    val: U64


class mmuext_op(Struct, size=(24, 12)):
    """An extended MMU operation; the unions hold what the command says."""

    cmd: U32
    arg1: ULONG  # mfn, or linear_addr
    arg2: ULONG  # nr_ents, vcpumask, or src_mfn


class multicall_entry(Struct, size=(64, 32)):
    """One call of a batch."""

    op: ULONG
    result: ULONG
    args: Annotated[bytes, blob(48, 8, 24, 4)]


class vcpu_time_info(Struct, size=(32, 32)):
    """How to turn a TSC reading into nanoseconds since boot."""

    version: U32
    pad0: U32
    tsc_timestamp: U64
    system_time: U64
    tsc_to_system_mul: U32
    tsc_shift: U8
    flags: U8
    pad1: Annotated[bytes, blob(2)]


class vcpu_info(Struct, size=(64, 64)):
    """What Xen and one vcpu share: the pending and mask bytes, the selector, CR2, the time."""

    evtchn_upcall_pending: U8
    evtchn_upcall_mask: U8
    evtchn_pending_sel: ULONG
    arch: Annotated[bytes, blob(16, 8, 24, 4)]  # cr2 first
    time: Annotated[bytes, blob(32, 8)]


class shared_info(Struct, size=(3136, 2344)):
    """The page that Xen and the domain share."""

    vcpu_info: Annotated[bytes, blob(64 * XEN_LEGACY_MAX_VCPUS, 8)]
    evtchn_pending: Annotated[bytes, blob(512, 8, 128, 4)]
    evtchn_mask: Annotated[bytes, blob(512, 8, 128, 4)]
    wc_version: U32
    wc_sec: U32
    wc_nsec: U32
    wc_sec_hi: Annotated[bytes, blob(4, 4, 0, 1)]  # the 32-bit one is at the end of arch
    arch: Annotated[bytes, blob(48, 8, 28, 4)]


class start_info(Struct, size=(1168, 1112)):
    """What a PV kernel finds at its first instruction, by %rsi."""

    magic: Annotated[bytes, blob(32)]
    nr_pages: ULONG
    shared_info: ULONG
    flags: U32
    store_mfn: ULONG
    store_evtchn: U32
    console: Annotated[bytes, blob(16, 8, 8, 4)]  # the union; for a domU: mfn, evtchn
    pt_base: ULONG
    nr_pt_frames: ULONG
    mfn_list: ULONG
    mod_start: ULONG
    mod_len: ULONG
    cmd_line: Annotated[bytes, blob(MAX_GUEST_CMDLINE)]
    first_p2m_pfn: ULONG
    nr_p2m_frames: ULONG
