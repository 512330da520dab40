/*
 * The PVH environments: hvm_start_info, CPUID leaves, the hypercall page by MSR, HVM parameters.
 * Those of the PVH draft of 2015 have start_info instead; all else is the same.
 */
#include "pvh.h"
#include "traps.h"

#ifdef GUEST_DRAFT
#define KIND "draft"
#else
#define KIND "pvh"
#endif
#ifdef __x86_64__
const char environment[] = KIND "64";
#else
const char environment[] = KIND "32";
#endif

/* What the head does not reach stays all ones. */
struct entry_state entry_state = { .info = ~0u, .es = ~0u, .ds = ~0u };
static struct console pv_console;

uint32_t xen_leaf(void)
{
	for (uint32_t leaf = XEN_CPUID_FIRST_LEAF; leaf < XEN_CPUID_FIRST_LEAF + 0x10000; leaf += 0x100) {
		struct cpuid is = cpuid(leaf, 0);

		if (is.ebx == 0x566e6558 && is.ecx == 0x65584d4d && is.edx == 0x4d4d566e)
			return leaf; /* "XenVMMXenVMM" */
	}
	return 0;
}

long get_param(uint32_t index, uint64_t *value)
{
	struct xen_hvm_param param = { .domid = DOMID_SELF, .index = index };
	long result = hypercall(__HYPERVISOR_hvm_op, HVMOP_get_param, (unsigned long)&param, 0);

	*value = param.value;
	return result;
}

long set_param(uint32_t index, uint64_t value)
{
	struct xen_hvm_param param = { .domid = DOMID_SELF, .index = index, .value = value };

	return hypercall(__HYPERVISOR_hvm_op, HVMOP_set_param, (unsigned long)&param, 0);
}

long add_to_physmap(unsigned int space, unsigned long index, void *page)
{
	struct xen_add_to_physmap add = {
		.domid = DOMID_SELF, .space = space, .idx = index, .gpfn = (unsigned long)page >> 12,
	};

	return hypercall(__HYPERVISOR_memory_op, XENMEM_add_to_physmap, (unsigned long)&add, 0);
}

void console_again(void)
{
	uint64_t frame = 0, port = 0;

	if (get_param(HVM_PARAM_CONSOLE_PFN, &frame) || get_param(HVM_PARAM_CONSOLE_EVTCHN, &port))
		asm volatile("ud2");
	pv_console = (struct console){ pointer(frame << 12), port };
}

void pvh_start(void)
{
	extern char hypercall_page[];
	uint32_t leaf = xen_leaf();

	if (!leaf)
		asm volatile("ud2");
	wrmsr(cpuid(leaf + 2, 0).ebx, (unsigned long)hypercall_page);
	console_again();
	init_traps();
	start();
}

#ifdef GUEST_DRAFT
const struct start_info *start_info(void)
{
	return pointer(entry_state.info);
}

const struct hvm_start_info *hvm_start_info(void)
{
	return NULL;
}

const char *command_line(void)
{
	return start_info()->cmd_line;
}
#else
const struct start_info *start_info(void)
{
	return NULL;
}

const struct hvm_start_info *hvm_start_info(void)
{
	return pointer(entry_state.info);
}

const char *command_line(void)
{
	return pointer(hvm_start_info()->cmdline_paddr);
}
#endif

struct console console(void)
{
	return pv_console;
}

void check_flat_start(void)
{
	check_equal("CR0", entry_state.cr0 & ~0x10u, CR0_PE); /* ET cannot be written */
	check_equal("CR4", entry_state.cr4, 0);
	check_equal("EFLAGS: VM, IF, TF", entry_state.eflags & 0x20300, 0);
	check_equal("stored through ES, upper half", entry_state.es >> 16, 0);
	check_equal("stored through DS, upper half", entry_state.ds >> 16, 0);
	check_equal("CS' base", entry_state.info_through_cs - entry_state.info, 0);
	check_equal("EIP", entry_state.eip_error, 0);
}
