/*
 * An iret by a frame that the guest may not use. In 64-bit mode the frame is where the guest can
 * read, but where Xen must not read for it. In 32-bit mode the frame leads to ring 0. XSA-7 shows
 * what happens when Xen returns without looking where to.
 *
 * The rule: Xen reads the frame as the guest's own memory, and its selectors are of the guest's
 * rings. Success: the guest is crashed.
 */
#include "attack.h"

void guest_main(void)
{
	printk("Test result: SUCCESS\n"); /* if this is the last that comes */
#ifdef __x86_64__
	asm volatile("mov %0, %%rsp; syscall"
		     : : "r"(XEN_START + 0x1000), "a"(__HYPERVISOR_iret) : "memory");
#else
	static const uint32_t frame[] = { 0, 0x100000, 0xe008, 2, 0, 0 };

	asm volatile("mov %0, %%esp; int $0x82"
		     : : "r"(frame), "a"(__HYPERVISOR_iret) : "memory");
#endif
	failure("the guest went on");
}
