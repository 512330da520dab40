/*
 * Linear page tables: an entry of a table points to a table of the same level, so that the tables
 * themselves are seen as memory. XSA-182: such an entry was checked when it was made, but not when
 * only its RW bit was added. XSA-240: tables of one level pointed to each other in a chain, and Xen
 * recursed without limit when the last of them went. XSA-185: a recursive L3 of a 32-bit guest,
 * where Xen keeps more than four entries.
 *
 * The rule: no such entry may be writable. A table has linear entries, or linear entries point to
 * it, but not both. Success: reading is possible, and each writable, chained or looped entry is
 * refused.
 */
#include "attack.h"

#ifdef __x86_64__
#define LEVEL 4
#else
#define LEVEL 2
#endif
#define SLOT 100 /* and the next: entries that the guest does not use */
#define LINK (PTE_READ & ~PTE_A)

static uint64_t tables[2][512] PAGE;
static volatile uint64_t *root; /* of these tables: what the kernel runs on */

static long set(volatile uint64_t *table, const volatile void *to, uint64_t bits)
{
	uint64_t entry = to ? entry_for(virt_to_mfn(to), bits) : 0;

	return mmu_update(virt_to_maddr(table + SLOT), entry);
}

static void recursive(void)
{
	unsigned long view = 0; /* of the root, walking through its own entry at each level */

	for (int level = 1; level <= LEVEL; level++)
		view |= (unsigned long)SLOT << (3 + 9 * level);
	check_equal("recursive and writable", set(root, root, LINK | PTE_RW), -EINVAL);
	check_equal("recursive", set(root, root, LINK), 0);
	check_equal("what it shows", ((volatile uint64_t *)view)[SLOT] & ~PTE_A, root[SLOT] & ~PTE_A);
	check_read_only("a store through it", &((volatile uint64_t *)view)[SLOT + 1]);
	check_equal("RW alone", set(root, root, LINK | PTE_RW), -EINVAL);
	check_equal("RW with A", set(root, root, LINK | PTE_RW | PTE_A), -EINVAL);
	check_equal("no longer", set(root, NULL, 0), 0);
}

static void chains(void)
{
	check_equal("a first entry", set(tables[0], root, LINK), 0);
	check_equal("to another table, RW alone", set(tables[0], root, LINK | PTE_RW), -EINVAL);
	check_equal("a loop", set(root, tables[0], LINK), -EINVAL);
	check_equal("a chain, at its end", set(root, tables[1], LINK), -EINVAL);
	check_equal("a chain, at its start", set(tables[1], tables[0], LINK), -EINVAL);
	check_equal("a second entry to the same", set(tables[1], root, LINK), 0);
	check_equal("the first one gone", set(tables[0], NULL, 0), 0);
	check_equal("a loop of the second", set(root, tables[1], LINK), -EINVAL);
	check_equal("the second gone", set(tables[1], NULL, 0), 0);
}

static void no_longer_tables(void)
{
	check_equal("the other way", set(root, tables[0], LINK), 0);
	check_equal("a loop the other way", set(tables[0], root, LINK), -EINVAL);
	check_equal("unpin", mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(tables[0]), 0), 0);
	check_equal("a table that is still pointed to", unprotect(tables[0]), -EBUSY);
	check_equal("the last reference", set(root, NULL, 0), 0);
	check_equal("no table", unprotect(tables[0]), 0);

	memset(tables[0], 0, sizeof(tables[0]));
	tables[0][SLOT] = entry_for(virt_to_mfn(root), LINK);
	tables[0][SLOT + 1] = entry_for(virt_to_mfn(tables[0]), LINK | PTE_RW);
	protect(tables[0]);
	check_equal("a table with a writable entry", pin_table(LEVEL, virt_to_mfn(tables[0])), -EINVAL);
	check_equal("a loop was not left", set(root, tables[1], LINK), 0);
	check_equal("end", set(root, NULL, 0), 0);
}

void guest_main(void)
{
	root = (void *)((unsigned long)table_entry(LEVEL, NULL) & ~0xffful);
	for (int i = 0; i < 2; i++) {
		check_equal("to read alone", protect(tables[i]), 0);
		check_equal("pin", pin_table(LEVEL, virt_to_mfn(tables[i])), 0);
	}
	recursive();
	chains();
	no_longer_tables();
#ifndef __x86_64__
	volatile uint64_t *top = table_entry(3, NULL);

	check_equal("a recursive L3",
		    mmu_update(virt_to_maddr(top + 1), entry_for(virt_to_mfn(top), PTE_P)), -EINVAL);
#endif
	success();
}
