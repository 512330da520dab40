/* What happens to a trap, in every environment. */
#include "traps.h"
#include "guest.h"

struct trap last_trap = { .vector = NO_TRAP };
static void (*handlers[256])(struct frame *frame);

void set_handler(unsigned int vector, void (*handler)(struct frame *frame))
{
	handlers[vector] = handler;
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
		.vector = frame->vector, .error = frame->error, .ip = frame->ip, .cs = frame->cs & 0xffff,
		.flags = frame->flags, .cr2 = frame->vector == PF ? read_cr2() : 0,
		.stack = (unsigned long)&frame->error,
	};
	if ((frame->cs & 3) == 3) {
		frame->ip = (unsigned long)leave_user;
		frame->cs = KERNEL_CS;
		frame->ss = KERNEL_DS;
		frame->flags &= ~FLAGS_IF;
		return;
	}
	for (const struct fixup *fixup = fixups; fixup < fixups_end; fixup++) {
		if (frame->ip == fixup->to) /* INT: the frame's IP is after the instruction */
			return;
		if (frame->ip == fixup->from) {
			frame->ip = fixup->to;
			return;
		}
	}
	unexpected(frame);
}
