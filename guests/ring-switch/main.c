/*
 * A trap from ring 3 finds ring 0's stack in the TSS, and INT may only use a gate of ring 3 (SDM
 * volume 3, chapter 6). On a wrong stack, user mode could overwrite what the kernel returns to. By
 * a gate that is let through, user mode could fake any exception.
 *
 * Success: every way out of ring 3 arrives in ring 0, on ring 0's stack, with the right error code,
 * or is refused.
 */
#include "pvh.h"
#include "traps.h"

#define SYSTEM_VECTOR 0x80
#define KERNEL_VECTOR 0x61

static void user_ud2(void) { asm volatile("ud2"); }
static void user_hlt(void) { asm volatile("hlt"); }
static void user_cli(void) { asm volatile("cli"); }
static void user_in(void) { asm volatile("in $0x71, %%al" : : : "eax"); }
static void user_int_allowed(void) { asm volatile("int $0x80"); }
static void user_int_refused(void) { asm volatile("int $0x61"); }
static void user_data(void) { asm volatile("mov %w0, %%ds" : : "r"(KERNEL_DS)); }

static void from_user(void (*code)(void), const char *what, unsigned int vector, unsigned int error)
{
	run_user(code);
	expect_trap(what, vector, error);
	check_equal("CS", last_trap.cs, USER_CS);
	check(last_trap.stack - (unsigned long)ring0_stack < sizeof(ring0_stack), "another stack");
}

void guest_main(void)
{
	set_gate_dpl(SYSTEM_VECTOR, 3);
	from_user(user_ud2, "UD2", UD, 0);
	from_user(user_hlt, "HLT", GP, 0);
	from_user(user_cli, "CLI", GP, 0);
	from_user(user_in, "IN", GP, 0);
	from_user(user_data, "DS of ring 0", GP, KERNEL_DS);
	from_user(user_int_allowed, "INT to a gate of ring 3", SYSTEM_VECTOR, 0);
	from_user(user_int_refused, "INT to a gate of ring 0", GP, KERNEL_VECTOR * 8 + 2);
	success();
}
