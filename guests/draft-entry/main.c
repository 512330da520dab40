/*
 * The PVH draft of 2015: a number in EAX, and ESI on a start_info whose addresses are physical.
 * docs/entries.md has all of it.
 *
 * Success: each promise is kept; what start_info does not tell, hypercalls do: the memory map, and
 * by HVM parameters the rings. The console is one of these, or nothing of this would be seen.
 */
#include "pvh.h"

#define DRAFT_EAX 0xff6bc1e2

static void check_machine_state(void)
{
	check_equal("EAX", entry_state.eax, DRAFT_EAX);
	check_equal("ESI, within a page", entry_state.info & 0xfff, 0);
	check_flat_start();
}

static void check_rings(const struct start_info *info)
{
	uint64_t frame = 0, port = 0;

	check_equal("the console in start_info", info->console_mfn | info->console_evtchn, 0);
	check_equal("the store in start_info", info->store_mfn | info->store_evtchn, 0);
	check(!get_param(HVM_PARAM_STORE_PFN, &frame) && frame, "HVM_PARAM_STORE_PFN");
	check(!get_param(HVM_PARAM_STORE_EVTCHN, &port) && port, "HVM_PARAM_STORE_EVTCHN");
}

static void check_memory_map(const struct start_info *info)
{
	static struct { uint64_t addr, size; uint32_t type; } __attribute__((packed)) e820[32];
	struct { unsigned int nr_entries; void *buffer; } map = { 32, e820 };
	uint64_t ram = 0;

	check(!hypercall(__HYPERVISOR_memory_op, XENMEM_memory_map, (unsigned long)&map, 0),
	      "XENMEM_memory_map");
	for (unsigned int i = 0; i < map.nr_entries && i < 32; i++)
		if (e820[i].type == XEN_HVM_MEMMAP_TYPE_RAM)
			ram += e820[i].size;
	check(ram <= (uint64_t)info->nr_pages << 12 && ram > ((uint64_t)info->nr_pages - 256) << 12,
	      "RAM in the memory map: nr_pages, but for what lies below 1 MiB");
}

void guest_main(void)
{
	const struct start_info *info = start_info();

	check_machine_state();
	printk("%s: %lu pages, flags 0x%x, command line '%s'\n", info->magic, info->nr_pages,
	       info->flags, command_line());
	check_equal("mod_start, within a page", info->mod_start & 0xfff, 0);
	if (info->mod_len)
		printk("a module in %lu bytes: %s", info->mod_len, (char *)pointer(info->mod_start));
	check_equal("what paging would need", info->shared_info | info->pt_base |
		    info->nr_pt_frames | info->mfn_list | info->first_p2m_pfn |
		    info->nr_p2m_frames, 0);
	check_rings(info);
	check_memory_map(info);
	success();
}
