/*
 * A guest suspends itself. When its hypercall returns 1, the suspend was called off: nothing has
 * changed. When it returns 0, the guest is in a new domain: its memory is there, in other frames,
 * its registers and page tables, too. But it has no event channels, no mappings of Xen's pages, and
 * its rings have new ports. The clock has moved on.
 *
 * A PV guest tells the toolstack where its list of frames is: here first as a tree, then as an
 * address. Success: all of that is so, twice, and the guest can use events again.
 */
#include "events.h"

#define SHUTDOWN_suspend 2
#define EVTCHNSTAT_closed 0
#define EVTCHNSTAT_ipi 5
#define PAGE 4096

static uint32_t kept[2 * PAGE / 4] __attribute__((aligned(PAGE)));

static unsigned int status(uint32_t port)
{
	struct {
		uint16_t dom;
		uint32_t port, status, vcpu;
		uint64_t more;
	} op = { .dom = DOMID_SELF, .port = port };

	return event_op(EVTCHNOP_status, &op) ? ~0u : op.status;
}

static uint64_t system_time(void)
{
	return *(volatile uint64_t *)(shared.vcpu[0].time + 16);
}

#ifdef GUEST_PV
struct arch_shared_info {
	unsigned long max_pfn, frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation;
};

static unsigned long lists[PAGE / sizeof(long)] __attribute__((aligned(PAGE)));
static unsigned long list[PAGE / sizeof(long)] __attribute__((aligned(PAGE)));
static struct start_info told; /* before the suspend */

static unsigned long mfn_to_pfn(unsigned long mfn)
{
	return ((unsigned long *)(sizeof(long) == 8 ? 0xffff800000000000ull : 0xf5800000ull))[mfn];
}

/* Let the toolstack find the list of frames: it is in whole pages, where start_info says. */
static void tell_p2m(int as_tree)
{
	const struct start_info *info = start_info();
	struct arch_shared_info *arch = (void *)(shared.rest + (sizeof(long) == 8 ? 16 : 12));
	unsigned long size = info->nr_pages * sizeof(long);
	const char *at = (const char *)info->mfn_list;

	for (unsigned long i = 0; i * PAGE < size; i++)
		list[i] = virt_to_mfn(at + i * PAGE);
	lists[0] = virt_to_mfn(list);
	arch->max_pfn = info->nr_pages;
	arch->frame_list_list = as_tree ? virt_to_mfn(lists) : 0;
	arch->p2m_cr3 = as_tree ? 0 : virt_to_mfn((void *)info->pt_base) << 12;
	arch->p2m_vaddr = as_tree ? 0 : info->mfn_list;
}

static long suspend(int as_tree)
{
	struct start_info *info = (struct start_info *)start_info();
	struct sched_shutdown op = { SHUTDOWN_suspend };
	uint64_t bits = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D;

	tell_p2m(as_tree);
	update_va_mapping(&shared, virt_to_maddr(&shared) | bits);
	info->store_mfn = mfn_to_pfn(info->store_mfn);
	info->console_mfn = mfn_to_pfn(info->console_mfn);
	told = *info;

	long result = hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (unsigned long)&op,
				virt_to_mfn(info));

	if (result == 1) {
		const unsigned long *mfns = (const unsigned long *)info->mfn_list;

		info->store_mfn = mfns[info->store_mfn];
		info->console_mfn = mfns[info->console_mfn];
	}
	/* Xen's shim spoils the rest of a 32-bit guest's (pv/shim.c: write_start_info). */
	info->pt_base = told.pt_base;
	info->mfn_list = told.mfn_list;
	return result;
}

static void check_start_info(void)
{
	const struct start_info *info = start_info();

	check_equal("start_info.flags", info->flags, 0);
	check(info->store_evtchn && info->console_evtchn, "start_info has no ports");
	check_equal("this page's frame", mfn_to_pfn(virt_to_mfn(kept)), (unsigned long)kept >> 12);
}
#else
static long suspend(int as_tree)
{
	struct sched_shutdown op = { SHUTDOWN_suspend };

	(void)as_tree;
	set_param(HVM_PARAM_CALLBACK_IRQ, 1); /* no vector; but it tells of drivers */
	return hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (unsigned long)&op, 0);
}

static void check_start_info(void)
{
}
#endif

static void take_event(uint32_t port)
{
	shared.mask[port / WORD_BITS] &= ~(1ul << port % WORD_BITS);
	send(port);
	check(shared.pending[port / WORD_BITS] >> port % WORD_BITS & 1, "the event did not come");
	shared.pending[port / WORD_BITS] &= ~(1ul << port % WORD_BITS);
	shared.vcpu[0].pending_sel = 0;
	shared.vcpu[0].pending = 0;
}

static void once(int as_tree)
{
	uint32_t port = bind_ipi(0);
	uint64_t before = system_time();

	take_event(port);
	long result = suspend(as_tree);

	map_shared_info();
	unsigned long pending = shared.pending[0];

	console_again();
	printk("the hypercall returned %d\n", (int)result);
	if (result == 1) {
		check_equal("the port's status", status(port), EVTCHNSTAT_ipi);
		take_event(port);
		return;
	}
	check_equal("result", result, 0);
	check_start_info();
	check_equal("the port's status", status(port), EVTCHNSTAT_closed);
	check_equal("events that wait", pending, 0);
	check(system_time() > before, "the clock has not moved on");
	take_event(bind_ipi(0));
}

void guest_main(void)
{
	for (unsigned int i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		kept[i] = i * 2654435761u;
	map_shared_info();
	once(1);
	once(0);
	for (unsigned int i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		check_equal("memory", kept[i], i * 2654435761u);
	success();
}
