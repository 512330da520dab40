/*
 * Four vcpus meet at a barrier again and again. Who comes first spins in PAUSE until the last one
 * has come: so the vcpus run about as often as each other.
 *
 * Success: nobody passes before all have come, and all have seen what each has done before.
 */
#include "vcpus.h"

#define VCPUS 4u
#define ROUNDS 300u

static volatile unsigned int arrived, round, work[VCPUS], early, stale, done;

static void meet(void)
{
	unsigned int now = round;

	if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == VCPUS) {
		arrived = 0;
		round = now + 1;
		return;
	}
	while (round == now)
		asm volatile("pause");
	early += round != now + 1;
}

static void run(unsigned int vcpu)
{
	for (unsigned int n = 1; n <= ROUNDS; n++) {
		for (volatile unsigned int i = 0; i < 100 * vcpu; i++)
			;
		work[vcpu] = n;
		meet();
		for (unsigned int other = 0; other < VCPUS; other++)
			stale += work[other] != n;
		meet();
	}
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
}

void vcpu_main(unsigned int vcpu)
{
	run(vcpu);
	for (;;)
		yield();
}

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, VCPUS - 1, 0) < 0) {
		skip("there are too few vcpus");
		return;
	}
	start_vcpus(VCPUS);
	run(0);
	await(&done, VCPUS);
	check_equal("rounds", round, 2 * ROUNDS);
	check_equal("who passed too early", early, 0);
	check_equal("what was not seen", stale, 0);
	success();
}
