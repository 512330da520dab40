/*
 * Single step by TF. An IRET that sets TF is not stepped itself. The first #DB comes after one
 * instruction of its target (SDM volume 3, 17.3.1.4). The same holds for the iret hypercall. There
 * is one exception: if Xen leaves by SYSRET, as if SYSCALL had just completed, the #DB comes before
 * that instruction. If this is wrong, a debugger inside the guest sees the same address for ever,
 * or misses an instruction.
 *
 * Success: the kernel, 64- and 32-bit user code, and a hypercall are stepped at the right
 * addresses.
 */
#include "guest.h"
#include "traps.h"

#define VGCF_in_syscall (1 << 8)
#define MAX_STEPS 16

void iret_step(unsigned long flags, unsigned long vgcf);
void step_hypercall(void), user_step(void), user_step32(void);
extern char after_iret[], before_hypercall[], in_user[], in_user32[];

static char *base;
static unsigned long last; /* where stepping ends, from `base` */
static unsigned int steps;
static unsigned long at[MAX_STEPS];

static void step(struct frame *frame)
{
	unsigned long offset = frame->ip - (unsigned long)base;

	if (steps < MAX_STEPS)
		at[steps++] = offset;
	if (offset == last || steps == MAX_STEPS)
		frame->flags &= ~FLAGS_TF;
}

static void expect_steps(const char *what, const char *offsets)
{
	printk("%s:", what);
	for (unsigned int i = 0; i < steps; i++)
		printk(" +%lu", at[i]);
	printk("\n");
	check_equal("number of steps", steps, strlen(offsets));
	for (unsigned int i = 0; i < steps && offsets[i]; i++)
		check_equal("step", at[i], offsets[i] - '0');
}

static void begin(char *from, unsigned long until)
{
	base = from;
	last = until;
	steps = 0;
}

static void in_user_mode(const char *what, void (*code)(void), char *from)
{
	begin(from, 4);
	run_user(code);
	expect_steps(what, "1234");
	check_equal("ended by", last_trap.vector, UD);
	check_equal("flags at the end", last_trap.flags & FLAGS_TF, 0);
}

void guest_main(void)
{
	set_handler(DB, step);
	begin(after_iret, 4);
	iret_step(FLAGS_TF | 2, 0);
	expect_steps("iret", "1234");
	in_user_mode("user", user_step, in_user);
#ifdef __x86_64__
	in_user_mode("32-bit user", user_step32, in_user32);
#endif
#ifndef GUEST_PV
	begin(before_hypercall, 6);
	step_hypercall();
	expect_steps("hypercall", "1456");
#elif defined(__x86_64__)
	begin(before_hypercall, 5);
	step_hypercall();
	expect_steps("hypercall", "1345");
	begin(after_iret, 4);
	iret_step(FLAGS_TF | 2, VGCF_in_syscall);
	expect_steps("iret from a system call", "01234");
#else /* INT clears TF, and Xen's IRET, which sets it again, is not stepped */
	begin(before_hypercall, 5);
	step_hypercall();
	expect_steps("hypercall", "145");
#endif
	success();
}
