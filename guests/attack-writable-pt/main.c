/*
 * A page table that the guest can write. With it, the guest maps what it likes. XSA-148: the
 * large-page bit of an L2 entry makes everything below it writable, and was not looked at when only
 * flags changed. XSA-241, XSA-401: a page became a table while a TLB still had it writable.
 *
 * The rule: a frame is mapped writable, or it is a page table, and never both. Success: each way to
 * have both is refused, and no store reaches a table.
 */
#include "attack.h"

static char window[4096] PAGE, table[4096] PAGE;

static void map_a_table(void)
{
	volatile uint64_t *entry = l1_entry(window);
	uint64_t writable = entry_for(virt_to_mfn(entry), PTE_WRITE);

	check_equal("a table, by address", update_va_mapping(window, writable), -EBUSY);
	check_equal("a table, by entry", mmu_update(virt_to_maddr(entry), writable), -EBUSY);
	check_equal("preserving A and D",
		    mmu_update(virt_to_maddr(entry) | MMU_PT_UPDATE_PRESERVE_AD, writable), -EBUSY);
	check_read_only("a store to a table", entry);
}

static void make_a_table(void)
{
	unsigned long mfn = virt_to_mfn(table);

	check_equal("a table that is mapped writable", pin_table(1, mfn), -EINVAL);
	*(uint64_t *)table = entry_for(mfn, PTE_WRITE);
	check_equal("to read alone", protect(table), 0);
	check_equal("a table that maps itself writable", pin_table(1, mfn), -EBUSY);
	check_equal("to write again", unprotect(table), 0);
	*(uint64_t *)table = entry_for(mfn, PTE_READ);
	check_equal("to read alone", protect(table), 0);
	check_equal("pin", pin_table(1, mfn), 0);

	check_equal("its own mapping", unprotect(table), -EBUSY);
	check_equal("another mapping", update_va_mapping(window, entry_for(mfn, PTE_WRITE)), -EBUSY);
	check_equal("its entry for itself", mmu_update((uint64_t)mfn << 12, entry_for(mfn, PTE_WRITE)),
		    -EBUSY);
	check_equal("clear", mmuext(MMUEXT_CLEAR_PAGE, mfn, 0), -EINVAL);
	check_equal("copy", mmuext(MMUEXT_COPY_PAGE, mfn, virt_to_mfn(window)), -EINVAL);
	check_equal("a second pin", pin_table(1, mfn), -EINVAL);
	check_equal("another level", pin_table(2, mfn), -EINVAL);
	check_equal("what Xen writes", hypercall(__HYPERVISOR_xen_version, XENVER_capabilities,
						 (unsigned long)table, 0), -EFAULT);
	check_read_only("a store to a pinned table", table);
	check_equal("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), 0);
	check_equal("unpin twice", mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), -EINVAL);
	check_equal("to write again", unprotect(table), 0);
	memset(table, 0, sizeof(table));
}

static void map_a_large_page(void)
{
	volatile uint64_t *entry = table_entry(2, window), before = *entry;

	check_equal("a table's entry made large", mmu_update(virt_to_maddr(entry), before | PTE_PSE),
		    -EINVAL);
	check_equal("a large page", mmu_update(virt_to_maddr(entry + 200), PTE_WRITE | PTE_PSE), -EINVAL);
	check(*entry == before && !entry[200], "the L2 entries");
}

/* A store makes the TLB know a writable mapping that then goes away, unflushed. */
static void keep_a_stale_mapping(void)
{
	unsigned long mfn = virt_to_mfn(table), given = mfn;
	volatile uint64_t *entry = l1_entry(window);

	check_equal("an alias", update_va_mapping(window, entry_for(mfn, PTE_WRITE)), 0);
	*(volatile uint32_t *)window = 0;
	check_equal("to read alone", mmu_update(virt_to_maddr(entry), entry_for(mfn, PTE_READ)), 0);
	check_equal("to read alone", protect(table), 0);
	check_equal("pin", pin_table(1, mfn), 0);
	check_read_only("a store through a stale mapping", window);
	check_equal("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), 0);

	check_equal("an alias", update_va_mapping(window, entry_for(mfn, PTE_WRITE)), 0);
	*(volatile uint32_t *)window = 0;
	check_equal("no mapping", update_va_mapping(table, 0), 0);
	check_equal("no alias", mmu_update(virt_to_maddr(entry), 0), 0);
	check_equal("decrease_reservation", reserve(XENMEM_decrease_reservation, &given), 1);
	given = (unsigned long)table >> 12;
	check_equal("populate_physmap", reserve(XENMEM_populate_physmap, &given), 1);
	TRY("movl $1, (%0)", "r"(window));
	check(given != mfn || last_trap.vector == PF, "a store to a frame given back");
}

void guest_main(void)
{
	map_a_table();
	make_a_table();
	map_a_large_page();
	keep_a_stale_mapping();
	success();
}
