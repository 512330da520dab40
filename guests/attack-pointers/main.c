/*
 * Hypercalls that are told to read or write where the guest itself could not. XSA-212 is of this
 * kind, and so is every case where Xen forgot to look at a pointer. The pointers lead to Xen's
 * code, to its memory, or to the table of machine addresses. (The guest may read that table, but
 * Xen must not write it for the guest.) Or they are not canonical, or the range wraps around.
 *
 * The rule: for a guest, Xen touches only what is the guest's. Success: each call is -EFAULT, and
 * nothing changes.
 */
#include "attack.h"

#define SCHEDOP_poll 3
#define XENMEM_memory_map 9
#define VCPUOP_register_vcpu_info 10
#define VCPUOP_get_runstate_info 4
#define MMUEXT(pointer) hypercall4(__HYPERVISOR_mmuext_op, pointer, 1, 0, DOMID_SELF)
#define MMU(pointer, done) hypercall4(__HYPERVISOR_mmu_update, pointer, 1, done, DOMID_SELF)

static char page[4096] PAGE, hole[4096] PAGE;

#define POINTER 0x706f696e /* where the pointer is to be, among the arguments */

struct call {
	const char *name;
	unsigned int number;
	unsigned long first, second, third;
};

static const struct call reading[] = {
	{ "set_trap_table", __HYPERVISOR_set_trap_table, POINTER, 0, 0 },
	{ "set_gdt", __HYPERVISOR_set_gdt, POINTER, 8, 0 },
	{ "memory_map", __HYPERVISOR_memory_op, XENMEM_memory_map, POINTER, 0 },
	{ "multicall", __HYPERVISOR_multicall, POINTER, 1, 0 },
	{ "poll", __HYPERVISOR_sched_op, SCHEDOP_poll, POINTER, 0 },
	{ "shutdown", __HYPERVISOR_sched_op, SCHEDOP_shutdown, POINTER, 0 },
	{ "callback_op", __HYPERVISOR_callback_op, CALLBACKOP_register, POINTER, 0 },
	{ "nmi_op", __HYPERVISOR_nmi_op, 0, POINTER, 0 },
	{ "send", __HYPERVISOR_event_channel_op, EVTCHNOP_send, POINTER, 0 },
	{ "set_iopl", __HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, POINTER, 0 },
	{ "register_vcpu_info", __HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info, 0, POINTER },
};

static const struct call writing[] = {
	{ "extraversion", __HYPERVISOR_xen_version, XENVER_extraversion, POINTER, 0 },
	{ "capabilities", __HYPERVISOR_xen_version, XENVER_capabilities, POINTER, 0 },
	{ "get_runstate_info", __HYPERVISOR_vcpu_op, VCPUOP_get_runstate_info, 0, POINTER },
};

static void refused(const struct call *calls, unsigned int count, unsigned long at)
{
#define VALUE(argument) ((argument) == POINTER ? at : (argument))
	for (unsigned int i = 0; i < count; i++)
		check_equal(calls[i].name, hypercall(calls[i].number, VALUE(calls[i].first),
						     VALUE(calls[i].second), VALUE(calls[i].third)),
			    -EFAULT);
}

static void refused_to_read(unsigned long at)
{
	refused(reading, sizeof(reading) / sizeof(*reading), at);
	check_equal("mmu_update", MMU(at, 0), -EFAULT);
	check_equal("mmuext_op", MMUEXT(at), -EFAULT);
}

static void refused_to_write(unsigned long at)
{
	refused(writing, sizeof(writing) / sizeof(*writing), at);
}

/* What was done is told at a place of the guest's choice; that it fails is not the guest's to know. */
static void the_count_done(void)
{
	unsigned long before = *(volatile unsigned long *)XEN_START;
	struct mmu_update same = { virt_to_maddr(l1_entry(page)), *l1_entry(page) };

	check_equal("the count in Xen", MMU((unsigned long)&same, (unsigned long)XEN_START), 0);
	check_equal("the machine-to-physical table", *(volatile unsigned long *)XEN_START, before);
}

void guest_main(void)
{
	static const unsigned long places[] = {
		(unsigned long)XEN_UNMAPPED,
		-2ul, /* around the end */
#ifdef __x86_64__
		(unsigned long)XEN_START, /* a 32-bit guest may point there: it can read it */
		(unsigned long)XEN_START - 2,
		0xffff82d040200000,
		1ul << 47,
		(1ul << 47) - 2,
		1ul << 63,
#endif
	};

	for (unsigned int i = 0; i < sizeof(places) / sizeof(*places); i++) {
		refused_to_read(places[i]);
		refused_to_write(places[i]);
	}
	refused_to_write((unsigned long)XEN_START);
	refused_to_write((unsigned long)XEN_START - 2);
	check_equal("a hole", update_va_mapping(hole, 0), 0);
	refused_to_read((unsigned long)hole - 2);
	refused_to_write((unsigned long)hole - 2);
	refused_to_write((unsigned long)l1_entry(page));
	the_count_done();
	success();
}
