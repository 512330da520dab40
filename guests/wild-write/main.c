/*
 * A kernel that crashes long after the mistake: a copy of a name that is too long for its field has
 * overwritten the pointer behind it. A debugger that can go back finds who did it
 * (docs/debugging.md): watch the pointer, and continue backwards.
 *
 * Success: the guest gets as far as to its panic.
 */
#include "guest.h"
#include "traps.h"

#define SHUTDOWN_crash 3
#define ROUNDS 20000

struct buffer {
	char name[16];
	unsigned char *data;
};

static unsigned char memory[4][256];
struct buffer buffers[4];
unsigned long checksum;

/* The mistake: nobody looks how long the name is. */
__attribute__((noinline)) void set_name(struct buffer *buffer, const char *name)
{
	char *to = buffer->name;

	while ((*to++ = *name++))
		;
}

/* Much that has nothing to do with it. */
__attribute__((noinline)) void work(unsigned int rounds)
{
	while (rounds--) {
		struct buffer *buffer = &buffers[rounds % 2];

		checksum = checksum * 31 + buffer->data[rounds % 256]++;
		if (rounds % 1000 == 0)
			hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0);
	}
}

static void panic(struct frame *frame)
{
	struct { uint32_t reason; } op = { SHUTDOWN_crash };

	(void)frame;
	printk("panic: general protection fault\nTest result: SUCCESS\n");
	hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (unsigned long)&op, 0);
}

void guest_main(void)
{
	static const char *const names[] = { "first", "second", "the very longest of them", "last" };

	set_handler(GP, panic);
	for (unsigned int i = 0; i < 4; i++)
		buffers[i].data = memory[i];
	for (unsigned int i = 0; i < 4; i++)
		set_name(&buffers[i], names[i]);
	printk("%d buffers\n", 4);
	work(ROUNDS);
	for (unsigned int i = 0; i < 4; i++)
		checksum += *buffers[i].data;
	failure("it has not crashed");
}
