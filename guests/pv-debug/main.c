/*
 * A PV guest's breakpoints. A store to watched data traps after the instruction, as DR6 says. A
 * watched instruction traps before it runs. Nothing may be watched in Xen's own memory. If this is
 * wrong, a debugger in the guest waits for ever.
 *
 * Success: all of it.
 */
#include "pv.h"
#include "traps.h"

#define DR7_L0 1ul
#define DR7_WRITE (1ul << 16)
#define DR7_4_BYTES (3ul << 18)
#define DR6_B0 1ul

#define EPERM 1

static volatile unsigned int watched, beside;
static volatile unsigned int hits, seen;
static volatile unsigned long status;

static long set_debugreg(unsigned long number, unsigned long value)
{
	return hypercall(__HYPERVISOR_set_debugreg, number, value, 0);
}

static void note(struct frame *frame)
{
	hits++;
	seen = watched;
	status = hypercall(__HYPERVISOR_get_debugreg, 6, 0, 0);
	last_trap.ip = frame->ip;
	set_debugreg(6, 0);
	set_debugreg(7, 0);
}

void guest_main(void)
{
	extern char watched_instruction[];

	set_handler(DB, note);
	check_equal("DR0", set_debugreg(0, (unsigned long)&watched), 0);
	check_equal("DR7", set_debugreg(7, DR7_L0 | DR7_WRITE | DR7_4_BYTES), 0);
	beside = watched;
	check_equal("hits of a load, and of a store beside", hits, 0);
	watched = 5;
	check_equal("hits of a store", hits, 1);
	check_equal("what it stored, in the handler", seen, 5);
	check_equal("DR6", status & 15, DR6_B0);
	watched = 6;
	check_equal("hits when disarmed", hits, 1);

	set_debugreg(0, (unsigned long)watched_instruction);
	set_debugreg(7, DR7_L0);
	asm volatile("watched_instruction: movl $7, %0" : "=m"(watched));
	check_equal("hits of an instruction", hits, 2);
	check_equal("it traps before", seen, 6);
	check_equal("its address", last_trap.ip, (unsigned long)watched_instruction);
	check_equal("and then it runs", watched, 7);

#ifdef __x86_64__ /* where Xen is, no address has 32 bits */
	check_equal("a breakpoint in Xen", set_debugreg(0, 0xffff800000000000), -EPERM);
#endif
	check_equal("DR0 is still", hypercall(__HYPERVISOR_get_debugreg, 0, 0, 0),
		    (unsigned long)watched_instruction);
	success();
}
