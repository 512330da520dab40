/*
 * A 64-bit PV kernel may run on segments of its own, but SYSCALL forgets them. After a hypercall,
 * CS and SS are Xen's flat ones. They are the kernel's again after a trap from which the kernel
 * returned, and after an instruction that Xen emulated. A debugger inside the guest shows them, and
 * the kernel's next trap saves them.
 *
 * Success: each of these.
 */
#include "pv.h"
#include "selectors.h"
#include "traps.h"

#define FLAT_CS (KERNEL_CS | 3)
#define CODE 0x00affb000000ffffull
#define DATA 0x00cff3000000ffffull
#define NOT_A_HYPERCALL 55

struct selectors {
	unsigned int cs, ss;
};
extern struct selectors before, after;
void call_xen(unsigned int number), trap_to_kernel(void), be_emulated(void);

static uint64_t gdt[512] __attribute__((aligned(4096))) = { 0, CODE, DATA };
static struct frame seen;

static void note(struct frame *frame)
{
	seen = *frame;
}

static void expect(const char *what, unsigned int cs, unsigned int ss)
{
	printk("%s: CS 0x%x, SS 0x%x, then CS 0x%x, SS 0x%x\n", what, before.cs, before.ss, after.cs,
	       after.ss);
	check_equal("CS before", before.cs, OWN_CS);
	check_equal("SS before", before.ss, OWN_DS);
	check_equal("CS", after.cs, cs);
	check_equal("SS", after.ss, ss);
}

void guest_main(void)
{
	unsigned long frame = virt_to_mfn(gdt);

	if (update_va_mapping(gdt, virt_to_maddr(gdt) | PTE_P | PTE_US) ||
	    hypercall(__HYPERVISOR_set_gdt, (unsigned long)&frame, 512, 0))
		error("no GDT");
	set_handler(BP, note);
	call_xen(__HYPERVISOR_xen_version);
	expect("a hypercall", FLAT_CS, KERNEL_DS);
	call_xen(NOT_A_HYPERCALL);
	expect("a hypercall that there is not", FLAT_CS, KERNEL_DS);
	trap_to_kernel();
	expect("a trap", OWN_CS, OWN_DS);
	check_equal("CS in its frame", seen.cs & 0xffff, OWN_CS & ~3);
	check_equal("SS in its frame", seen.ss, OWN_DS);
	be_emulated();
	expect("an instruction that Xen emulates", OWN_CS, OWN_DS);
	success();
}
