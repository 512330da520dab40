/*
 * What only PVH guests have: Xen's public hvm/, memory.h and vcpu.h as far as they are used, and
 * what the environment keeps for them.
 */
#ifndef PVH_H
#define PVH_H

#include "guest.h"
#include "x86.h"

#define XEN_CPUID_FIRST_LEAF 0x40000000
#define XEN_HVM_START_MAGIC_VALUE 0x336ec578

#define HVMOP_set_param 0
#define HVMOP_get_param 1
#define HVMOP_set_evtchn_upcall_vector 23
#define HVM_PARAM_CALLBACK_IRQ 0
#define HVM_PARAM_STORE_PFN 1
#define HVM_PARAM_STORE_EVTCHN 2
#define HVM_PARAM_IOREQ_PFN 5
#define HVM_PARAM_CONSOLE_PFN 17
#define HVM_PARAM_CONSOLE_EVTCHN 18
#define HVM_CALLBACK_VECTOR(vector) ((uint64_t)2 << 56 | (vector))

#define XENMEM_add_to_physmap 7
#define XENMEM_memory_map 9
#define XENMAPSPACE_shared_info 0
#define XENMAPSPACE_grant_table 1

#define XEN_HVM_MEMMAP_TYPE_RAM 1
#define XEN_HVM_MEMMAP_TYPE_RESERVED 2
#define XEN_HVM_MEMMAP_TYPE_ACPI 3

struct xen_hvm_param {
	uint16_t domid;
	uint16_t pad;
	uint32_t index;
	uint64_t value __attribute__((aligned(8)));
};

struct xen_add_to_physmap {
	uint16_t domid;
	uint16_t size;
	unsigned int space;
	unsigned long idx;
	unsigned long gpfn;
};

struct hvm_modlist_entry {
	uint64_t paddr, size, cmdline_paddr, reserved;
};

struct hvm_memmap_table_entry {
	uint64_t addr, size;
	uint32_t type, reserved;
};

/* What head_pvh.S saw before it changed anything; `info` is the register that leads to start_info. */
struct entry_state {
	uint32_t info, eflags, cr0, cr4;
	uint32_t es, ds, cs;	 /* the first two stored through themselves */
	uint32_t info_through_cs; /* info again, read by an override */
	uint32_t eip_error;	 /* how far EIP was from where the code is linked */
	uint32_t tr, eax;
};
extern struct entry_state entry_state;

/* Check that the guest began in flat 32-bit code, unpaged, where it is linked. */
void check_flat_start(void);

/* Pointers in Xen's structures are 64 bits wide in both environments. */
static inline void *pointer(uint64_t paddr)
{
	return (void *)(unsigned long)paddr;
}

/* Read or set a parameter of this domain; negative errno on failure. */
long get_param(uint32_t index, uint64_t *value);
long set_param(uint32_t index, uint64_t value);

/* Put a frame of Xen's in the place of `page`. */
long add_to_physmap(unsigned int space, unsigned long index, void *page);

/* The first of Xen's CPUID leaves. */
uint32_t xen_leaf(void);

#endif
