/*
 * A guest that does what its driver says: `python -m fuzz --backend engine`. It asks the driver by
 * a hypercall that Xen does not have. So without a driver it gets only as far as this call.
 */
#include "guest.h"
#include "traps.h"

#define FETCH 63
#define ENOSYS 38
#define ARENA_PAGES 32

void fuzz_again(void) __attribute__((noreturn));
char fuzz_arena[ARENA_PAGES * 4096] __attribute__((aligned(4096)));

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
	fuzz_again();
}
