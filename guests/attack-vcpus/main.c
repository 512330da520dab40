/*
 * Two vcpus against each other. One makes hypercalls so long that Xen preempts them: it pins a tree
 * of tables, drops the tree, and sends batches. Meanwhile the other one does what it likes to these
 * tables, and to the requests that are not done yet. XSA-299 and XSA-310 were of this kind: Xen lost
 * count of what an interrupted validation held.
 *
 * The rule: each step is refused, or right. Success: in the end, no page that can be a page table
 * can be written.
 */
#include "attack.h"
#include "vcpus.h"

#define TABLES 512u /* so many that one call cannot validate them all */
#define REQUESTS 2500u
#define CALLS 600u
#define ROUNDS 4u
#define MMUEXT_COPY_OR_CLEAR(n) (MMUEXT_CLEAR_PAGE + (n) % 2)

struct multicall_entry {
	unsigned long op, result, args[6];
};

static uint64_t tables[TABLES][512] PAGE, top[512] PAGE;
static char data[4096] PAGE;
static struct mmu_update requests[REQUESTS];
static struct multicall_entry calls[CALLS];
static volatile unsigned int attack, go_on = 1, done;
static unsigned int refused, right, state = 1;

static unsigned int draw(unsigned int limit)
{
	state = state * 1664525 + 1013904223;
	return (state >> 8) % limit;
}

/* What Xen may say to any of this. */
static void allow(const char *what, long result)
{
	if (result >= 0)
		right++;
	else if (result == -EINVAL || result == -EBUSY || result == -EPERM || result == -EFAULT ||
		 result == -EEXIST)
		refused++;
	else
		check_equal(what, result, -EINVAL);
}

static uint64_t harmless(void)
{
	return entry_for(virt_to_mfn(data), PTE_READ);
}

/* ---- the one that makes long calls; the first half of each is never touched ---- */

static void unpin(void *page)
{
	mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(page), 0);
}

/* Let the tree be one that can be pinned. */
static void repair(void)
{
	unpin(top);
	mmuext(MMUEXT_CLEAR_PAGE, virt_to_mfn(top), 0);
	for (unsigned int n = 0; n < TABLES; n++) {
		unpin(tables[n]);
		mmuext(MMUEXT_CLEAR_PAGE, virt_to_mfn(tables[n]), 0);
		mmu_update(virt_to_maddr(&tables[n][0]), harmless());
		protect(tables[n]);
		mmu_update(virt_to_maddr(&top[n]),
			   entry_for(virt_to_mfn(tables[n]), PTE_P | PTE_US | PTE_RW));
	}
	protect(top);
}

/* A call that is preempted, so that the other vcpu can attack. */
static void long_call(const char *what, unsigned int number, unsigned long list,
		      unsigned int count)
{
	attack = 1;
	allow(what, hypercall4(number, list, count, 0, DOMID_SELF));
	attack = 0;
}

static void long_mmuext(const char *what, unsigned int command)
{
	struct mmuext_op op = { command, virt_to_mfn(top), 0 };

	long_call(what, __HYPERVISOR_mmuext_op, (unsigned long)&op, 1);
}

static void make_requests(void)
{
	for (unsigned int n = 0; n < REQUESTS; n++) {
		requests[n].ptr = virt_to_maddr(&tables[n % TABLES][1 + n / TABLES]);
		requests[n].val = harmless();
	}
}

static void make_calls(void)
{
	for (unsigned int n = 0; n < CALLS; n++)
		calls[n] = (struct multicall_entry){
			__HYPERVISOR_mmu_update, 0,
			{ (unsigned long)&requests[n], 1, 0, DOMID_SELF }
		};
}

static void long_calls(void)
{
	for (unsigned int n = 0; n < ROUNDS; n++) {
		repair();
		long_mmuext("pin", MMUEXT_PIN_L1_TABLE + 1);
		make_requests();
		long_call("a batch", __HYPERVISOR_mmu_update, (unsigned long)requests, REQUESTS);
		make_calls();
		long_call("a multicall", __HYPERVISOR_multicall, (unsigned long)calls, CALLS);
		long_mmuext("unpin", MMUEXT_UNPIN_TABLE);
	}
}

/* ---- the one that changes everything meanwhile ---- */

static void *some_page(void)
{
	unsigned int n = draw(TABLES + 2);

	return n < TABLES ? (void *)tables[n] : n == TABLES ? (void *)top : data;
}

static uint64_t some_entry(void)
{
	return entry_for(virt_to_mfn(some_page()), draw(2) ? PTE_WRITE : PTE_READ);
}

static volatile uint64_t *some_slot(void)
{
	uint64_t *page = draw(8) ? tables[draw(TABLES)] : top;

	return &page[draw(512)];
}

static void rewrite(void)
{
	static const unsigned long others[] = {
		__HYPERVISOR_mmu_update, __HYPERVISOR_multicall, __HYPERVISOR_xen_version, 55
	};
	struct mmu_update *request = &requests[REQUESTS / 2 + draw(REQUESTS / 2)];

	request->ptr = virt_to_maddr(some_slot()) | draw(3);
	request->val = some_entry();
	calls[CALLS / 2 + draw(CALLS / 2)].op = others[draw(4)];
	calls[CALLS / 2 + draw(CALLS / 2)].args[1] = draw(5);
}

static void change(void)
{
	void *page = some_page();
	unsigned long mfn = virt_to_mfn(page);
	volatile uint64_t *slot = some_slot();

	switch (draw(8)) {
	case 0:
		allow("set an entry", mmu_update(virt_to_maddr(slot), some_entry()));
		break;
	case 1:
		allow("map it writable", unprotect(page));
		break;
	case 2:
		allow("map it read-only", protect(page));
		break;
	case 3:
		allow("pin it", pin_table(1 + draw(3), mfn));
		break;
	case 4:
		allow("unpin it", mmuext(MMUEXT_UNPIN_TABLE, mfn, 0));
		break;
	case 5:
		allow("clear or copy it",
		      mmuext(MMUEXT_COPY_OR_CLEAR(state), mfn, virt_to_mfn(data)));
		break;
	case 6:
		TRY("movl %1, (%0)", "r"(slot), "r"((uint32_t)some_entry()));
		break;
	default:
		fill_context(&vcpu_context, 2);
		vcpu_context.gdt_frames[0] = mfn;
		vcpu_context.gdt_ents = 512;
		if (draw(2))
			vcpu_context.control[3] = (unsigned long)mfn << 12;
		vcpu_context.flags = 0; /* down, if it is taken at all */
		allow("start a vcpu on it", vcpu_op(VCPUOP_initialise, 2, &vcpu_context));
	}
}

void vcpu_main(unsigned int vcpu)
{
	set_gate_dpl(PF, 0); /* its trap table is that of vcpu 0 */
	while (go_on) {
		if (!attack) {
			yield();
			continue;
		}
		change();
		for (unsigned int times = 0; times < 8; times++)
			rewrite();
	}
	done = 1;
	vcpu_op(VCPUOP_down, vcpu, 0);
}

/* ---- what must be true in the end ---- */

static void check_page(void *page)
{
	for (unsigned int level = 1; level <= 2; level++) {
		if (pin_table(level, virt_to_mfn(page)))
			continue;
		check_read_only("a store to a page table", page);
		unpin(page);
	}
}

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, 2, 0) < 0) {
		skip("there are too few vcpus");
		return;
	}
	start_vcpus(2);
	long_calls();
	go_on = 0;
	while (!done)
		yield();
	check(right > 0 && refused > 0, "nothing was refused, or all");
	for (unsigned int n = 0; n < TABLES; n++)
		check_page(tables[n]);
	check_page(top);
	success();
}
