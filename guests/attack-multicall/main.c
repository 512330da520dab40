/*
 * Multicalls that change themselves. XSA-213: after an iret in a batch, the calls after it ran in
 * another mode (attack-iret has that one).
 *
 * The rule: an entry is read when its turn comes, and is checked like a call of its own. A batch
 * within a batch is refused. A list that cannot be read, or cannot take a result, ends the batch.
 * Success: a call runs only if the list has it when its turn comes, and no call is spared its
 * checks.
 */
#include "attack.h"

#define RESULT(entry) ((long)(entry)->result)
#define UNTOUCHED 0x5a5a

struct multicall_entry {
	unsigned long op, result, args[6];
};

#define PER_PAGE (4096 / sizeof(struct multicall_entry))
static struct multicall_entry list[2 * PER_PAGE] PAGE;
static struct multicall_entry inner[2];
#define hole (&list[PER_PAGE]) /* a page that will not be there */

static long multicall(volatile struct multicall_entry *from, unsigned long count)
{
	return hypercall(__HYPERVISOR_multicall, (unsigned long)from, count, 0);
}

static void version(struct multicall_entry *entry)
{
	*entry = (struct multicall_entry){ .op = __HYPERVISOR_xen_version, .result = UNTOUCHED };
}

static void nested(void)
{
	version(&inner[0]);
	version(&list[0]);
	list[1] = (struct multicall_entry){ __HYPERVISOR_multicall, 0, { (unsigned long)inner, 1 } };
	version(&list[2]);
	list[3] = (struct multicall_entry){ .op = 55 };
	list[4] = (struct multicall_entry){ .op = -1ul };
	check_equal("a batch in a batch", multicall(list, 5), 0);
	check_equal("the one before", RESULT(&list[0]) >> 16, 4);
	check_equal("the batch", RESULT(&list[1]), -EINVAL);
	check_equal("what is in it", inner[0].result, UNTOUCHED);
	check_equal("the one after", RESULT(&list[2]) >> 16, 4);
	check_equal("no such call", RESULT(&list[3]), -ENOSYS);
	check_equal("nor such", RESULT(&list[4]), -ENOSYS);
}

static void rewritten(void)
{
	list[0] = (struct multicall_entry){
		__HYPERVISOR_xen_version, 0, { XENVER_extraversion, (unsigned long)&list[1].op }
	};
	version(&list[1]);
	version(&list[2]);
	check_equal("a batch that rewrites itself", multicall(list, 3), 0);
	check_equal("the one that writes", RESULT(&list[0]), 0);
	check_equal("what it wrote over", RESULT(&list[1]), -ENOSYS);
	check_equal("the one after", RESULT(&list[2]) >> 16, 4);
}

static void checked(void)
{
	uint64_t entry = entry_for(virt_to_mfn(l1_entry(list)), PTE_WRITE);

	list[0] = (struct multicall_entry){
		__HYPERVISOR_update_va_mapping, 0, { (unsigned long)hole, entry }
	};
#ifndef __x86_64__
	list[0].args[2] = entry >> 32;
#endif
	list[1] = (struct multicall_entry){
		__HYPERVISOR_xen_version, 0, { XENVER_capabilities, (unsigned long)XEN_START }
	};
	check_equal("calls that are refused", multicall(list, 2), 0);
	check_equal("a writable table", RESULT(&list[0]), -EBUSY);
	check_equal("a pointer into Xen", RESULT(&list[1]), -EFAULT);
}

static void out_of_reach(void)
{
	struct multicall_entry *last = hole - 1;

	check_equal("a list in Xen", multicall(XEN_START, 1), -EFAULT);
	check_equal("around the end", multicall((void *)-sizeof(*list), 2), -EFAULT);

	check_equal("a hole", update_va_mapping(hole, 0), 0);
	version(last);
	check_equal("into a hole", multicall(last, 2), -EFAULT);
	check_equal("what is before it", RESULT(last) >> 16, 4);
	version(last);
	check_equal("a list without end", multicall(last, -1ul), -EFAULT);
	check_equal("its first", RESULT(last) >> 16, 4);

	version(&list[0]);
	check_equal("to read alone", protect(list), 0);
	check_equal("no place for a result", multicall(list, 1), -EFAULT);
	check_equal("the list after it", list[0].result, UNTOUCHED);
	check_equal("to write again", unprotect(list), 0);
}

void guest_main(void)
{
	nested();
	rewritten();
	checked();
	out_of_reach();
	success();
}
