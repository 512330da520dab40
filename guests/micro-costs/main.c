/*
 * What single operations cost, for `make bench`, which notes the host's time at each line. A line
 * says how often the operation was done since the line before. The command line is a factor. If a
 * `w` follows it, the guest waits for a key after each line, so that the host may take its time.
 *
 * Success: everything was done.
 */
#include "guest.h"
#include "traps.h"
#include "events.h"

#define BATCH 128
#define AREA (64 * 1024)
#define AVAIL 0x200 /* a bit of an entry that has no meaning */

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
		requests[n].value = *entry ^ (n & 1 ? 0 : AVAIL);
	}
	while (count--)
		check_equal("mmu_update",
			    hypercall4(__HYPERVISOR_mmu_update, (unsigned long)requests, BATCH, 0,
				       DOMID_SELF), 0);
}

static void single_updates(unsigned long count)
{
	volatile uint64_t *entry = l1_entry(area);
	uint64_t ptr = virt_to_maddr(entry), value = *entry;

	while (count--)
		check_equal("mmu_update", mmu_update(ptr, value ^= AVAIL), 0);
}

static void va_updates(unsigned long count)
{
	uint64_t value = *l1_entry(area);

	while (count--)
		check_equal("update_va_mapping", update_va_mapping(area, value ^= AVAIL), 0);
}

/* To a table that is mapped read-only: Xen makes the change. */
static void stored_entries(unsigned long count)
{
	volatile uint64_t *entry = l1_entry(area);
	uint64_t value = *entry;

	check_equal("vm_assist", hypercall(__HYPERVISOR_vm_assist, VMASST_CMD_enable,
					   VMASST_TYPE_writable_pagetables, 0), 0);
	while (count--) {
		value ^= AVAIL;
		*(volatile uint32_t *)entry = value;
		if (*entry != value)
			failure("a stored entry");
	}
}

static void switches(unsigned long count)
{
	unsigned long root = virt_to_mfn((void *)start_info()->pt_base);

	while (count--)
		check_equal("NEW_BASEPTR", mmuext(MMUEXT_NEW_BASEPTR, root, 0), 0);
}

/* Each entry of the table is checked when it is pinned, and let go when it is unpinned. */
static void pins(unsigned long count)
{
	static uint64_t table[512] __attribute__((aligned(4096)));
	uint64_t writable = *l1_entry(table);

	for (unsigned int n = 0; n < 512; n++)
		table[n] = virt_to_maddr(area) | PTE_P | PTE_US | PTE_A;
	check_equal("read-only", update_va_mapping(table, writable & ~PTE_RW), 0);
	while (count--) {
		check_equal("pin", pin_table(1, virt_to_mfn(table)), 0);
		check_equal("unpin", mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(table), 0), 0);
	}
	check_equal("writable", update_va_mapping(table, writable), 0);
}

/* What a kernel does to make a process and to let it end: all of the above, in Linux's mix. */
static void address_spaces(unsigned long count)
{
	while (count--) {
		pins(1);
		single_updates(64);
		switches(4);
		stored_entries(8);
		va_updates(8);
	}
}

#else

#define VECTOR 0xf3

static unsigned int upcalls;

static void upcall(struct frame *frame)
{
	(void)frame;
	upcalls++;
	shared.vcpu[0].pending = 0;
	*(volatile unsigned long *)&shared.vcpu[0].pending_sel = 0;
	*(volatile unsigned long *)&shared.pending[0] = 0;
}

static void events(unsigned long count)
{
	uint32_t port = bind_ipi(0);

	set_handler(VECTOR, upcall);
	check_equal("callback",
		    set_param(HVM_PARAM_CALLBACK_IRQ, HVM_CALLBACK_VECTOR(VECTOR)), 0);
	event_op(EVTCHNOP_unmask, &port);
	let_interrupts_in();
	upcalls = 0;
	for (unsigned long n = 0; n < count; n++) {
		send(port);
		let_interrupts_in();
	}
	check_equal("upcalls", upcalls, count);
}

#endif

static int waits_for_keys;

static unsigned long factor(void)
{
	unsigned long value = 0;
	const char *digit = command_line();

	for (; *digit >= '0' && *digit <= '9'; digit++)
		value = 10 * value + (*digit - '0');
	waits_for_keys = *digit == 'w';
	return value;
}

/* Let the host look at the console: it does whenever the vcpu waits. */
static void wait(void)
{
	struct { unsigned long ports; unsigned int nr_ports; uint64_t timeout; } op;
	struct console from = console();
	uint32_t low, high;

	if (waits_for_keys) {
		while (*(volatile uint32_t *)&from.ring->in_prod == from.ring->in_cons)
			poll(from.port);
		from.ring->in_cons++;
		return;
	}
	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	op.ports = op.nr_ports = 0;
	op.timeout = ((uint64_t)high << 32 | low) + 1000;
	check_equal("poll", hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (unsigned long)&op, 0),
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

	map_shared_info();
	printk("start\n");
	wait();
	measure("block", blocks, 20000 * by);
	measure("store", stores, 20000 * by);
	measure("hypercall", hypercalls, 200 * by);
	measure("page fault", faults, 100 * by);
#ifdef GUEST_PV
	measure("mmu_update of 128", updates, 10 * by);
	measure("baseptr", switches, 100 * by);
	measure("mmu_update of 1", single_updates, 100 * by);
	measure("update_va_mapping", va_updates, 100 * by);
	measure("stored entry", stored_entries, 10 * by);
	measure("pinned L1", pins, by);
	measure("address space", address_spaces, by);
#else
	measure("event upcall", events, 20 * by);
#endif
	success();
}
