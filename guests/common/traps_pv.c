/* A PV guest's trap table, its kernel stack, and page tables for user mode. */
#include "guest.h"
#include "pv.h"
#include "traps.h"

extern char trap_stubs[];
static struct trap_info traps[257]; /* the last one ends it */
char ring0_stack[4096] __attribute__((aligned(16)));

static long set_trap_table(void)
{
	return hypercall(__HYPERVISOR_set_trap_table, (unsigned long)traps, 0, 0);
}

void set_gate_dpl(unsigned int vector, unsigned int dpl)
{
	traps[vector].flags = (traps[vector].flags & ~TI_DPL) | dpl;
	set_trap_table();
}

void set_gate_masks_events(unsigned int vector, int masks)
{
	traps[vector].flags = (traps[vector].flags & ~TI_IF) | (masks ? TI_IF : 0);
	set_trap_table();
}

/* Let user mode have the kernel's address space, but for its own page tables and the like. */
static void open_to_user_mode(void)
{
#ifdef __x86_64__
	mmuext(MMUEXT_NEW_USER_BASEPTR, virt_to_mfn((void *)start_info()->pt_base), 0);
#else
	extern char hypercall_page[], image_end[];
	char *start = (char *)((unsigned long)trap_stubs & ~0xffful);

	for (char *at = start < hypercall_page ? start : hypercall_page; at < image_end; at += 4096)
		update_va_mapping(at, *l1_entry(at) | PTE_US);
#endif
}

void init_traps(void)
{
	for (int vector = 0; vector < 256; vector++)
		traps[vector] = (struct trap_info){
			.vector = vector, .flags = TI_IF, .cs = KERNEL_CS,
			.address = (unsigned long)trap_stubs + 16 * vector,
		};
	set_trap_table();
	hypercall(__HYPERVISOR_stack_switch, KERNEL_DS,
		  (unsigned long)ring0_stack + sizeof(ring0_stack), 0);
	open_to_user_mode();
}
