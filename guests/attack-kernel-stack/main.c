/*
 * A kernel stack in Xen's part of the address space. Xen would write the frame of the guest's next
 * trap there. In XSA-215, such a frame overwrote Xen's own memory.
 *
 * The rule: Xen writes a frame only to the guest's memory, and a guest without a place for a frame
 * cannot go on. Success: the guest crashes.
 */
#include "attack.h"

static void trap_there(void)
{
	asm volatile("ud2");
}

void guest_main(void)
{
	check_equal("stack_switch", hypercall(__HYPERVISOR_stack_switch, KERNEL_DS,
					      (unsigned long)XEN_START + 0x1000, 0), 0);
	printk("Test result: SUCCESS\n"); /* if this is the last that comes */
	run_user(trap_there);
	failure("there was room for a frame");
}
