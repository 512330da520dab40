/*
 * Where an INT n, INT3, INTO or ICEBP is said to stand. If its delivery faults, the fault has the
 * RIP of the instruction, prefixes included. What it leads to has the RIP after the instruction
 * (SDM volume 2, INT n; volume 3, section 6.13). A kernel may fix such a fault up, or emulate the
 * instruction. With a wrong RIP, it goes on in the middle of another instruction. Xen delivers most
 * of a PV guest's by itself, and takes each to be two bytes long.
 *
 * Success: each exception, and how far from the instruction its RIP is.
 */
#ifdef GUEST_PV
#include "pv.h"
#else
#include "pvh.h"
#endif
#include "traps.h"

#define IDT 2 /* in an error code */
#define EXT 1
#define PREFIX ".byte 0x67; "
#ifdef __x86_64__
#define ADDRESS_OF_1 "lea 1f(%%rip), %0\n"
#else
#define ADDRESS_OF_1 "mov $1f, %0\n"
#endif

/* Execute an instruction that traps, and say how. */
#define TRAPS(what, instruction, trap, error, offset)                                              \
	do {                                                                                       \
		unsigned long at;                                                                  \
                                                                                                   \
		last_trap.vector = NO_TRAP;                                                        \
		asm volatile(ADDRESS_OF_1 TRYING(instruction) : "=&r"(at) : : "memory", "cc");     \
		expect_trap(what, trap, error);                                                    \
		check_equal("its RIP", last_trap.ip - at, offset);                                 \
	} while (0)

static void from_user(const char *what, void (*code)(void), unsigned int vector,
		      unsigned long error, unsigned long offset)
{
	run_user(code);
	expect_trap(what, vector, error);
	check_equal("its RIP", last_trap.ip - (unsigned long)code, offset);
}

#define USER(name, code)                                                                           \
	void name(void);                                                                           \
	asm(#name ": " code "\n ud2")
USER(user_int22, "int $0x22");
USER(user_prefixed_int22, PREFIX "int $0x22");
USER(user_int3, "int3");
USER(user_prefixed_int3, PREFIX "int3");
USER(user_icebp, ".byte 0xf1");
USER(user_prefixed_icebp, PREFIX ".byte 0xf1");

#ifdef GUEST_PV
USER(user_int21, "int $0x21");
USER(user_prefixed_int24, PREFIX "int $0x24");
USER(user_prefixed_int80, PREFIX "int $0x80");

#define INT 2 /* bytes that Xen steps over */

/* To vector 0x21, which is let through: go on after it, wherever RIP is. */
static void take_int21(struct frame *frame)
{
	extern char behind_int21[];

	last_trap.vector = frame->vector;
	last_trap.error = frame->error;
	last_trap.ip = frame->ip;
	frame->ip = (unsigned long)behind_int21;
}

static void without_int80(void)
{
	extern char trap_stubs[];
	static struct trap_info only[] = { { .vector = GP, .cs = KERNEL_CS }, { 0 } };

	only[0].address = (unsigned long)trap_stubs + 16 * GP;
	hypercall(__HYPERVISOR_set_trap_table, 0, 0, 0);
	hypercall(__HYPERVISOR_set_trap_table, (unsigned long)only, 0, 0);
	from_user("prefixed int 0x80 without a gate, user", user_prefixed_int80, GP,
		  0x80 << 3 | IDT, 3 - INT);
	init_traps();
}

static void environments(void)
{
	extern char int21[];

	TRAPS("int 0x22", "int $0x22", GP, 0x22 << 3 | IDT, 0);
	TRAPS("prefixed int 0x22", PREFIX "int $0x22", GP, 0x22 << 3 | IDT, 0);
	TRAPS("int3", "int3", BP, 0, 1);
	TRAPS("prefixed int3", PREFIX "int3", BP, 0, 2);
	TRAPS("icebp", ".byte 0xf1", DB, 0, 1);
	TRAPS("prefixed icebp", PREFIX ".byte 0xf1", DB, 0, 2);

	set_handler(0x21, take_int21);
	set_gate_dpl(0x21, 1);
	asm volatile("int21: " PREFIX "int $0x21; behind_int21:" : : : "memory", "cc");
	expect_trap("prefixed int 0x21, allowed", 0x21, 0);
	check_equal("its RIP", last_trap.ip - (unsigned long)int21, INT);

	from_user("int 0x21, user", user_int21, GP, 0x21 << 3 | IDT, 0);
	set_gate_dpl(0x24, 3);
	from_user("prefixed int 0x24, user, allowed", user_prefixed_int24, 0x24, 0, INT);
	from_user("prefixed int 0x80, user", user_prefixed_int80, 0x80, 0, 3);
	from_user("int3, user", user_int3, BP, 0, 1);
	from_user("prefixed int3, user", user_prefixed_int3, BP, 0, 2);
	without_int80();
}
#else
#define ABSENT 0x60
#define ODD 0x61 /* a gate that leads astray */

static struct {
	uint16_t limit;
	unsigned long base;
} __attribute__((packed)) idtr;

static uint64_t *gate(unsigned int vector)
{
	return (uint64_t *)(idtr.base + vector * (sizeof(long) == 8 ? 16 : 8));
}

static void set_selector(unsigned int vector, unsigned int selector)
{
	*gate(vector) = (*gate(vector) & ~0xffff0000ull) | selector << 16;
}

static void gates(void)
{
	uint16_t limit = idtr.limit;

	TRAPS("int to an absent gate", "int $0x60", NP, ABSENT << 3 | IDT, 0);
	TRAPS("prefixed int to an absent gate", PREFIX "int $0x60", NP, ABSENT << 3 | IDT, 0);
	set_selector(ODD, 0);
	TRAPS("int to a gate without a segment", "int $0x61", GP, 0, 0);
	set_selector(ODD, KERNEL_DS);
	TRAPS("int to a gate to data", "int $0x61", GP, KERNEL_DS, 0);
	set_selector(ODD, KERNEL_CS);
	idtr.limit = (char *)gate(0x70) - (char *)gate(0) - 2;
	asm volatile("lidt %0" : : "m"(idtr));
	TRAPS("int beyond the IDT", "int $0x70", GP, 0x70 << 3 | IDT, 0);
	TRAPS("int to half a gate", "int $0x6f", GP, 0x6f << 3 | IDT, 0);
	idtr.limit = limit;
	asm volatile("lidt %0" : : "m"(idtr));
}

static void breakpoints(void)
{
	TRAPS("int3", "int3", BP, 0, 1);
	TRAPS("prefixed int3", PREFIX "int3", BP, 0, 2);
	from_user("int3 by a gate of DPL 0, user", user_int3, GP, BP << 3 | IDT, 0);
	from_user("prefixed int3 by a gate of DPL 0, user", user_prefixed_int3, GP, BP << 3 | IDT, 0);
	set_gate_present(BP, 0);
	TRAPS("int3 to an absent gate", "int3", NP, BP << 3 | IDT, 0);
	TRAPS("prefixed int3 to an absent gate", PREFIX "int3", NP, BP << 3 | IDT, 0);
	set_gate_present(BP, 1);
	set_gate_dpl(BP, 3);
	from_user("int3 by a gate of DPL 3, user", user_int3, BP, 0, 1);
#ifndef __x86_64__
	asm volatile("mov $0x7fffffff, %%eax; inc %%eax\n" TRYING("into") : : : "eax", "memory", "cc");
	expect_trap("into", OF, 0);
	set_gate_present(OF, 0);
	asm volatile("mov $0x7fffffff, %%eax; inc %%eax\n" TRYING("into") : : : "eax", "memory", "cc");
	expect_trap("into, to an absent gate", NP, OF << 3 | IDT);
	check_equal("its code", *(uint8_t *)last_trap.ip, 0xce);
	set_gate_present(OF, 1);
#endif
}

static void icebps(void)
{
	unsigned long status;

	asm volatile("mov %0, %%dr6" : : "r"(0ul));
	TRAPS("icebp", ".byte 0xf1", DB, 0, 1);
	TRAPS("prefixed icebp", PREFIX ".byte 0xf1", DB, 0, 2);
	asm volatile("mov %%dr6, %0" : "=r"(status));
	check_equal("DR6 after icebp", status, 0xffff0ff0);
	from_user("icebp by a gate of DPL 0, user", user_icebp, DB, 0, 1);
	set_gate_present(DB, 0);
	TRAPS("icebp to an absent gate", ".byte 0xf1", NP, DB << 3 | IDT | EXT, 0);
	TRAPS("prefixed icebp to an absent gate", PREFIX ".byte 0xf1", NP, DB << 3 | IDT | EXT, 0);
	set_gate_present(DB, 1);
}

#ifdef __x86_64__
#define UNMAPPED 0x7d000000ul

static void stacks(void)
{
	extern uint64_t gdt[], l2_tables[];
	uint64_t *tss = &gdt[TSS_SELECTOR / 8], whole = *tss & ~(2ull << 40); /* not busy */

	l2_tables[UNMAPPED >> 21] = 0;
	invlpg((void *)UNMAPPED);
	set_gate_stack(ODD, 1, (void *)(UNMAPPED + 16));
	TRAPS("int to a stack that is not mapped", "int $0x61", PF, 2, 0);
	check_equal("CR2", last_trap.cr2, UNMAPPED + 8);
	*tss = (whole & ~0xffffull) | 0x23; /* up to IST1 */
	asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
	TRAPS("int to a stack that no TSS has", PREFIX "int $0x61", TS, TSS_SELECTOR, 0);
	*tss = whole;
	asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
	set_gate_stack(ODD, 0, 0);
}
#endif

static void environments(void)
{
	asm volatile("sidt %0" : "=m"(idtr));
	set_gate_present(ABSENT, 0);
	gates();
	from_user("int by a gate of DPL 0, user", user_int22, GP, 0x22 << 3 | IDT, 0);
	from_user("prefixed int by a gate of DPL 0, user", user_prefixed_int22, GP, 0x22 << 3 | IDT, 0);
	set_gate_dpl(0x22, 3);
	from_user("prefixed int by a gate of DPL 3, user", user_prefixed_int22, 0x22, 0, 3);
	TRAPS("prefixed int", PREFIX "int $0x23", 0x23, 0, 3);
	breakpoints();
	icebps();
#ifdef __x86_64__
	stacks();
#endif
}
#endif

void guest_main(void)
{
	environments();
	from_user("icebp, user", user_icebp, DB, 0, 1);
	from_user("prefixed icebp, user", user_prefixed_icebp, DB, 0, 2);
	success();
}
