/*
 * A bug, to be hunted: two vcpus pay into one account, and nobody has thought of a lock. A payment
 * is lost if the other vcpu pays between a load and its store, which is seldom.
 *
 * Success: no payment is lost. So it is in most orders in which the vcpus can run.
 */
#include "vcpus.h"

#define PAYMENTS 2000u
#define WORK 200u

static volatile unsigned int account, done;

static void work(void)
{
	for (unsigned int n = 0; n < WORK; n++)
		asm volatile("");
}

static void pay(void)
{
	unsigned int seen = account;

	asm volatile("" : "+r"(seen));
	account = seen + 1;
}

static void pay_all(void)
{
	for (unsigned int n = 0; n < PAYMENTS; n++) {
		work();
		pay();
	}
}

void vcpu_main(unsigned int vcpu)
{
	(void)vcpu;
	pay_all();
	done = 1;
	for (;;)
		yield();
}

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, 1, 0) < 0) {
		skip("there is one vcpu");
		return;
	}
	start_vcpus(2);
	pay_all();
	await(&done, 1);
	check_equal("what is in the account", account, 2 * PAYMENTS);
	success();
}
