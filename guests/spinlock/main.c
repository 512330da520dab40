/*
 * Four vcpus count together: by locked instructions, and under locks that spin. A vcpu that spins
 * in PAUSE gives its slice away, or the one that has the lock would wait as long.
 *
 * Success: each sum is right, and the lock was handed over in the order in which it was asked for.
 */
#include "vcpus.h"

#define VCPUS 4u
#define ROUNDS 256u

static volatile unsigned int locked_sum, exchange_sum, ticket_sum, done;
static unsigned int exchange_lock, next_ticket, serving;

static void spin(void)
{
	asm volatile("pause");
}

/* Now and then, whoever has a lock lets the others run, which then find it taken. */
static void linger(unsigned int n)
{
	if (n % 16 == 0)
		yield();
}

static void add_under_exchange(unsigned int n)
{
	unsigned int before;

	while (__atomic_exchange_n(&exchange_lock, 1, __ATOMIC_ACQUIRE))
		spin();
	before = exchange_sum;
	linger(n);
	exchange_sum = before + 1;
	__atomic_store_n(&exchange_lock, 0, __ATOMIC_RELEASE);
}

static void add_under_tickets(unsigned int n)
{
	unsigned int mine = __atomic_fetch_add(&next_ticket, 1, __ATOMIC_ACQUIRE);

	while (__atomic_load_n(&serving, __ATOMIC_ACQUIRE) != mine)
		spin();
	check_equal("whose turn it is", ticket_sum, mine);
	linger(n);
	ticket_sum = mine + 1;
	__atomic_store_n(&serving, mine + 1, __ATOMIC_RELEASE);
}

static void count(void)
{
	for (unsigned int n = 0; n < ROUNDS; n++) {
		__atomic_fetch_add(&locked_sum, 1, __ATOMIC_RELAXED);
		add_under_exchange(n);
		add_under_tickets(n);
	}
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
}

void vcpu_main(unsigned int vcpu)
{
	(void)vcpu;
	count();
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
	count();
	await(&done, VCPUS);
	check_equal("by locked instructions", locked_sum, VCPUS * ROUNDS);
	check_equal("under a lock by XCHG", exchange_sum, VCPUS * ROUNDS);
	check_equal("under a lock with tickets", ticket_sum, VCPUS * ROUNDS);
	success();
}
