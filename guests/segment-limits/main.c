/*
 * In 32-bit code a CPU looks at the segment before it looks at the page. If an access is beyond the
 * segment's limit, through no segment, or against its rights, it is #GP(0), and #SS(0) on the
 * stack. CR2 stays (SDM volume 3, sections 5.3 to 5.5). Programs with small segments, and kernels
 * that guard themselves by segments, tell this fault from a page fault.
 *
 * Success: both kinds, where no page is mapped.
 */
#ifdef GUEST_PV
#include "pv.h"
#define RING 1ull
#else
#include "pvh.h"
#define RING 0ull
#endif
#include "traps.h"

#define BASE 0x10000000 /* nothing is mapped there */
#define DESCRIPTOR(type, ring, flags, limit)                                                       \
	((uint64_t)(BASE >> 24) << 56 | (uint64_t)(flags) << 52 | 1ull << 47 | (ring) << 45 |      \
	 1ull << 44 | (uint64_t)(type) << 40 | (limit))
#define SELECTOR(index, ring) ((index) * 8 | (ring))
enum { DATA = 16, READ_ONLY, DOWN, EXECUTE, CODE, STACK, LOW_CODE, LAST };

static uint64_t table[512] __attribute__((aligned(4096)));

static void load_table(void)
{
	table[DATA] = DESCRIPTOR(3, RING, 4, 0xfff);
	table[READ_ONLY] = DESCRIPTOR(1, RING, 4, 0xfff);
	table[DOWN] = DESCRIPTOR(7, RING, 4, 0xfff);
	table[EXECUTE] = DESCRIPTOR(9, RING, 4, 0xfff);
	table[CODE] = DESCRIPTOR(0xb, RING, 4, 0xfff);
	table[STACK] = DESCRIPTOR(3, 3ull, 4, 0xfff);
	table[LOW_CODE] = 0x00c1fb000000ffff; /* up to 0x1fffffff */
#ifdef GUEST_PV
	unsigned long frame = virt_to_mfn(table);

	check_equal("the table's mapping",
		    update_va_mapping(table, (uint64_t)frame << 12 | PTE_P | PTE_US | PTE_A), 0);
	check_equal("set_gdt", hypercall(__HYPERVISOR_set_gdt, (unsigned long)&frame, LAST, 0), 0);
#else
	extern uint64_t gdt[];
	static uint32_t directory[1024] __attribute__((aligned(4096)));
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) pointer = { LAST * 8 - 1, (uint32_t)table };

	memcpy(table, gdt, 10 * 8);
	asm volatile("lgdt %0" : : "m"(pointer));
	for (unsigned int i = 0; i < 1024; i++)
		directory[i] = i << 22 | 0x87;
	directory[BASE >> 22] = directory[0x20000000 >> 22] = 0;
	write_cr4(read_cr4() | CR4_PSE);
	write_cr3((unsigned long)directory);
	write_cr0(read_cr0() | CR0_PG);
#endif
}

#define ACCESS(what, instruction, vector_, error)                                                  \
	do {                                                                                       \
		TRY("cmpb $0, 0x20000000");                                                        \
		TRY(instruction);                                                                  \
		expect_trap(what ": " instruction, vector_, error);                                \
		check_equal("CR2", read_cr2(), vector_ == PF ? last_trap.cr2 : 0x20000000ul);      \
	} while (0)

static void load_fs(unsigned int index)
{
	asm volatile("mov %w0, %%fs" : : "r"(index ? SELECTOR(index, (unsigned int)RING) : 0));
}

static void data(void)
{
	load_fs(DATA);
	ACCESS("data", "cmpb $0, %%fs:0", PF, 0);
	check_equal("where", last_trap.cr2, BASE);
	ACCESS("data", "cmpb $0, %%fs:0xfff", PF, 0);
	ACCESS("data", "cmpb $0, %%fs:0x1000", GP, 0);
	ACCESS("data", "cmpl $0, %%fs:0xffc", PF, 0);
	ACCESS("data", "cmpl $0, %%fs:0xffd", GP, 0);
	ACCESS("data", "movl $0, %%fs:0xffc", PF, 2);
	ACCESS("data", "movl $0, %%fs:0x12345", GP, 0);
	ACCESS("data", "lock incl %%fs:0x1000", GP, 0);
	load_fs(READ_ONLY);
	ACCESS("data to read alone", "cmpb $0, %%fs:0", PF, 0);
	ACCESS("data to read alone", "movb $0, %%fs:0", GP, 0);
	load_fs(DOWN);
	ACCESS("expand-down data", "cmpb $0, %%fs:0xfff", GP, 0);
	ACCESS("expand-down data", "cmpb $0, %%fs:0x1000", PF, 0);
	load_fs(CODE);
	ACCESS("code", "cmpb $0, %%fs:0", PF, 0);
	ACCESS("code", "movb $0, %%fs:0", GP, 0);
	load_fs(0);
	ACCESS("no segment", "cmpb $0, %%fs:0x10000000", GP, 0);
	ACCESS("no segment", "cmpb $0, %%fs:0x20000000", GP, 0);
	ACCESS("the flat segment", "cmpb $0, %%ds:0x10000000", PF, 0);
}

static void strings(void)
{
	load_fs(DATA);
	TRY("mov %w0, %%es", "r"(SELECTOR(DATA, (unsigned int)RING)));
	TRY("movsb", "S"(BASE), "D"(0x1000));
	expect_trap("movsb from DS", PF, 0);
	TRY("fs movsb", "S"(0x1000), "D"(0));
	expect_trap("movsb from FS", GP, 0);
	TRY("stosb", "D"(0x1000));
	expect_trap("stosb", GP, 0);
	TRY("fs stosb", "D"(0));
	expect_trap("stosb", PF, 2);
	TRY("cmpsb", "S"(table), "D"(0x1000));
	expect_trap("cmpsb with ES", GP, 0);
	TRY("mov %w0, %%es", "r"(KERNEL_DS));
	TRY("fs cmpsb", "S"(0x1000), "D"(table));
	expect_trap("cmpsb with FS", GP, 0);
	load_fs(0);
}

void user_push(void), user_pop(void), user_ebp(void), user_override(void), user_within(void);
void user_jump(void), user_call(void), user_run_on(void);
extern char at_push[], at_pop[], at_ebp[], at_override[], at_within[], at_jump[], at_call[];

/* In ring 3, as the stack of the kernel must take its faults. */
#define STACK_SELECTOR "$0xab" /* SELECTOR(STACK, 3) */
#define CODE_SELECTOR "$0xb3"  /* SELECTOR(LOW_CODE, 3) */
asm("user_push: mov " STACK_SELECTOR ", %eax; mov %eax, %ss; mov $0x2000, %esp\n"
    "at_push: push %eax\n"
    "user_pop: mov " STACK_SELECTOR ", %eax; mov %eax, %ss; mov $0x1000, %esp\n"
    "at_pop: pop %eax\n"
    "user_ebp: mov " STACK_SELECTOR ", %eax; mov %eax, %ss; mov $0xffd, %ebp\n"
    "at_ebp: cmpl $0, (%ebp)\n"
    "user_override: mov " STACK_SELECTOR ", %eax; mov %eax, %ss; mov $0x2000, %eax\n"
    "at_override: cmpl $0, %ss:(%eax)\n"
    "user_within: mov " STACK_SELECTOR ", %eax; mov %eax, %ss; mov $0x1000, %esp\n"
    "at_within: push %eax\n"
    "user_jump: ljmp " CODE_SELECTOR ", $1f\n"
    "1: mov $0x20000000, %eax\n"
    "at_jump: jmp *%eax\n"
    "user_call: ljmp " CODE_SELECTOR ", $1f\n"
    "1: mov $0x20000000, %eax\n"
    "at_call: call *%eax\n");

static void from_user(const char *what, void (*code)(void), const char *at, unsigned int vector,
		      unsigned long error)
{
	run_user(code);
	expect_trap(what, vector, error);
	check_equal("its EIP", last_trap.ip, (unsigned long)at);
}

static void stack_and_code(void)
{
	from_user("push beyond the stack", user_push, at_push, SS, 0);
	from_user("pop beyond the stack", user_pop, at_pop, SS, 0);
	from_user("(%ebp) beyond the stack", user_ebp, at_ebp, SS, 0);
	from_user("%ss: beyond the stack", user_override, at_override, SS, 0);
	from_user("push within the stack", user_within, at_within, PF, 6);
	from_user("jmp beyond the code", user_jump, at_jump, GP, 0);
	from_user("call beyond the code", user_call, at_call, GP, 0);
}

void guest_main(void)
{
	load_table();
	data();
	strings();
	stack_and_code();
	success();
}
