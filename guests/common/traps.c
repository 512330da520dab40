/* The IDT and TSS of a PVH guest, and what happens to a trap. */
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

struct trap last_trap = { .vector = NO_TRAP };
char ring0_stack[4096] __attribute__((aligned(16)));
static struct gate idt[256] __attribute__((aligned(16)));
static uint32_t tss[26] __attribute__((aligned(16)));
static void (*handlers[256])(struct frame *frame);

void set_handler(unsigned int vector, void (*handler)(struct frame *frame))
{
	handlers[vector] = handler;
}

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

void expect_trap(const char *what, unsigned int vector, unsigned long error)
{
	printk("%s: vector %u, error code 0x%lx\n", what, last_trap.vector, last_trap.error);
	check(last_trap.vector == vector, "another vector");
	check(last_trap.error == error, "another error code");
}

static void unexpected(const struct frame *frame)
{
	printk("Error: unexpected trap %lu, error code 0x%lx, at 0x%lx\n", frame->vector,
	       frame->error, frame->ip);
	error("a trap that nothing expected");
	end();
}

/* Called by the stubs. */
void trap(struct frame *frame)
{
	struct fixup {
		uint32_t from, to;
	};
	extern const struct fixup fixups[], fixups_end[];
	extern char leave_user[];

	if (handlers[frame->vector]) {
		handlers[frame->vector](frame);
		return;
	}
	last_trap = (struct trap){
		.vector = frame->vector, .error = frame->error, .ip = frame->ip, .cs = frame->cs,
		.flags = frame->flags, .cr2 = frame->vector == PF ? read_cr2() : 0,
		.stack = (unsigned long)&frame->error,
	};
	if (frame->cs & 3) {
		frame->ip = (unsigned long)leave_user;
		frame->cs = KERNEL_CS;
		frame->ss = KERNEL_DS;
		frame->flags &= ~FLAGS_IF;
		return;
	}
	for (const struct fixup *fixup = fixups; fixup < fixups_end; fixup++) {
		if (frame->ip == fixup->to) /* INT has left its instruction behind */
			return;
		if (frame->ip == fixup->from) {
			frame->ip = fixup->to;
			return;
		}
	}
	unexpected(frame);
}
