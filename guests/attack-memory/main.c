/*
 * Memory that is given back while it is in use, and lists of memory that lie. XSA-29, XSA-212: an
 * exchange goes on where the guest said, and Xen wrote its result at an address of the guest's
 * choice. XSA-31: extents of an impossible order. XSA-217: a page was given away while it still had
 * a type.
 *
 * The rule: lists are the guest's own memory. Sizes are checked before anything is added to them. A
 * frame that anything refers to goes neither to another domain nor to the heap. Success: refusals,
 * and counts that say how little was done.
 */
#include "attack.h"

struct xen_memory_exchange {
	struct xen_memory_reservation in, out;
	unsigned long nr_exchanged;
};

static char page[4096] PAGE, table[4096] PAGE;
static unsigned long in, out;

static long exchange_from(unsigned long *from, unsigned long *to, unsigned long nr, unsigned int order,
			  unsigned long done, unsigned long *now_done)
{
	struct xen_memory_exchange op = {
		{ from, nr, order, 0, DOMID_SELF }, { to, nr, order, 0, DOMID_SELF }, done
	};
	long result = hypercall(__HYPERVISOR_memory_op, XENMEM_exchange, (unsigned long)&op, 0);

	*now_done = op.nr_exchanged;
	return result;
}

static void refused(const char *what, unsigned long mfn)
{
	unsigned long done;

	in = mfn;
	out = (unsigned long)page >> 12;
	check_equal(what, exchange_from(&in, &out, 1, 0, 0, &done), -EINVAL);
	check_equal("how far it came", done, 0);
	check_equal("what it got", out, (unsigned long)page >> 12);
}

static void exchanges(void)
{
	unsigned long *away = (unsigned long *)XEN_START - 16, done; /* 16 further on Xen begins */

	refused("a page that is mapped", virt_to_mfn(page));
	refused("a page table", virt_to_mfn(l1_entry(page)));
	refused("a pinned table", virt_to_mfn(table));
	refused("shared_info", start_info()->shared_info >> 12);
	refused("Xen's frame", (*XEN_SLOT & PTE_ADDR) >> 12);
	refused("no frame", -2ul);

	in = out = 0;
	check_equal("more done than there is", exchange_from(&in, &out, 1, 0, 2, &done), -EINVAL);
	check_equal("an order too large", exchange_from(&in, &out, 1, 20, 0, &done), -EPERM);
	check_equal("what goes on in Xen", exchange_from(&in, away, 32, 0, 16, &done), -EFAULT);
	check_equal("how far", done, 16);
	check_equal("what comes from Xen", exchange_from(away, &out, 32, 0, 16, &done), -EFAULT);
	check_equal("how far", done, 16);
}

static long reserve_many(unsigned int command, unsigned long *list, unsigned long nr, unsigned int order)
{
	struct xen_memory_reservation reservation = { list, nr, order, 0, DOMID_SELF };

	return hypercall(__HYPERVISOR_memory_op, command, (unsigned long)&reservation, 0);
}

static void reservations(void)
{
	for (unsigned int command = 0; command < 7; command += command ? 5 : 1) {
		in = (unsigned long)page >> 12;
		check_equal("an order beyond all memory", reserve_many(command, &in, 1, 52), 0);
		check_equal("of 64 bits", reserve_many(command, &in, 1, 64), 0);
		check_equal("more extents than can be counted", reserve_many(command, &in, -1ul, 0), 0);
		check_equal("a list in Xen", command ? reserve_many(command, XEN_UNMAPPED, 1, 0) : 0, 0);
		check_equal("which is as it was", in, (unsigned long)page >> 12);
	}
	in = (*XEN_SLOT & PTE_ADDR) >> 12;
	check_equal("Xen's frame back", reserve(XENMEM_decrease_reservation, &in), 0);
}

/* A frame that is still mapped or a table goes when nothing refers to it, not before. */
static void given_back(unsigned long mfn)
{
	in = mfn;
	check_equal("back", reserve(XENMEM_decrease_reservation, &in), 1);
	out = (unsigned long)page >> 12;
	if (!reserve(XENMEM_populate_physmap, &out))
		return; /* the domain has all it may have: the frame counts as its own */
	check(out != mfn, "a frame in use was given again");
	check_equal("the new one back", reserve(XENMEM_decrease_reservation, &out), 1);
}

void guest_main(void)
{
	uint64_t old;

	check_equal("to read alone", protect(table), 0);
	check_equal("pin", pin_table(1, virt_to_mfn(table)), 0);
	exchanges();
	reservations();

	given_back(virt_to_mfn(table)); /* twice, for the pin and the mapping do not let it go */
	check_equal("its mapping", unprotect(table), -EBUSY);
	check_read_only("a store to it", table);
	old = virt_to_maddr(l1_entry(page));
	given_back(old >> 12);
	check_equal("the table that maps this", mmu_update(old, *l1_entry(page)), 0);
	given_back(virt_to_mfn(page));
	page[0] = 1;
	check_equal("what is still mapped", page[0], 1);
	success();
}
