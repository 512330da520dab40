/* The PV environments: everything starts from start_info. */
#include "guest.h"

#ifdef __x86_64__
#define MACHINE_TO_PHYS ((const unsigned long *)0xffff800000000000UL)
const char environment[] = "pv64";
#else
#define MACHINE_TO_PHYS ((const unsigned long *)0xf5800000UL)
const char environment[] = "pv32";
#endif

static const struct start_info *info;

void pv_start(const struct start_info *from_xen)
{
	info = from_xen;
	start();
}

const struct start_info *start_info(void)
{
	return info;
}

const struct hvm_start_info *hvm_start_info(void)
{
	return NULL;
}

const char *command_line(void)
{
	return info->cmd_line;
}

struct console console(void)
{
	unsigned long pfn = MACHINE_TO_PHYS[info->console_mfn];

	return (struct console){ (void *)(pfn << 12), info->console_evtchn };
}
