/*
 * What these guests use of Xen's public interface: xen.h, version.h, vcpu.h, sched.h,
 * event_channel.h, elfnote.h, io/console.h and arch-x86/hvm/start_info.h. Also read by the assembler.
 */
#ifndef XEN_H
#define XEN_H

#define __HYPERVISOR_set_trap_table 0
#define __HYPERVISOR_mmu_update 1
#define __HYPERVISOR_set_gdt 2
#define __HYPERVISOR_stack_switch 3
#define __HYPERVISOR_set_callbacks 4
#define __HYPERVISOR_set_debugreg 8
#define __HYPERVISOR_get_debugreg 9
#define __HYPERVISOR_update_descriptor 10
#define __HYPERVISOR_memory_op 12
#define __HYPERVISOR_multicall 13
#define __HYPERVISOR_update_va_mapping 14
#define __HYPERVISOR_xen_version 17
#define __HYPERVISOR_console_io 18
#define __HYPERVISOR_grant_table_op 20
#define __HYPERVISOR_vm_assist 21
#define __HYPERVISOR_iret 23
#define __HYPERVISOR_vcpu_op 24
#define __HYPERVISOR_set_segment_base 25
#define __HYPERVISOR_mmuext_op 26
#define __HYPERVISOR_nmi_op 28
#define __HYPERVISOR_sched_op 29
#define __HYPERVISOR_callback_op 30
#define __HYPERVISOR_event_channel_op 32
#define __HYPERVISOR_physdev_op 33
#define __HYPERVISOR_hvm_op 34

#define DOMID_SELF 0x7ff0

#define XENVER_version 0
#define XENVER_extraversion 1
#define XENVER_capabilities 3

#define VCPUOP_send_nmi 11

#define CONSOLEIO_write 0

#define SCHEDOP_yield 0
#define SCHEDOP_shutdown 2
#define SHUTDOWN_poweroff 0
#define SHUTDOWN_crash 3

#define EVTCHNOP_send 4

#define XEN_ELFNOTE_ENTRY 1
#define XEN_ELFNOTE_HYPERCALL_PAGE 2
#define XEN_ELFNOTE_VIRT_BASE 3
#define XEN_ELFNOTE_PADDR_OFFSET 4
#define XEN_ELFNOTE_XEN_VERSION 5
#define XEN_ELFNOTE_GUEST_OS 6
#define XEN_ELFNOTE_GUEST_VERSION 7
#define XEN_ELFNOTE_LOADER 8
#define XEN_ELFNOTE_PAE_MODE 9
#define XEN_ELFNOTE_FEATURES 10
#define XEN_ELFNOTE_BSD_SYMTAB 11
#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define DRAFT_ELFNOTE_PADDR_ENTRY 20 /* of the PVH draft of 2015: no numbers were ever assigned */
#define DRAFT_ELFNOTE_PADDR_OFFSET 21

#ifndef __ASSEMBLER__

#include <stdint.h>

struct start_info {
	char magic[32];
	unsigned long nr_pages;
	unsigned long shared_info; /* machine address */
	uint32_t flags;
	unsigned long store_mfn;
	uint32_t store_evtchn;
	unsigned long console_mfn;
	uint32_t console_evtchn;
	unsigned long pt_base;
	unsigned long nr_pt_frames;
	unsigned long mfn_list;
	unsigned long mod_start;
	unsigned long mod_len;
	char cmd_line[1024];
	unsigned long first_p2m_pfn;
	unsigned long nr_p2m_frames;
};

#define SIF_INITDOMAIN 2 /* start_info.flags: dom0, whose console is Xen's own */

struct hvm_start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist_paddr;
	uint64_t cmdline_paddr;
	uint64_t rsdp_paddr;
	uint64_t memmap_paddr;
	uint32_t memmap_entries;
	uint32_t reserved;
};

struct xencons_interface {
	char in[1024];
	char out[2048];
	uint32_t in_cons, in_prod;
	uint32_t out_cons, out_prod;
};

struct evtchn_send {
	uint32_t port;
};

struct sched_shutdown {
	unsigned int reason;
};

#endif
#endif
