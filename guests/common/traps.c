/* The IDT and TSS of a PVH guest. */
#include "traps.h"
#include "guest.h"

#define GATE_PRESENT (1ull << 47)
#define GATE_INTERRUPT (0xeull << 40)

struct gate {
	uint64_t low;
#ifdef __x86_64__
	uint64_t high; /* bits 63:32 of the address: 0 */
#endif
};

struct table_pointer {
	uint16_t limit;
	unsigned long base;
} __attribute__((packed));

char ring0_stack[4096] __attribute__((aligned(16)));
static struct gate idt[256] __attribute__((aligned(16)));
static uint32_t tss[26] __attribute__((aligned(16)));

void set_gate_dpl(unsigned int vector, unsigned int dpl)
{
	idt[vector].low = (idt[vector].low & ~(3ull << 45)) | (uint64_t)dpl << 45;
}

void set_gate_present(unsigned int vector, int present)
{
	idt[vector].low = (idt[vector].low & ~GATE_PRESENT) | (present ? GATE_PRESENT : 0);
}

#ifdef __x86_64__
void set_gate_stack(unsigned int vector, unsigned int ist, void *top)
{
	if (ist)
		tss[7 + 2 * ist] = (unsigned long)top;
	idt[vector].low = (idt[vector].low & ~(7ull << 32)) | (uint64_t)ist << 32;
}
#endif

void init_traps(void)
{
	extern char trap_stubs[];
	extern uint64_t gdt[];
	struct table_pointer pointer = { sizeof(idt) - 1, (unsigned long)idt };
	uint64_t at = (unsigned long)tss;

	for (int vector = 0; vector < 256; vector++) {
		unsigned long stub = (unsigned long)trap_stubs + 16 * vector;

		idt[vector].low = (stub & 0xffff) | KERNEL_CS << 16 | GATE_PRESENT |
				  GATE_INTERRUPT | (uint64_t)(stub >> 16) << 48;
	}
	asm volatile("lidt %0" : : "m"(pointer));

	tss[1] = (unsigned long)ring0_stack + sizeof(ring0_stack); /* RSP0; in 32-bit mode ESP0 */
#ifndef __x86_64__
	tss[2] = KERNEL_DS; /* SS0 */
#endif
	tss[25] = sizeof(tss) << 16; /* no I/O permission bitmap */
	gdt[TSS_SELECTOR / 8] = (sizeof(tss) - 1) | (at & 0xffffff) << 16 | 0x89ull << 40 |
				at >> 24 << 56;
	asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
}
