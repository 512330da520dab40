/*
 * A PVH guest takes exceptions by its own IDT. The vector, the error code and the instruction are
 * as the SDM says (volume 3, chapter 6). A software CPU that leaves delivery to its host gets error
 * codes wrong, and a kernel that looks at them sees faults that did not happen.
 *
 * Success: every exception here arrives as announced, and the guest goes on after it.
 */
#include "pvh.h"
#include "traps.h"

#define ABSENT_VECTOR 0x60

static void exceptions(void)
{
	TRY("divb %b0", "c"(0), "a"(1));
	expect_trap("division by zero", DE, 0);
	TRY("int3");
	expect_trap("INT3", BP, 0);
	check(((uint8_t *)last_trap.ip)[-1] == 0xcc, "INT3 is a trap: after the instruction");
	TRY("int $4");
	expect_trap("INT 4", OF, 0);
	TRY("ud2");
	expect_trap("UD2", UD, 0);
	check(*(uint16_t *)last_trap.ip == 0x0b0f, "UD2 is a fault: at the instruction");
	write_cr0(read_cr0() | 1 << 3);
	TRY("fninit");
	write_cr0(read_cr0() & ~(1ul << 3));
	expect_trap("x87 with CR0.TS", 7, 0);
	TRY("mov %w0, %%ds", "r"(0x1238));
	expect_trap("DS beyond the GDT", GP, 0x1238);
	TRY("mov %w0, %%ds", "r"(ABSENT_DS));
	expect_trap("DS absent", NP, ABSENT_DS);
	TRY("mov %w0, %%ss", "r"(ABSENT_DS));
	expect_trap("SS absent", SS, ABSENT_DS);
	TRY("mov %w0, %%ss", "r"(USER_DS));
	expect_trap("SS of ring 3", GP, USER_DS & ~3);
	TRY("ltr %w0", "r"(KERNEL_DS));
	expect_trap("TR from a data segment", GP, KERNEL_DS);
	TRY("int $0x60");
	expect_trap("INT to an absent gate", NP, ABSENT_VECTOR * 8 + 2);
	asm volatile("stc\n" TRYING("ud2") : : : "memory", "cc");
	check(last_trap.flags & 1, "carry flag in the frame");
}

static void step(struct frame *frame)
{
	last_trap.vector = frame->vector;
	last_trap.error = frame->error;
	last_trap.ip = frame->ip;
	frame->flags &= ~FLAGS_TF;
}

static void single_step(void)
{
	extern char behind_nop[];

	set_handler(DB, step);
	last_trap.vector = NO_TRAP;
#ifdef __x86_64__
	asm volatile("pushf; orl $0x100, (%%rsp); popf; nop; behind_nop:" : : : "memory", "cc");
#else
	asm volatile("pushf; orl $0x100, (%%esp); popf; nop; behind_nop:" : : : "memory", "cc");
#endif
	expect_trap("step over a NOP", DB, 0);
	check_equal("where the step ended", last_trap.ip, (unsigned long)behind_nop);
}

void guest_main(void)
{
	set_gate_present(ABSENT_VECTOR, 0);
	exceptions();
	single_step();
	success();
}
