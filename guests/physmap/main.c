/*
 * A PVH guest has Xen put frames into its physical memory. HVM parameters tell it where the frames
 * of its console and xenstore are. If a frame is in two places, or if RAM stays there under another
 * frame, a guest can read what it should not. If the guest may set such a parameter, it breaks the
 * toolstack.
 *
 * Success: each frame is at one place, the last that was asked for, and refusals change nothing.
 */
#include "pvh.h"

#define EPERM 1
#define EINVAL 22

static uint32_t first[1024] __attribute__((aligned(4096)));
static uint32_t second[1024] __attribute__((aligned(4096)));

static void grants(uint64_t console)
{
	first[0] = second[0] = 42;
	check_equal("grant frame 0", add_to_physmap(XENMAPSPACE_grant_table, 0, first), 0);
	check_equal("frame of entry 0, the console's", first[1], console);
	check_equal("the other page", second[0], 42);
	check_equal("the same frame again", add_to_physmap(XENMAPSPACE_grant_table, 0, second), 0);
	check_equal("frame of entry 0", second[1], console);
	check_equal("where it was", first[1], ~0u);
	check_equal("grant frame 4096", add_to_physmap(XENMAPSPACE_grant_table, 4096, second), -EINVAL);
	check_equal("shared_info 1", add_to_physmap(XENMAPSPACE_shared_info, 1, second), -EINVAL);
	check_equal("frame of entry 0, after refusals", second[1], console);
}

static void parameters(void)
{
	uint64_t before, value;

	check_equal("read xenstore's frame", get_param(HVM_PARAM_STORE_PFN, &before), 0);
	check_equal("set xenstore's frame", set_param(HVM_PARAM_STORE_PFN, 1), -EPERM);
	get_param(HVM_PARAM_STORE_PFN, &value);
	check_equal("xenstore's frame", value, before);
	check_equal("read the toolstack's", get_param(HVM_PARAM_IOREQ_PFN, &value), -EPERM);
	check_equal("read what is none", get_param(1000, &value), -EINVAL);
	printk("xenstore at 0x%lx\n", (unsigned long)before);
}

void guest_main(void)
{
	uint64_t console = 0;

	get_param(HVM_PARAM_CONSOLE_PFN, &console);
	grants(console);
	parameters();
	success();
}
