/* What the guests that attack share: mappings changed, stores tried, memory given back. */
#ifndef ATTACK_H
#define ATTACK_H

#include "pv.h"
#include "traps.h"

#define XENMEM_decrease_reservation 1
#define XENMEM_populate_physmap 6
#define XENMEM_exchange 11

#define PAGE __attribute__((aligned(4096)))
#define PTE_READ (PTE_P | PTE_US | PTE_A)
#define PTE_WRITE (PTE_READ | PTE_RW | PTE_D)
#define WROTE_READ_ONLY 3 /* a page fault's error code, in the kernel */

/* Xen's part of the address space; the entries that lead there, of the guest's own table. */
#ifdef __x86_64__
#define XEN_START ((void *)0xffff800000000000)
#define XEN_UNMAPPED ((void *)0xffff830000000000) /* to the guest */
#define XEN_SLOT table_entry(4, XEN_START)
#define XEN_SLOTS 16
#else
#define XEN_START ((void *)0xf5800000)
#define XEN_UNMAPPED ((void *)0xffa00000)
#define XEN_SLOT table_entry(2, XEN_START)
#define XEN_SLOTS 84
#endif

struct xen_memory_reservation {
	unsigned long *extent_start;
	unsigned long nr_extents;
	unsigned int extent_order, mem_flags;
	uint16_t domid;
};

static inline uint64_t entry_for(unsigned long mfn, uint64_t bits)
{
	return (uint64_t)mfn << 12 | bits;
}

/* Map a page where it was, read-only or writable. */
static inline long protect(const volatile void *page)
{
	return update_va_mapping(page, entry_for(virt_to_mfn(page), PTE_READ));
}

static inline long unprotect(const volatile void *page)
{
	return update_va_mapping(page, entry_for(virt_to_mfn(page), PTE_WRITE));
}

/* A store must fault, and change nothing. */
static inline void check_read_only(const char *what, volatile void *at)
{
	uint32_t before = *(volatile uint32_t *)at;

	TRY("movl %1, (%0)", "r"(at), "r"(~before));
	check_equal(what, last_trap.vector, PF);
	if (last_trap.vector == PF) {
		check_equal("its error code", last_trap.error, WROTE_READ_ONLY);
		check_equal("its address", last_trap.cr2, (unsigned long)at);
	}
	check_equal("what is there", *(volatile uint32_t *)at, before);
}

/* XENMEM_decrease_reservation and the like, of one page. */
static inline long reserve(unsigned int command, unsigned long *frame)
{
	struct xen_memory_reservation reservation = { frame, 1, 0, 0, DOMID_SELF };

	return hypercall(__HYPERVISOR_memory_op, command, (unsigned long)&reservation, 0);
}

#endif
