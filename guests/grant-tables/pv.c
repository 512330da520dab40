/* The PV side: the table's frames are mapped, and so is what a mapping replaces. */
#ifdef GUEST_PV

#include "grants.h"
#include "pv.h"

#define BITS (PTE_P | PTE_RW | PTE_US | 0x60)

static char table_page[4096] __attribute__((aligned(4096)));
static char status_page[4096] __attribute__((aligned(4096)));
static char spare[4096] __attribute__((aligned(4096)));
char window[4096] __attribute__((aligned(4096)));
volatile union table *table = (volatile union table *)table_page;
volatile uint16_t *status = (volatile uint16_t *)status_page;

static int see(const volatile void *at, uint64_t mfn)
{
	return update_va_mapping(at, mfn << 12 | BITS) == 0;
}

int see_table(void)
{
	unsigned long mfn = 0;
	struct gnttab_setup_table op = { DOMID_SELF, 1, 99, &mfn };

	return grant_table_op(GNTTABOP_setup_table, &op) == 0 && op.status == 0 &&
	       see(table_page, mfn);
}

int see_status(void)
{
	uint64_t mfn = 0;
	struct gnttab_get_status_frames op = { 1, DOMID_SELF, 99, &mfn };

	return grant_table_op(GNTTABOP_get_status_frames, &op) == 0 && op.status == 0 &&
	       see(status_page, mfn);
}

void leave_status(void)
{
	uint32_t wanted = 1;

	check_equal("set_version with a status frame mapped",
		    grant_table_op(GNTTABOP_set_version, &wanted), -EBUSY);
	check_equal("unmap the status", update_va_mapping(status_page, 0), 0);
}

unsigned long frame_of(const void *page)
{
	return virt_to_mfn(page);
}

/* A mapping may be undone so that another page comes in its place; that has none if it fails. */
static void replaced(uint16_t own)
{
	unsigned long mfn = virt_to_mfn(spare);
	struct gnttab_map_grant_ref mapping = { (unsigned long)window, GNTMAP_host_map, 9, own, 99,
						0, 0 };
	struct gnttab_unmap_grant_ref op = { (unsigned long)window, (unsigned long)spare, 0, 99 };

	table->v1[9] = (struct grant_entry_v1){ GTF_permit_access, own, virt_to_mfn(window) };
	check(see(window, virt_to_mfn(window)), "the page of the window");
	spare[0] = 'r';
	window[0] = 'w';
	check_equal("map", grant_table_op(GNTTABOP_map_grant_ref, &mapping), 0);
	check_equal("map's status", mapping.status, 0);
	op.handle = mapping.handle;
	check_equal("an entry of the guest's own", update_va_mapping(window, 0), 0);
	check_equal("replace", grant_table_op(GNTTABOP_unmap_and_replace, &op), 0);
	check_equal("its status without the mapping", op.status, GNTST_general_error);
	check_equal("the other entry", *l1_entry(spare) & PTE_P, 0);
	check(see(window, virt_to_mfn(window)) && see(spare, mfn), "both are there again");
	check_equal("replace", grant_table_op(GNTTABOP_unmap_and_replace, &op), 0);
	check_equal("its status with the mapping", op.status, 0);
	check_equal("the page in its place", *(volatile char *)window, 'r');
	check_equal("where that was", *l1_entry(spare) & PTE_P, 0);
	check(see(window, virt_to_mfn(window)) && see(spare, mfn), "both pages back");
	check_equal("their contents", window[0] + spare[0], 'w' + 'r');
}

/* A grant is mapped 128 times at most for each kind of use, and for each by a handle of its own. */
static void counted(uint16_t own)
{
	static uint32_t handles[128];
	struct gnttab_map_grant_ref op = { 0, GNTMAP_device_map, 9, own, 99, 0, 0 };
	struct gnttab_unmap_grant_ref undo = { 0, 0, 0, 99 };

	table->v1[9] = (struct grant_entry_v1){ GTF_permit_access, own, virt_to_mfn(spare) };
	for (int i = 0; i < 128; i++) {
		grant_table_op(GNTTABOP_map_grant_ref, &op);
		check_equal("a device's mapping", op.status, 0);
		handles[i] = op.handle;
		if (i)
			check_equal("its handle", op.handle, handles[i - 1] + 1);
	}
	grant_table_op(GNTTABOP_map_grant_ref, &op);
	check_equal("mapping 129", op.status, GNTST_general_error);
	op.flags |= GNTMAP_readonly;
	grant_table_op(GNTTABOP_map_grant_ref, &op);
	check_equal("one for reading", op.status, 0);
	check_equal("the handle after the refused one's", op.handle, handles[127] + 2);
	check_equal("the device's address", op.dev_bus_addr >> 12, virt_to_mfn(spare));
	undo.other_addr = op.dev_bus_addr;
	for (int i = 0; i < 129; i++) {
		undo.handle = i < 128 ? handles[i] : op.handle;
		grant_table_op(GNTTABOP_unmap_grant_ref, &undo);
		check_equal("its unmap", undo.status, 0);
	}
	check_equal("in use after them", table->v1[9].flags, GTF_permit_access);
}

/* A page that nothing maps may be given away, also to oneself. */
static void transferred(uint16_t own)
{
	unsigned long mfn = virt_to_mfn(spare);

	spare[0] = 't';
	check_equal("transfer a mapped page", transfer(mfn, own, 9), GNTST_bad_page);
	check_equal("unmap it", update_va_mapping(spare, 0), 0);
	table->v1[9] = (struct grant_entry_v1){ GTF_accept_transfer, own, 5 };
	check_equal("transfer", transfer(mfn, own, 9), 0);
	check_equal("the entry's flags", table->v1[9].flags,
		    GTF_accept_transfer | GTF_transfer_done);
	check_equal("the entry's frame", table->v1[9].frame, mfn);
	check(see(spare, mfn), "the page is there");
	check_equal("what is in it", spare[0], 't');
	check_equal("unmap it again", update_va_mapping(spare, 0), 0);
	check_equal("transfer to nobody", transfer(mfn, DOMID_SELF, 9), GNTST_bad_domain);
	check_equal("transfer it again", transfer(mfn, own, 9), GNTST_bad_page);
}

void only_here(uint16_t own)
{
	replaced(own);
	counted(own);
	transferred(own);
}

#endif
