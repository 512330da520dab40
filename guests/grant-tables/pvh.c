/* The PVH side: the table's frames are put into the physmap, and so is a mapping. */
#ifndef GUEST_PV

#include "pvh.h"

#include "grants.h"

#define XENMAPIDX_grant_table_status (1ul << 31)
#define XENMEM_remove_from_physmap 15

extern char granted[4096];
static char table_page[4096] __attribute__((aligned(4096)));
static char status_page[4096] __attribute__((aligned(4096)));
char window[4096] __attribute__((aligned(4096)));
volatile union table *table = (volatile union table *)table_page;
volatile uint16_t *status = (volatile uint16_t *)status_page;

int see_table(void)
{
	return add_to_physmap(XENMAPSPACE_grant_table, 0, table_page) == 0;
}

int see_status(void)
{
	return add_to_physmap(XENMAPSPACE_grant_table, XENMAPIDX_grant_table_status,
			      status_page) == 0;
}

/* Xen takes it out of the physmap itself. The frame that was mapped has no place any more. */
void leave_status(void)
{
	check_equal("where the granted frame was", (uint8_t)granted[9], 0xff);
}

unsigned long frame_of(const void *page)
{
	return (unsigned long)page >> 12;
}

void only_here(uint16_t own)
{
	check_equal("transfer", transfer(5, own, 9), -ENOSYS);
}

#endif
