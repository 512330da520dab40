/*
 * A domain has two watchdogs (SCHEDOP_watchdog), whichever of its vcpus asks. A kernel that hangs
 * lets one run out, and Xen then shuts the domain down, with a reason of its own.
 *
 * Success: one vcpu moves and stops what another has started; then all hang, and a watchdog ends it.
 */
#include "vcpus.h"

#define SCHEDOP_watchdog 6
#define SCHEDOP_poll 3
#ifndef GUEST_PV
#define EINVAL 22
#define ENOSPC 28
#endif
#define LEFT_S 5u

static volatile unsigned int step;
static volatile long first, second, third;

static long watchdog(uint32_t id, uint32_t timeout_s)
{
	struct { uint32_t id, timeout; } op = { id, timeout_s };

	return hypercall(__HYPERVISOR_sched_op, SCHEDOP_watchdog, (unsigned long)&op, 0);
}

/* Wait for an event that nobody sends. */
static void hang(void)
{
	struct { void *ports; uint32_t nr_ports; uint64_t timeout; } op = { 0, 0, 0 };

	for (;;)
		hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (unsigned long)&op, 0);
}

void vcpu_main(unsigned int vcpu)
{
	(void)vcpu;
	second = watchdog(0, 1000);
	third = watchdog(0, 1000);
	step = 1;
	await(&step, 2);
	second = watchdog(1, LEFT_S); /* which is vcpu 0's */
	step = 3;
	hang();
}

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, 1, 0) < 0) {
		skip("there is one vcpu");
		return;
	}
	check_equal("a watchdog that is not there", watchdog(3, 10), -EINVAL);
	check_equal("one that was not started", watchdog(2, 10), -EINVAL);
	first = watchdog(0, 1000);
	check_equal("the first", first, 1);
	start_vcpus(2);
	await(&step, 1);
	check_equal("the other vcpu's", second, 2);
	check_equal("a third", third, -ENOSPC);
	check_equal("stop the other vcpu's", watchdog(2, 0), 0);
	check_equal("stop it again", watchdog(2, 0), -EINVAL);
	step = 2;
	await(&step, 3);
	check_equal("what the other vcpu moves", second, 0);
	printk("Test result: SUCCESS\n");
	hang();
}
