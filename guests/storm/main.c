/*
 * Things that take the host longer than they take the guest, again and again. Whatever a guest
 * does, a limit, a signal or a debugger must soon get through to xenemu. The command line names the
 * thing that is to go on for ever, for bench/storms.py. Without a name, each is done for a moment.
 *
 * Success: each was done.
 */
#include "guest.h"
#include "traps.h"
#ifdef GUEST_PV
#include "attack.h"
#else
#include "apic.h"
#include "pvh.h"
#endif

#define SCHEDOP_yield 0
#define ENTRIES 128
#define PAGES 500
#define EFLAGS_TF 0x100

static void hypercalls(void)
{
	hypercall(__HYPERVISOR_xen_version, 0, 0, 0);
}

static void multicalls(void)
{
	static struct { unsigned long op, result, args[6]; } entries[ENTRIES];

	for (unsigned int n = 0; n < ENTRIES; n++)
		entries[n].op = __HYPERVISOR_xen_version;
	hypercall(__HYPERVISOR_multicall, (unsigned long)entries, ENTRIES, 0);
}

static void yields(void)
{
	hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0);
}

static void faults(void)
{
	TRY("testb $1, (%0)", "r"(0xd0000000ul));
}

static void ports(void)
{
	TRY("outb %%al, $0x80", "a"(0)); /* which a PV guest may not use: Xen looks, and refuses */
}

static void cpuids(void)
{
	unsigned int a = 0, b, c = 0, d;

	asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
}

static void msrs(void)
{
	unsigned int low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0xc0000080));
}

static unsigned long steps;

static void step(struct frame *frame)
{
	(void)frame;
	steps++;
}

static void single_steps(void)
{
	set_handler(DB, step);
#ifdef __x86_64__
	asm volatile("pushfq; orq %0, (%%rsp); popfq; .rept 64; nop; .endr;"
		     "pushfq; andq %1, (%%rsp); popfq" : : "i"(EFLAGS_TF), "i"(~EFLAGS_TF));
#else
	asm volatile("pushfl; orl %0, (%%esp); popfl; .rept 64; nop; .endr;"
		     "pushfl; andl %1, (%%esp); popfl" : : "i"(EFLAGS_TF), "i"(~EFLAGS_TF));
#endif
}

static void pauses(void)
{
	asm volatile("pause");
}

#ifdef GUEST_PV

/* An L2 table all of whose entries lead to one L1 table, all of whose entries lead to one page. */
static void pins(void)
{
	static uint64_t l1[512] PAGE, l2[512] PAGE;
	static int ready;

	if (!ready) {
		for (unsigned int n = 0; n < 512; n++) {
			l1[n] = entry_for(virt_to_mfn(l1), PTE_READ);
			l2[n] = entry_for(virt_to_mfn(l1), PTE_WRITE);
		}
		check_equal("protect", protect(l1) | protect(l2), 0);
		ready = 1;
	}
	check_equal("pin", pin_table(2, virt_to_mfn(l2)), 0);
	check_equal("unpin", mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(l2), 0), 0);
}

#else

static void loads(void)
{
	get(ID);
}

/* One instruction, which never ends by itself. */
static void hole(void)
{
	unsigned long at = 0x30000000, count = *command_line() ? -1ul : 100;

	asm volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(0) : "memory");
}

#define XENMEM_decrease_reservation 1
#define XENMEM_populate_physmap 6
struct xen_memory_reservation {
	unsigned long *extent_start;
	unsigned long nr_extents;
	unsigned int extent_order, mem_flags;
	uint16_t domid;
};

static void populations(void)
{
	static unsigned long frames[PAGES];
	struct xen_memory_reservation reservation = { frames, PAGES, 0, 0, DOMID_SELF };

	for (unsigned int n = 0; n < PAGES; n++)
		frames[n] = 0x2000 + n; /* at 32 MiB, where nothing of this guest's is */
	check_equal("decrease", hypercall(__HYPERVISOR_memory_op, XENMEM_decrease_reservation,
					  (unsigned long)&reservation, 0), PAGES);
	check_equal("populate", hypercall(__HYPERVISOR_memory_op, XENMEM_populate_physmap,
					  (unsigned long)&reservation, 0), PAGES);
}

#endif

static const struct storm {
	const char *name;
	void (*rages)(void);
} storms[] = {
	{ "hypercall", hypercalls }, { "multicall", multicalls }, { "yield", yields },
	{ "fault", faults }, { "port", ports }, { "cpuid", cpuids }, { "msr", msrs },
	{ "step", single_steps }, { "pause", pauses },
#ifdef GUEST_PV
	{ "pin", pins },
#else
	{ "mmio", loads }, { "hole", hole }, { "populate", populations },
#endif
};

static int same(const char *a, const char *b)
{
	for (; *a && *a == *b; a++, b++)
		;
	return *a == *b;
}

void guest_main(void)
{
	for (unsigned int n = 0; n < sizeof storms / sizeof *storms; n++) {
		if (same(command_line(), storms[n].name))
			for (;;)
				storms[n].rages();
		storms[n].rages();
		printk("%s\n", storms[n].name);
	}
	check(steps >= 64, "single steps");
	check(!*command_line(), "there is no such storm");
	success();
}
