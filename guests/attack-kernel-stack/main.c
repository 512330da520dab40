/*
 * A kernel stack in Xen's part of the address space, where Xen would write the frame of the next
 * trap for the guest. XSA-215 had such a frame end up over Xen's own. The rule: no frame is written
 * but to the guest's memory, and a guest without a place for one cannot go on. Success: it crashes.
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
