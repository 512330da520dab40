/*
 * What single operations cost, for `make bench`, which notes the host's time at each line. A line
 * says how often the operation was done since the line before. The command line is a factor.
 *
 * Success: everything was done.
 */
#include "guest.h"
#include "traps.h"
#ifdef GUEST_PV
#include "pv.h"
#else
#include "pvh.h"
#endif

#define BATCH 128
#define SCHEDOP_poll 3
#define AREA (64 * 1024)

static char area[AREA] __attribute__((aligned(4096)));

static void blocks(unsigned long count)
{
	while (count--)
		asm volatile("jmp 1f; 1:");
}

static void stores(unsigned long count)
{
	volatile uint32_t *word = (volatile uint32_t *)area;

	for (unsigned long n = 0; n < count; n++)
		word[n % (AREA / 4)] = n;
}

static void hypercalls(unsigned long count)
{
	while (count--)
		hypercall(__HYPERVISOR_xen_version, 0, 0, 0);
}

static void faults(unsigned long count)
{
	while (count--)
		TRY("testb $1, (%0)", "r"(0xd0000000ul));
}

#ifdef GUEST_PV

static void updates(unsigned long count)
{
	static struct { uint64_t ptr, value; } requests[BATCH];
	volatile uint64_t *entry = l1_entry(area);
	uint64_t table = (uint64_t)(*l1_entry(entry) >> 12 & 0xffffffff) << 12;

	for (unsigned int n = 0; n < BATCH; n++) {
		requests[n].ptr = table | ((unsigned long)entry & 0xfff);
		requests[n].value = *entry ^ (n & 1 ? 0 : 0x200); /* a bit of no meaning */
	}
	while (count--)
		check_equal("mmu_update",
			    hypercall4(__HYPERVISOR_mmu_update, (unsigned long)requests, BATCH, 0,
				       DOMID_SELF), 0);
}

static void switches(unsigned long count)
{
	unsigned long root = virt_to_mfn((void *)start_info()->pt_base);

	while (count--)
		check_equal("NEW_BASEPTR", mmuext(MMUEXT_NEW_BASEPTR, root, 0), 0);
}

#else

#define VECTOR 0xf3
#define EVTCHNOP_bind_ipi 7
#define EVTCHNOP_unmask 9

static unsigned int upcalls;
static volatile uint64_t shared_info[512] __attribute__((aligned(4096)));

static void upcall(struct frame *frame)
{
	(void)frame;
	upcalls++;
	((volatile uint8_t *)shared_info)[0] = 0;
	shared_info[1] = 0;   /* the selector, */
	shared_info[256] = 0; /* and the events themselves */
}

static void events(unsigned long count)
{
	uint32_t op[2] = { 0, 0 };

	check_equal("shared_info", add_to_physmap(XENMAPSPACE_shared_info, 0,
						  (void *)shared_info), 0);
	set_handler(VECTOR, upcall);
	check_equal("callback",
		    set_param(HVM_PARAM_CALLBACK_IRQ, HVM_CALLBACK_VECTOR(VECTOR)), 0);
	hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_ipi, (unsigned long)op, 0);
	hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_unmask, (unsigned long)&op[1], 0);
	let_interrupts_in();
	upcalls = 0;
	for (unsigned long n = 0; n < count; n++) {
		hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, (unsigned long)&op[1], 0);
		let_interrupts_in();
	}
	check_equal("upcalls", upcalls, count);
}

#endif

static unsigned long factor(void)
{
	unsigned long value = 0;

	for (const char *digit = command_line(); *digit >= '0' && *digit <= '9'; digit++)
		value = 10 * value + (*digit - '0');
	return value;
}

/* Let the host look at the console: it does whenever the vcpu waits. */
static void wait(void)
{
	struct { unsigned long ports; unsigned int nr_ports; uint64_t timeout; } poll;
	uint32_t low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	poll.ports = poll.nr_ports = 0;
	poll.timeout = ((uint64_t)high << 32 | low) + 1000;
	check_equal("poll", hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (unsigned long)&poll, 0),
		    0);
}

static void measure(const char *name, void (*operation)(unsigned long), unsigned long count)
{
	operation(count);
	printk("%s: %lu\n", name, count);
	wait();
}

void guest_main(void)
{
	unsigned long by = factor();

	printk("start\n");
	wait();
	measure("block", blocks, 20000 * by);
	measure("store", stores, 20000 * by);
	measure("hypercall", hypercalls, 20 * by);
	measure("page fault", faults, 20 * by);
#ifdef GUEST_PV
	measure("mmu_update of 128", updates, by);
	measure("baseptr", switches, 20 * by);
#else
	measure("event upcall", events, 20 * by);
#endif
	success();
}
