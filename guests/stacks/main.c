/*
 * In 64-bit mode a gate may name a stack of the TSS (IST). An exception that finds no stack is a
 * double fault (SDM volume 3, chapter 6). Kernels rely on both to survive a bad stack pointer.
 * Without them, an overflow is a triple fault, which tells nothing.
 *
 * Success: gates with an IST use it from either ring, and a guest without a stack goes on after the
 * double fault.
 */
#include "pvh.h"
#include "traps.h"

#define HOLE 0xd0000000ul

extern uint64_t l2_tables[];
static char ist_stack[2][4096] __attribute__((aligned(16)));

static void check_stack(const char *stack, size_t size)
{
	check(last_trap.stack - (unsigned long)stack < size, "not on the stack of the gate");
}

static void user_ud2(void) { asm volatile("ud2"); }

static void double_fault(struct frame *frame)
{
	extern char behind_double_fault[];

	last_trap.vector = frame->vector;
	last_trap.error = frame->error;
	last_trap.stack = (unsigned long)&frame->error;
	frame->ip = (unsigned long)behind_double_fault;
}

void guest_main(void)
{
	set_gate_stack(UD, 1, ist_stack[1]);
	TRY("ud2");
	expect_trap("UD2 with IST 1", UD, 0);
	check_stack(ist_stack[0], sizeof(ist_stack[0]));
	run_user(user_ud2);
	expect_trap("UD2 with IST 1 in ring 3", UD, 0);
	check_stack(ist_stack[0], sizeof(ist_stack[0]));
	set_gate_stack(UD, 0, NULL);

	l2_tables[HOLE >> 21] = 0;
	invlpg((void *)HOLE);
	set_gate_stack(DF, 2, ist_stack[1] + sizeof(ist_stack[1]));
	set_handler(DF, double_fault);
	last_trap.vector = NO_TRAP;
	asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; ud2\n"
		     "behind_double_fault: mov %%rbx, %%rsp" : : "r"(HOLE + 0x800) : "rbx", "memory");
	expect_trap("UD2 without a stack", DF, 0);
	check_stack(ist_stack[1], sizeof(ist_stack[1]));
	success();
}
