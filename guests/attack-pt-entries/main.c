/*
 * Entries of page tables that are in use, pinned, and walked by the CPU. XSA-148, XSA-182: entries
 * were let through unchecked when only flags changed. XSA-109: commands that are for other kinds of
 * guests. The guest also tries what such an entry must never lead to or replace: Xen's slots, Xen's
 * frames, I/O memory.
 *
 * The rule: every change of a table is validated like the table itself. Success: each such entry is
 * refused, and the old one stays.
 */
#include "attack.h"

#ifdef __x86_64__
#define XEN_SLOT_ERRNO EINVAL
#else
#define XEN_SLOT_ERRNO EPERM
#endif

static char window[4096] PAGE, other[4096] PAGE;
static uint64_t gdt[512] PAGE;

/* What an entry may not become; it must stay what it was. */
static void refused(const char *what, volatile uint64_t *entry, uint64_t new, int errno)
{
	uint64_t before = *entry, at = virt_to_maddr(entry);

	check_equal(what, mmu_update(at, new), -errno);
	check_equal(what, mmu_update(at | MMU_PT_UPDATE_PRESERVE_AD, new), -errno);
	check(*entry == before, what);
}

static void flags_alone(void)
{
	volatile uint64_t *l1 = l1_entry(window), *l2 = table_entry(2, window);

	refused("L1 with PWT", l1, *l1 | PTE_PWT, EINVAL);
	refused("L1 with PCD", l1, *l1 | PTE_PCD, EINVAL);
	refused("L1 with PAT", l1, *l1 | PTE_PAT, EINVAL);
	refused("L2 with PSE", l2, *l2 | PTE_PSE, EINVAL);
	refused("L2 with PCD", l2, *l2 | PTE_PCD, EINVAL);
	refused("L2 with G", l2, *l2 | PTE_G, EINVAL);
#ifdef __x86_64__
	for (int level = 3; level < 5; level++) {
		volatile uint64_t *entry = table_entry(level, window);

		refused("PSE higher up", entry, *entry | PTE_PSE, EINVAL);
		refused("PWT higher up", entry, *entry | PTE_PWT, EINVAL);
	}
#else
	volatile uint64_t *l3 = table_entry(3, window);

	refused("L3 with NX", l3, *l3 | PTE_NX, EINVAL);
#endif
}

static void other_frames(void)
{
	volatile uint64_t *l1 = l1_entry(window), *l2 = table_entry(2, window);
	volatile uint64_t *slot = XEN_SLOT;

	refused("L1 with a table, written", l1, entry_for(virt_to_mfn(l1), PTE_WRITE), EBUSY);
	refused("L1 with Xen's table", l1, (*slot & PTE_ADDR) | PTE_READ, EBUSY);
	refused("the same, written", l1, (*slot & PTE_ADDR) | PTE_WRITE, EBUSY);
	refused("L1 with the local APIC", l1, 0xfee00000 | PTE_WRITE, EPERM);
	refused("L1 beyond all memory", l1, PTE_ADDR | PTE_WRITE, EINVAL);
	refused("L2 with a page in use", l2, entry_for(virt_to_mfn(other), PTE_WRITE), EINVAL);
	refused("L2 with Xen's table", l2, (*slot & PTE_ADDR) | PTE_WRITE, EINVAL);
	refused("L2 with a descriptor page", l2, entry_for(virt_to_mfn(gdt), PTE_WRITE), EINVAL);
}

static void xens_slots(void)
{
	for (int i = 0; i < XEN_SLOTS; i++) {
		refused("a slot of Xen's", XEN_SLOT + i, 0, XEN_SLOT_ERRNO);
		refused("a slot of Xen's, to a table", XEN_SLOT + i, *table_entry(2, window),
			XEN_SLOT_ERRNO);
	}
#ifndef __x86_64__
	volatile uint64_t *l3 = table_entry(3, NULL);

	refused("the L3 entry that leads to Xen", l3 + 3, l3[0], EINVAL);
	refused("none there", l3 + 3, 0, EINVAL);
	refused("a fifth L3 entry", l3 + 4, l3[0], EINVAL);
#endif
}

static void not_page_tables(void)
{
	uint64_t m2p = virt_to_maddr(window), xens = *XEN_SLOT & PTE_ADDR;

	check_equal("a descriptor page", mmu_update(virt_to_maddr(gdt), 0), -EINVAL);
	check_equal("Xen's frame", mmu_update(xens, 0), -EINVAL);
	check_equal("no frame", mmu_update(1ull << 45, 0), -EINVAL);
	check_equal("no command", mmu_update(virt_to_maddr(l1_entry(window)) | 7, 0), -ENOSYS);
	check_equal("the pfn of Xen's frame", mmu_update(xens | MMU_MACHPHYS_UPDATE, 1), -EINVAL);
	check_equal("a pfn", mmu_update(m2p | MMU_MACHPHYS_UPDATE, (unsigned long)window >> 12), 0);
	check_equal("a mapping of Xen's", update_va_mapping(XEN_START, PTE_WRITE), -EINVAL);
	check_equal("of the very end", update_va_mapping((void *)-4096l, 0), -EINVAL);
#ifdef __x86_64__
	check_equal("of no address", update_va_mapping((void *)(1ul << 47), 0), -EINVAL);
#endif
}

/* D is the CPU's to set; a guest that forges it must get nothing by it. */
static void forge_dirty(void)
{
	volatile uint64_t *entry = l1_entry(other);

	check_equal("to read alone", protect(other), 0);
	check_equal("D", mmu_update(virt_to_maddr(entry), *entry | PTE_D), 0);
	check_equal("D kept", mmu_update(virt_to_maddr(entry) | MMU_PT_UPDATE_PRESERVE_AD, *entry), 0);
	check_read_only("a store to what was dirty", other);
	check_equal("to write again", unprotect(other), 0);
}

void guest_main(void)
{
	unsigned long frame = virt_to_mfn(gdt);

	check_equal("to read alone", protect(gdt), 0);
	check_equal("set_gdt", hypercall(__HYPERVISOR_set_gdt, (unsigned long)&frame, 8, 0), 0);
	flags_alone();
	other_frames();
	xens_slots();
	not_page_tables();
	forge_dirty();
	success();
}
