/*
 * What a PVH guest's ring 0 must not load: reserved bits of control and debug registers, and system
 * segments that are null, absent, of another type, or beyond the GDT (SDM volume 2, MOV, LLDT, LTR;
 * volume 3, sections 2.5 and 4.4.1, chapter 17). A CPU that accepts them hides a kernel's mistake
 * until the kernel runs on another CPU. Such a CPU may also lose its way.
 *
 * Success: each raises what the SDM says, at its instruction, and the register is what it was.
 */
#ifdef __x86_64__
#include "apic.h"
#endif
#include "pvh.h"
#include "traps.h"

#define PRESENT (1ull << 47)
#define TYPE(type) ((uint64_t)(type) << 40)
#define LDT_TYPE 2
#define TSS16_TYPE 1
#define TSS_TYPE 9
#define BUSY_TSS_TYPE 11
#define FIRST 16 /* of our descriptors: two entries each */
#define SELECTOR(index) ((index) * 8)

extern uint64_t gdt[];
static uint64_t table[64] __attribute__((aligned(4096)));

enum { ABSENT_LDT = FIRST, LDT = FIRST + 2, FAR_LDT = FIRST + 4, TYPED_LDT = FIRST + 6,
       ABSENT_TSS = FIRST + 8, BUSY_TSS = FIRST + 10, FAR_TSS = FIRST + 12, TSS16 = FIRST + 14,
       TYPED_TSS = FIRST + 16, TSS = FIRST + 18, ABSENT_TSS16 = FIRST + 20, LAST = 60 };

static void load_table(void)
{
	struct {
		uint16_t limit;
		unsigned long base;
	} __attribute__((packed)) pointer = { SELECTOR(LAST + 1) - 1, (unsigned long)table };

	memcpy(table, gdt, 10 * sizeof(table[0]));
	table[ABSENT_LDT] = 0xffff | TYPE(LDT_TYPE);
	table[LDT] = 0xffff | TYPE(LDT_TYPE) | PRESENT;
	table[FAR_LDT] = table[LDT];
	table[FAR_LDT + 1] = 0x8000; /* bits 63:32 of the base: it has bit 47 alone */
	table[TYPED_LDT] = table[LDT];
	table[TYPED_LDT + 1] = 1ull << 40;
	table[ABSENT_TSS] = 103 | TYPE(TSS_TYPE);
	table[BUSY_TSS] = 103 | TYPE(BUSY_TSS_TYPE) | PRESENT;
	table[FAR_TSS] = 103 | TYPE(TSS_TYPE) | PRESENT;
	table[FAR_TSS + 1] = 0x8000;
	table[TSS16] = 103 | TYPE(TSS16_TYPE) | PRESENT;
	table[TYPED_TSS] = 103 | TYPE(TSS_TYPE) | PRESENT;
	table[TYPED_TSS + 1] = 1ull << 40;
	table[TSS] = 103 | TYPE(TSS_TYPE) | PRESENT;
	table[ABSENT_TSS16] = 103 | TYPE(TSS16_TYPE);
	table[LAST] = table[TSS];
	asm volatile("lgdt %0" : : "m"(pointer));
}

static unsigned int task(void)
{
	unsigned int selector;

	asm volatile("str %0" : "=r"(selector));
	return selector & 0xffff;
}

static void check_task(const char *what, unsigned int selector, unsigned int vector)
{
	unsigned int before = task();
	uint64_t descriptor = table[selector / 8];

	TRY("ltr %w0", "r"(selector));
	expect_trap(what, vector, selector & ~3u);
	check_equal("TR after it", task(), before);
	check(table[selector / 8] == descriptor, "the descriptor was changed");
}

static void tasks(void)
{
	check_task("LTR of null", 3, GP);
	check_task("LTR of the LDT", SELECTOR(BUSY_TSS) | 4, GP);
	check_task("LTR beyond the GDT", SELECTOR(LAST + 1), GP);
	check_task("LTR of a busy TSS", SELECTOR(BUSY_TSS), GP);
	check_task("LTR of an absent TSS", SELECTOR(ABSENT_TSS), NP);
	check_task("LTR of an LDT", SELECTOR(LDT), GP);
#ifdef __x86_64__
	check_task("LTR of half a descriptor", SELECTOR(LAST), GP);
	check_task("LTR of a base that is not canonical", SELECTOR(FAR_TSS), GP);
	check_task("LTR of an upper half with a type", SELECTOR(TYPED_TSS), GP);
	check_task("LTR of a 16-bit TSS", SELECTOR(TSS16), GP);
	check_task("LTR of an absent 16-bit TSS", SELECTOR(ABSENT_TSS16), GP);
#endif
	TRY("ltr %w0", "r"(SELECTOR(TSS)));
	check_equal("LTR of a TSS", last_trap.vector, NO_TRAP);
	check_equal("TR after it", task(), SELECTOR(TSS));
	check(table[TSS] == (103 | TYPE(BUSY_TSS_TYPE) | PRESENT), "it is not busy");
}

static unsigned int ldt(void)
{
	unsigned int selector;

	asm volatile("sldt %0" : "=r"(selector));
	return selector & 0xffff;
}

static void check_ldt(const char *what, unsigned int selector, unsigned int vector)
{
	TRY("lldt %w0", "r"(selector));
	expect_trap(what, vector, selector & ~3u);
	check_equal("LDTR after it", ldt(), SELECTOR(LDT));
}

static void ldts(void)
{
	TRY("lldt %w0", "r"(SELECTOR(LDT)));
	check_equal("LLDT of an LDT", last_trap.vector, NO_TRAP);
	check_ldt("LLDT of the LDT", SELECTOR(LDT) | 4, GP);
	check_ldt("LLDT beyond the GDT", SELECTOR(LAST + 1), GP);
	check_ldt("LLDT of a TSS", SELECTOR(FAR_TSS), GP);
	check_ldt("LLDT of an absent LDT", SELECTOR(ABSENT_LDT), NP);
#ifdef __x86_64__
	check_ldt("LLDT of a base that is not canonical", SELECTOR(FAR_LDT), GP);
	check_ldt("LLDT of an upper half with a type", SELECTOR(TYPED_LDT), GP);
#endif
	TRY("lldt %w0", "r"(0));
	check_equal("LLDT of null", last_trap.vector, NO_TRAP);
	TRY("mov %w0, %%fs", "r"(4));
	expect_trap("a segment of no LDT", GP, 4);
}

#define CHECK_LOAD(what, name, value)                                                              \
	do {                                                                                       \
		unsigned long before, after;                                                       \
                                                                                                   \
		asm volatile("mov %%" #name ", %0" : "=r"(before));                                \
		TRY("mov %0, %%" #name, "r"(value));                                               \
		expect_trap(what, GP, 0);                                                          \
		asm volatile("mov %%" #name ", %0" : "=r"(after));                                 \
		check_equal(#name " after it", after, before);                                     \
	} while (0)

static void control_registers(void)
{
	CHECK_LOAD("CR0 with NW but not CD", cr0, read_cr0() | 1 << 29);
	CHECK_LOAD("CR0 with PG but not PE", cr0, (read_cr0() | CR0_PG) & ~1ul);
	CHECK_LOAD("CR4 with bit 31", cr4, read_cr4() | 1ul << 31);
	write_cr0(read_cr0() | 0x1ff8ffc0);
	check_equal("reserved bits of CR0", read_cr0() & 0x1ffaffc0, 0);
#ifdef __x86_64__
	CHECK_LOAD("CR0 with bit 32", cr0, read_cr0() | 1ul << 32);
	CHECK_LOAD("CR0 without PG", cr0, read_cr0() & ~(unsigned long)CR0_PG);
	CHECK_LOAD("CR3 with bit 40", cr3, read_cr3() | 1ul << 40);
	CHECK_LOAD("CR3 with bit 63", cr3, read_cr3() | 1ul << 63);
	CHECK_LOAD("CR4 without PAE", cr4, read_cr4() & ~(unsigned long)CR4_PAE);
	CHECK_LOAD("CR4 with bit 32", cr4, read_cr4() | 1ul << 32);
	CHECK_LOAD("CR8 with bit 4", cr8, 16ul);
	CHECK_LOAD("CR8 of all ones", cr8, -1ul);
#endif
}

#ifdef __x86_64__
/* CR8 is the upper half of the local APIC's task priority. */
static void task_priority(void)
{
	unsigned long value;

	asm volatile("mov %0, %%cr8" : : "r"(5ul));
	check_equal("TPR", get(TPR), 0x50);
	set(TPR, 0xa7);
	asm volatile("mov %%cr8, %0" : "=r"(value));
	check_equal("CR8", value, 0xa);
	asm volatile("mov %0, %%cr8" : : "r"(0ul));
	check_equal("TPR after it", get(TPR), 0);
}
#else
/* With PAE, the four uppermost entries are loaded, and checked, with CR3. */
static uint64_t pdpt[4] __attribute__((aligned(32)));
static uint64_t directories[2][512] __attribute__((aligned(4096))); /* the console is in the second */

static void pdptes(void)
{
	static const uint64_t reserved[] = { 1 << 1, 1 << 2, 1 << 5, 1 << 8, 1ull << 40, 1ull << 63 };

	for (unsigned int i = 0; i < 512; i++) {
		directories[0][i] = (uint64_t)i << 21 | 0x83;
		directories[1][i] = (uint64_t)(3 * 512 + i) << 21 | 0x83;
	}
	pdpt[0] = (unsigned long)directories[0] | 1;
	pdpt[3] = (unsigned long)directories[1] | 1;
	write_cr3((unsigned long)pdpt);
	write_cr4(read_cr4() | CR4_PAE);
	for (unsigned int i = 0; i < sizeof(reserved) / sizeof(*reserved); i++) {
		pdpt[1] = 1 | reserved[i];
		CHECK_LOAD("CR0.PG with a reserved bit of a PDPTE", cr0, read_cr0() | CR0_PG);
		pdpt[1] = reserved[i]; /* of one that is not present */
		write_cr0(read_cr0() | CR0_PG);
		pdpt[1] = 1 | reserved[i];
		CHECK_LOAD("CR3 with a reserved bit of a PDPTE", cr3, (unsigned long)pdpt);
		CHECK_LOAD("CR4.PGE with a reserved bit of a PDPTE", cr4, read_cr4() ^ 1 << 7);
		write_cr0(read_cr0() & ~CR0_PG);
	}
	write_cr4(read_cr4() & ~CR4_PAE);
}
#endif

#define READ(name)                                                                                 \
	({                                                                                         \
		unsigned long value;                                                               \
		asm volatile("mov %%" #name ", %0" : "=r"(value));                                 \
		value;                                                                             \
	})

static void debug_registers(void)
{
#ifdef __x86_64__
	CHECK_LOAD("DR6 with bit 32", dr6, 1ul << 32);
	CHECK_LOAD("DR7 with bit 32", dr7, 1ul << 32);
#endif
	asm volatile("mov %0, %%dr6" : : "r"(0xfffffffful));
	check_equal("DR6 of all ones", READ(dr6), 0xffffefff);
	asm volatile("mov %0, %%dr6" : : "r"(0ul));
	check_equal("DR6 of zeros", READ(dr6), 0xffff0ff0);
	asm volatile("mov %0, %%dr7" : : "r"(0xd800ul));
	check_equal("reserved bits of DR7", READ(dr7), 0x400);

	TRY("mov %0, %%dr4", "r"(0ul));
	check_equal("DR4 without CR4.DE", last_trap.vector, NO_TRAP);
	write_cr4(read_cr4() | 1 << 3);
	TRY("mov %0, %%dr5", "r"(0ul));
	expect_trap("DR5 with CR4.DE", UD, 0);
	write_cr4(read_cr4() & ~(1ul << 3));

	asm volatile("mov %0, %%dr7" : : "r"(1ul << 13)); /* GD */
	TRY("mov %0, %%dr0", "r"(0ul));
	expect_trap("DR0 with DR7.GD", DB, 0);
	check_equal("DR6 says so", READ(dr6), 0xffff2ff0); /* and the handler may */
	check_equal("DR7 in the handler", READ(dr7), 0x400);
	asm volatile("mov %0, %%dr6" : : "r"(0ul));
}

void user_rdpmc(void);
asm("user_rdpmc: xor %ecx, %ecx; rdpmc");

static void counters(void)
{
	TRY("rdpmc", "c"(0));
	expect_trap("RDPMC", GP, 0);
	run_user(user_rdpmc);
	expect_trap("RDPMC in ring 3", GP, 0);
}

void guest_main(void)
{
	load_table();
	counters();
	control_registers();
	debug_registers();
	tasks();
	ldts();
#ifdef __x86_64__
	task_priority();
#else
	pdptes();
#endif
	success();
}
