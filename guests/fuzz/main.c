/*
 * A guest that does what its driver says: `python -m fuzz --backend engine`. It asks the driver by
 * a hypercall that Xen does not have. So without a driver it gets only as far as this call.
 */
#include "guest.h"
#include "traps.h"
#ifndef GUEST_PV
#include "pvh.h"
#endif

#define FETCH 63
#define ENOSYS 38
#define ARENA_PAGES 32
#define TRAMPOLINE 0x9000 /* the page that a STARTUP of the driver's names, and its address */

void fuzz_again(void) __attribute__((noreturn));
char fuzz_arena[ARENA_PAGES * 4096] __attribute__((aligned(4096)));

#ifndef GUEST_PV
extern char fuzz_trampoline[], fuzz_trampoline_end[];
struct table_pointer {
	uint16_t limit;
	unsigned long base;
} __attribute__((packed)) fuzz_gdt, fuzz_idt; /* of vcpu 0, for all */

static void prepare_for_vcpus(void)
{
	asm volatile("sgdt %0" : "=m"(fuzz_gdt));
	asm volatile("sidt %0" : "=m"(fuzz_idt));
	memcpy(pointer(TRAMPOLINE), fuzz_trampoline, fuzz_trampoline_end - fuzz_trampoline);
}
#else
static void prepare_for_vcpus(void)
{
}
#endif

static void again(struct frame *frame)
{
	(void)frame;
	fuzz_again();
}

void guest_main(void)
{
	if (hypercall(FETCH, 0, 0, 0) == -ENOSYS) {
		skip("nobody says what to do");
		return;
	}
	for (unsigned int vector = 0; vector < 256; vector++)
		set_handler(vector, again);
	prepare_for_vcpus();
	fuzz_again();
}
