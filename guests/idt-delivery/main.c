/*
 * A PVH guest takes exceptions by its own IDT: vector, error code, CR2, the instruction, and the
 * stack are as the SDM says (volume 3, chapter 6). A software CPU that leaves delivery to its host
 * gets error codes and stacks wrong, and a kernel that looks at them sees faults that are none.
 * Success: every exception here arrives as announced, and the guest goes on behind it.
 */
#include "pvh.h"
#include "traps.h"

#define ABSENT_VECTOR 0x60
#define SYSTEM_VECTOR 0x80

static void expect(const char *what, unsigned int vector, unsigned long error)
{
	printk("%s: vector %u, error code 0x%lx\n", what, last_trap.vector, last_trap.error);
	check(last_trap.vector == vector, "another vector");
	check(last_trap.error == error, "another error code");
}

static void check_stack(const char *stack, size_t size)
{
	check(last_trap.stack - (unsigned long)stack < size, "not on the stack of the gate");
}

static void exceptions(void)
{
	TRY("divb %b0", "c"(0), "a"(1));
	expect("division by zero", DE, 0);
	TRY("int3");
	expect("INT3", BP, 0);
	check(((uint8_t *)last_trap.ip)[-1] == 0xcc, "INT3 is a trap: behind the instruction");
	TRY("int $4");
	expect("INT 4", OF, 0);
	TRY("ud2");
	expect("UD2", UD, 0);
	check(*(uint16_t *)last_trap.ip == 0x0b0f, "UD2 is a fault: at the instruction");
	write_cr0(read_cr0() | 1 << 3);
	TRY("fninit");
	write_cr0(read_cr0() & ~(1ul << 3));
	expect("x87 with CR0.TS", 7, 0);
	TRY("mov %w0, %%ds", "r"(0x1238));
	expect("DS behind the GDT", GP, 0x1238);
	TRY("mov %w0, %%ds", "r"(ABSENT_DS));
	expect("DS absent", NP, ABSENT_DS);
	TRY("mov %w0, %%ss", "r"(ABSENT_DS));
	expect("SS absent", SS, ABSENT_DS);
	TRY("mov %w0, %%ss", "r"(USER_DS));
	expect("SS of ring 3", GP, USER_DS & ~3);
	TRY("ltr %w0", "r"(KERNEL_DS));
	expect("TR from a data segment", GP, KERNEL_DS);
	TRY("int $0x60");
	expect("INT to an absent gate", NP, ABSENT_VECTOR * 8 + 2);
	asm volatile("stc\n" TRYING("ud2") : : : "memory", "cc");
	check(last_trap.flags & 1, "carry flag in the frame");
}

static void user_ud2(void) { asm volatile("ud2"); }
static void user_hlt(void) { asm volatile("hlt"); }
static void user_int_allowed(void) { asm volatile("int $0x80"); }
static void user_int_refused(void) { asm volatile("int $0x61"); }
static void user_data(void) { asm volatile("mov %w0, %%ds" : : "r"(KERNEL_DS)); }

static void from_user(void (*code)(void), const char *what, unsigned int vector, unsigned int error)
{
	run_user(code);
	expect(what, vector, error);
	check_equal("CS", last_trap.cs, USER_CS);
	check_stack(ring0_stack, sizeof(ring0_stack));
}

#ifdef __x86_64__
#define HOLE 0xd0000000ul
extern uint64_t l2_tables[];
static char ist_stack[2][4096] __attribute__((aligned(16)));

static void set_hole(uint64_t bits)
{
	l2_tables[HOLE >> 21] = bits ? HOLE | bits : 0;
	invlpg((void *)HOLE);
}

static void user_read_hole(void) { *(volatile char *)HOLE; }

static void page_fault(const char *what, unsigned int error)
{
	expect(what, PF, error);
	check_equal("CR2", last_trap.cr2, HOLE + 8 * !(last_trap.cs & 3));
}

static void page_faults(void)
{
	set_hole(0);
	TRY("testb $1, (%0)", "r"(HOLE + 8));
	page_fault("read of an absent page", 0);
	TRY("movl $1, (%0)", "r"(HOLE + 8));
	page_fault("write to an absent page", 2);
	run_user(user_read_hole);
	page_fault("read of an absent page in ring 3", 4);
	set_hole(0x83);
	run_user(user_read_hole);
	page_fault("read of ring 0's page in ring 3", 5);
	set_hole(0x83 | 1 << 13);
	TRY("testb $1, (%0)", "r"(HOLE + 8));
	page_fault("reserved bit in an entry", 9);
	set_hole(0x81);
	TRY("movl $1, (%0)", "r"(HOLE + 8));
	page_fault("write to a read-only page", 3);
	TRY("testb $1, (%0)", "r"(1ul << 47));
	expect("address that is not canonical", GP, 0);
}

static void double_fault(struct frame *frame)
{
	extern char behind_double_fault[];

	last_trap.vector = frame->vector;
	last_trap.error = frame->error;
	last_trap.stack = (unsigned long)&frame->error;
	frame->ip = (unsigned long)behind_double_fault;
}

static void stacks(void)
{
	set_gate_stack(UD, 1, ist_stack[1]);
	TRY("ud2");
	expect("UD2 with IST 1", UD, 0);
	check_stack(ist_stack[0], sizeof(ist_stack[0]));
	run_user(user_ud2);
	expect("UD2 with IST 1 in ring 3", UD, 0);
	check_stack(ist_stack[0], sizeof(ist_stack[0]));
	set_gate_stack(UD, 0, NULL);

	set_hole(0);
	set_gate_stack(DF, 2, ist_stack[1] + sizeof(ist_stack[1]));
	set_handler(DF, double_fault);
	last_trap.vector = NO_TRAP;
	asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; ud2\n"
		     "behind_double_fault: mov %%rbx, %%rsp" : : "r"(HOLE + 0x800) : "rbx", "memory");
	expect("UD2 without a stack", DF, 0);
	check_stack(ist_stack[1], sizeof(ist_stack[1]));
}
#else
static void page_faults(void) {} /* no paging; see paging-modes */
static void stacks(void) {}	  /* no IST, and without paging no bad stack */
#endif

void guest_main(void)
{
	set_gate_present(ABSENT_VECTOR, 0);
	set_gate_dpl(SYSTEM_VECTOR, 3);
	exceptions();
	from_user(user_ud2, "UD2 in ring 3", UD, 0);
	from_user(user_hlt, "HLT in ring 3", GP, 0);
	from_user(user_data, "ring 0's DS in ring 3", GP, KERNEL_DS);
	from_user(user_int_allowed, "INT to a gate of ring 3", SYSTEM_VECTOR, 0);
	from_user(user_int_refused, "INT to a gate of ring 0", GP, 0x61 * 8 + 2);
	page_faults();
	stacks();
	success();
}
