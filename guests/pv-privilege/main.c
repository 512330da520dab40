/*
 * Privileged instructions, in the kernel and in user mode. Xen emulates some of them for the
 * kernel, and gives #GP for the rest. Unprivileged ones just work. If an emulator lets a privileged
 * one through, or emulates one for user mode, a program gets the kernel's rights.
 *
 * Success: each instruction ends as said.
 */
#include "pv.h"
#include "traps.h"

#define OK NO_TRAP
#ifdef __x86_64__
#define LONG_MODE GP
#else
#define LONG_MODE UD /* there is no such instruction */
#endif

void user_stub(void);
extern void (*user_code)(void);

#define INSTRUCTIONS(X)                                                                            \
	X(cli, OK, GP) X(sti, OK, GP) X(in, OK, GP) X(out, OK, GP) X(in_imm, OK, GP)               \
	X(read_cr0, OK, GP) X(read_cr2, OK, GP) X(read_cr3, OK, GP) X(read_cr4, OK, GP)            \
	X(write_cr0, OK, GP) X(write_cr2, OK, GP) X(read_dr7, OK, GP) X(write_dr0, OK, GP)         \
	X(clts, OK, GP) X(wbinvd, OK, GP) X(rdmsr, OK, GP) X(wrmsr, OK, GP)                        \
	X(invd, GP, GP) X(invlpg, GP, GP) X(hlt, GP, GP) X(lgdt, GP, GP) X(lidt, GP, GP)           \
	X(lldt, GP, GP) X(ltr, GP, GP) X(lmsw, GP, GP) X(sysexit, GP, GP)         \
	X(smsw, OK, OK) X(sgdt, OK, OK) X(str, OK, OK) X(sldt, OK, OK) X(cpuid, OK, OK)            \
	X(swapgs, LONG_MODE, LONG_MODE)                                                          \
	X(forced_cpuid, OK, OK) X(rdtsc, OK, OK) X(popf, OK, OK) X(ud2, UD, UD)

#define DECLARE(name, kernel, user) void do_##name(void);
INSTRUCTIONS(DECLARE)

struct instruction {
	const char *name;
	void (*code)(void);
	unsigned int kernel, user;
};
#define ROW(name, kernel, user) { #name, do_##name, kernel, user },
static const struct instruction instructions[] = { INSTRUCTIONS(ROW) };

static unsigned int in_kernel(const struct instruction *instruction)
{
	last_trap.vector = NO_TRAP;
	instruction->code();
	return last_trap.vector;
}

static unsigned int in_user(const struct instruction *instruction)
{
	user_code = instruction->code;
	run_user(user_stub);
	return last_trap.vector == BP ? NO_TRAP : last_trap.vector;
}

void guest_main(void)
{
	uint32_t iopl = 1;
	unsigned int rows = 0;

	TRY("cli"); /* a new kernel has IOPL 0 */
	check_equal("cli without an IOPL", last_trap.vector, GP);
	check(!hypercall(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, (unsigned long)&iopl, 0),
	      "set_iopl");
	for (; rows < sizeof(instructions) / sizeof(*instructions); rows++) {
		const struct instruction *row = &instructions[rows];
		unsigned int kernel = in_kernel(row), user = in_user(row);

		if (kernel == row->kernel && user == row->user)
			continue;
		printk("%s: kernel %u, user %u\n", row->name, kernel, user);
		failure(row->name);
	}
	printk("%u instructions, in the kernel and in user mode\n", rows);
	success();
}
