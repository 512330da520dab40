/*
 * Descriptors that lead into Xen, or that change after their check. XSA-298: Xen looked up
 * descriptors without regard to the limit of their table. XSA-241: a page became something else
 * while a stale mapping of it was still writable.
 *
 * The rule: a GDT ends before Xen's own entries. A page of descriptors is never mapped writable
 * while it is loaded. None of its entries is a system segment, or a gate to Xen's code. Success:
 * each such table is refused, or faults when it is used.
 */
#include "attack.h"

#ifdef __x86_64__
#define KERNEL_RING 3ull
#else
#define KERNEL_RING 1ull
#endif
#define DATA (0x00cf93000000ffff | KERNEL_RING << 45)
#define PRESENT (1ull << 47)
#define SELECTOR(index) ((index) << 3 | KERNEL_RING)
#define LDT 4
#define CALL_GATE (PRESENT | 0xcull << 40)
#define XEN_CS (0xe008ull << 16)

static uint64_t gdt[512] PAGE, ldt[512] PAGE;
static char window[4096] PAGE;

static long set_gdt(unsigned long frame, unsigned int entries)
{
	return hypercall(__HYPERVISOR_set_gdt, (unsigned long)&frame, entries, 0);
}

static void kinds(void)
{
	/* Segments of system tables and tasks, and gates of interrupts; then gates that are Xen's. */
	static const uint64_t bad[] = {
		PRESENT | 1ull << 40, PRESENT | 2ull << 40, PRESENT | 3ull << 40, PRESENT | 5ull << 40,
		PRESENT | 9ull << 40, PRESENT | 0xbull << 40, PRESENT | 0xeull << 40,
		PRESENT | 0xfull << 40, CALL_GATE | XEN_CS, CALL_GATE | XEN_CS | 3ull << 16,
#ifndef __x86_64__
		DATA | 8ull << 40 | 1ull << 53, /* 64-bit code */
#endif
	};

	for (unsigned int i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		check_equal("update_descriptor", update_descriptor(virt_to_maddr(&gdt[1]), bad[i]), -EINVAL);
		check_equal("the descriptor after it", gdt[1], 0);
	}
	for (unsigned int i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		ldt[1] = bad[i];
		check_equal("to read alone", protect(ldt), 0);
		check_equal("set_gdt", set_gdt(virt_to_mfn(ldt), 8), -EINVAL);
		check_equal("to write again", unprotect(ldt), 0);
	}
	ldt[1] = DATA;
}

static void gdts(void)
{
	check_equal("entries up to Xen's", set_gdt(virt_to_mfn(gdt), 14 * 512 + 1), -EINVAL);
	check_equal("entries without end", set_gdt(virt_to_mfn(gdt), 0xffffffff), -EINVAL);
	check_equal("a table that can be written", set_gdt(virt_to_mfn(gdt), 8), -EINVAL);
	check_equal("a page table", set_gdt(virt_to_mfn(l1_entry(gdt)), 8), -EINVAL);
	check_equal("Xen's frame", set_gdt((*XEN_SLOT & PTE_ADDR) >> 12, 8), -EINVAL);
	check_equal("no frame", set_gdt(-2ul, 8), -EINVAL);

	check_equal("to read alone", protect(gdt), 0);
	check_equal("set_gdt", set_gdt(virt_to_mfn(gdt), 8), 0);
	check_equal("its mapping", unprotect(gdt), -EBUSY);
	check_equal("another", update_va_mapping(window, entry_for(virt_to_mfn(gdt), PTE_WRITE)), -EBUSY);
	check_equal("as a page table", pin_table(1, virt_to_mfn(gdt)), -EINVAL);
	check_equal("clear", mmuext(MMUEXT_CLEAR_PAGE, virt_to_mfn(gdt), 0), -EINVAL);
	check_equal("copy", mmuext(MMUEXT_COPY_PAGE, virt_to_mfn(gdt), virt_to_mfn(ldt)), -EINVAL);
	check_read_only("a store to the GDT", gdt);
}

static void load(const char *what, unsigned long selector, unsigned int vector)
{
	TRY("mov %0, %%fs", "r"(selector));
	check_equal(what, last_trap.vector, vector);
	TRY("mov %0, %%fs", "r"(0ul));
}

static void ldts(void)
{
	unsigned long stale = entry_for(virt_to_mfn(ldt), PTE_READ);

#ifdef __x86_64__
	check_equal("an LDT in Xen's area", mmuext(MMUEXT_SET_LDT, (unsigned long)XEN_START, 4), -EINVAL);
#else /* what a 32-bit guest sees of Xen is the guest's part of the real address space */
	check_equal("an LDT in Xen's area", mmuext(MMUEXT_SET_LDT, (unsigned long)XEN_START, 4), 0);
	load("its segment", SELECTOR(1) | LDT, PF);
#endif
	check_equal("too long", mmuext(MMUEXT_SET_LDT, (unsigned long)ldt, 8193), -EINVAL);
	check_equal("not aligned", mmuext(MMUEXT_SET_LDT, (unsigned long)ldt + 8, 4), -EINVAL);

	check_equal("one that can be written", mmuext(MMUEXT_SET_LDT, (unsigned long)ldt, 4), 0);
	load("its segment", SELECTOR(1) | LDT, PF);
	check_equal("a writable alias", update_va_mapping(window, entry_for(virt_to_mfn(ldt), PTE_WRITE)), 0);
	check_equal("to read alone", protect(ldt), 0);
	load("its segment, by an alias", SELECTOR(1) | LDT, PF);
	*(volatile char *)window = 0; /* now in the TLB */
	check_equal("the alias, too", mmu_update(virt_to_maddr(l1_entry(window)), stale), 0);
	load("its segment, to read alone", SELECTOR(1) | LDT, NO_TRAP);
	check_read_only("a store by the alias", window);
	check_equal("its mapping, while loaded", unprotect(ldt), -EBUSY);
	check_equal("another", update_va_mapping(window, entry_for(virt_to_mfn(ldt), PTE_WRITE)), -EBUSY);
	check_equal("as a page table", pin_table(1, virt_to_mfn(ldt)), -EINVAL);
	load("beyond its limit", SELECTOR(4) | LDT, GP);
	check_equal("no LDT", mmuext(MMUEXT_SET_LDT, 0, 0), 0);
	check_equal("free again", unprotect(ldt), 0);
}

void guest_main(void)
{
	kinds();
	gdts();
	ldts();
	load("Xen's data segment", 0xe010, GP);
	load("Xen's code segment", 0xe008, GP);
	load("its task", 0xe040, GP);
	load("beyond it", 0xfff8, GP);
	success();
}
