/*
 * A PVH guest pages as it likes: not at all, by 32-bit entries with or without 4 MiB pages, by PAE
 * entries, by four levels. The CPU walks its tables, and Xen walks them for the pointers of
 * hypercalls. A walk in the wrong format, or one that ignores a bit, reads or overwrites other
 * memory.
 *
 * Success: in each mode, memory is where the tables say and no further, for the CPU and for Xen.
 */
#include "pvh.h"
#include "traps.h"

#define EFAULT 14
#define PAGE_FLAGS 7ull /* present, writable, user */
#define READ_ONLY 1ull
#define LARGE (1ull << 7)
#define NX (1ull << 63)
#define WINDOW_AT 0x40000000ul /* where page table WINDOW begins */
#define LARGE_AT 0x50000000ul  /* where a large page shows guest-physical 0 */
#define HIGH_AT 0xfee00000ul   /* the console */

struct mode {
	const char *name;
	unsigned long cr4;
	int entry_size; /* 0: no paging */
	uint64_t l3_flags;
};

enum { ROOT, L3, L2_LOW, L2_WINDOW, L2_HIGH, LOW, LOW2, WINDOW, HIGH, NR_TABLES };
static char tables[NR_TABLES][4096] __attribute__((aligned(4096)));
static char pages[3][4096] __attribute__((aligned(4096)));
static const struct mode *mode;

static void put(int table, unsigned int index, uint64_t value)
{
	if (mode->entry_size == 8)
		((uint64_t *)tables[table])[index] = value;
	else
		((uint32_t *)tables[table])[index] = value;
}

static void put_table(int table, unsigned int index, int lower, uint64_t flags)
{
	put(table, index, (unsigned long)tables[lower] | flags);
}

/* Fill a page table with consecutive frames. */
static void put_frames(int table, unsigned long start)
{
	for (unsigned int i = 0; i < 4096u / mode->entry_size; i++)
		put(table, i, (start + i * 4096) | PAGE_FLAGS);
}

static void build(void)
{
	memset(tables, 0, sizeof(tables));
	put_frames(LOW, 0);
	if (mode->entry_size == 8) {
		put_table(ROOT, 0, L3, PAGE_FLAGS);
		put_table(L3, 0, L2_LOW, mode->l3_flags);
		put_table(L3, 1, L2_WINDOW, mode->l3_flags);
		put_table(L3, 3, L2_HIGH, mode->l3_flags);
		put_table(L2_LOW, 0, LOW, PAGE_FLAGS);
		put_table(L2_LOW, 1, LOW2, PAGE_FLAGS);
		put_table(L2_WINDOW, 0, WINDOW, PAGE_FLAGS);
		put(L2_WINDOW, LARGE_AT >> 21 & 511, LARGE | PAGE_FLAGS);
		put_table(L2_HIGH, HIGH_AT >> 21 & 511, HIGH, PAGE_FLAGS);
		put_frames(LOW2, 1 << 21);
		put_frames(HIGH, HIGH_AT);
	} else {
		/* Without CR4.PSE the bit for a large page means nothing. */
		put_table(ROOT, WINDOW_AT >> 22, WINDOW, mode->cr4 ? PAGE_FLAGS : PAGE_FLAGS | LARGE);
		put(ROOT, LARGE_AT >> 22, LARGE | PAGE_FLAGS);
		put_table(ROOT, 0, LOW, PAGE_FLAGS);
		put_table(ROOT, HIGH_AT >> 22, HIGH, PAGE_FLAGS);
		put_frames(HIGH, HIGH_AT & ~0x3ffffful);
	}
}

static long call_with(void *at, uint64_t *value)
{
	struct xen_hvm_param param = { .domid = DOMID_SELF, .index = HVM_PARAM_CONSOLE_PFN };
	long result;

	if (value)
		memcpy(at, &param, sizeof(param));
	result = hypercall(__HYPERVISOR_hvm_op, HVMOP_get_param, (unsigned long)at, 0);
	if (value)
		*value = ((struct xen_hvm_param *)at)->value;
	return result;
}

static void no_execute(struct frame *frame)
{
	extern char only_ret[];

	last_trap.vector = PF;
	last_trap.error = frame->error;
	frame->ip = (unsigned long)only_ret;
}

static __attribute__((noinline)) void call(char *code)
{
	last_trap.vector = NO_TRAP;
	asm volatile("call *%0; jmp 1f; only_ret: ret; 1:" : : "r"(code) : "memory");
}

static void execute(char *window)
{
	put(WINDOW, 4, (unsigned long)pages[0] | PAGE_FLAGS);
	pages[0][0] = 0xc3; /* RET */
	call(window + 4 * 4096);
	check_equal("call of a page", last_trap.vector, NO_TRAP);
	put(WINDOW, 4, (unsigned long)pages[0] | PAGE_FLAGS | NX);
	invlpg(window + 4 * 4096);
	set_handler(PF, no_execute);
	call(window + 4 * 4096);
	set_handler(PF, NULL);
	check_equal("call of a no-execute page", last_trap.vector, PF);
	check_equal("error code", last_trap.error, 0x11);
	printk("  no-execute pages\n");
}

#ifdef __x86_64__
/* A page of 1 GiB, if CPUID offers such; if not, its bit is reserved. */
static void huge_page(void)
{
	char *huge = (char *)0x80000000 + (unsigned long)pages[1];

	put(L3, 2, LARGE | PAGE_FLAGS);
	TRY("testb $1, (%0)", "r"(huge));
	if (cpuid(0x80000001, 0).edx >> 26 & 1) {
		check_equal("read by a page of 1 GiB", last_trap.vector, NO_TRAP);
		check_equal("hypercall with it", call_with(huge, NULL), 0);
		printk("  pages of 1 GiB\n");
	} else {
		check(last_trap.vector == PF && last_trap.error == 9, "pages of 1 GiB not offered");
		check_equal("hypercall with one", call_with(huge, NULL), -EFAULT);
	}
}
#endif

static void exercise(void)
{
	char *window = (char *)WINDOW_AT, *read_only = window + 2 * 4096, *absent = window + 3 * 4096;
	uint64_t value, direct;

	get_param(HVM_PARAM_CONSOLE_PFN, &direct);
	put(WINDOW, 0, (unsigned long)pages[2] | PAGE_FLAGS);
	put(WINDOW, 1, (unsigned long)pages[0] | PAGE_FLAGS);
	put(WINDOW, 2, (unsigned long)pages[1] | READ_ONLY);
	*(volatile char *)(window + 5) = 42;
	check_equal("what was written to another address", *(volatile char *)(pages[2] + 5), 42);
	check_equal("hypercall across pages", call_with(window + 4096 - 8, &value), 0);
	check_equal("its answer", value, direct);

	TRY("movb $1, (%0)", "r"(read_only));
	check(last_trap.vector == PF && last_trap.error == 3, "a read-only page can be written");
	memcpy(pages[1], pages[2] + 4096 - 8, 8); /* the hypercall's argument, but its answer */
	check_equal("hypercall that writes to it", call_with(read_only, NULL), -EFAULT);
	write_cr0(read_cr0() & ~CR0_WP);
	TRY("movb $0xf0, (%0)", "r"(read_only)); /* as it is: DOMID_SELF */
	check_equal("write without CR0.WP", last_trap.vector, NO_TRAP);
	check_equal("hypercall without CR0.WP", call_with(read_only, NULL), 0);
	write_cr0(read_cr0() | CR0_WP);

	TRY("movb $1, (%0)", "r"(absent));
	check(last_trap.vector == PF && last_trap.error == 2, "an absent page can be written");
	check_equal("CR2", last_trap.cr2, (unsigned long)absent);
	check_equal("hypercall with it", call_with(absent, NULL), -EFAULT);
	if (mode->cr4) {
		char *large = (char *)LARGE_AT;

		*(volatile char *)(large + (unsigned long)pages[2] + 6) = 43;
		check_equal("what was written by a large page", *(volatile char *)(pages[2] + 6), 43);
		check_equal("hypercall with a large page",
			    call_with(large + (unsigned long)pages[1], NULL), 0);
		printk("  large pages\n");
	}
	if (mode->entry_size == 8)
		execute(window);
}

void guest_main(void)
{
#ifdef __x86_64__
	static const struct mode modes[] = { { "64-bit", CR4_PAE, 8, PAGE_FLAGS } };
#else
	static const struct mode modes[] = {
		{ "no paging", 0, 0, 0 }, { "32-bit", 0, 4, 0 }, { "32-bit with PSE", CR4_PSE, 4, 0 },
		{ "PAE", CR4_PAE, 8, 1 },
	};
#endif
	uint64_t value;

	for (unsigned int i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		mode = &modes[i];
		printk("%s:\n", mode->name);
		check_equal("hypercall", call_with(pages[0], &value), 0);
		if (!mode->entry_size)
			continue;
#ifdef __x86_64__
		build();
		write_cr3((unsigned long)tables[ROOT]);
#else
		write_cr0(CR0_PE);
		build();
		wrmsr(MSR_EFER, EFER_NX);
		write_cr4(mode->cr4);
		write_cr3((unsigned long)tables[mode->entry_size == 8 ? L3 : ROOT]);
		write_cr0(CR0_PG | CR0_WP | CR0_PE);
#endif
		exercise();
#ifdef __x86_64__
		huge_page();
#endif
	}
	success();
}
