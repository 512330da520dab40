/* The PV environments: everything starts from start_info. */
#include "guest.h"
#include "pv.h"
#include "traps.h"

#ifdef __x86_64__
#define MACHINE_TO_PHYS ((const unsigned long *)0xffff800000000000UL)
const char environment[] = "pv64";
#else
#define MACHINE_TO_PHYS ((const unsigned long *)0xf5800000UL)
const char environment[] = "pv32";
#endif

static const struct start_info *info;
static struct console pv_console;

static void *mfn_to_virt(unsigned long mfn)
{
	return (void *)(MACHINE_TO_PHYS[mfn] << 12);
}

void console_again(void)
{
	pv_console = (struct console){ mfn_to_virt(info->console_mfn), info->console_evtchn };
}

void pv_start(const struct start_info *from_xen)
{
	info = from_xen;
	if (!(info->flags & SIF_INITDOMAIN))
		console_again();
	init_traps();
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
	return pv_console;
}

volatile uint64_t *table_entry(int level, const volatile void *at)
{
	const uint64_t *table = (const uint64_t *)info->pt_base;
	unsigned long address = (unsigned long)at;

	for (int from = sizeof(long) == 8 ? 4 : 3; from > level; from--)
		table = mfn_to_virt((table[address >> (3 + 9 * from) & 511] & ~0xfffull) >> 12);
	return (volatile uint64_t *)&table[address >> (3 + 9 * level) & 511];
}
