/*
 * What Xen's scheduler shows of each vcpu: in which state it is, since when, and how long it has
 * been in each. A kernel takes the time in which its vcpu was runnable as stolen from it.
 *
 * Success: two vcpus that never wait steal each other's time, if they share a CPU; a vcpu that is
 * down is offline, one that sleeps is blocked; the times of each add up; the area that a vcpu
 * registers shows what the hypercall does.
 */
#include "vcpus.h"

#define VCPUOP_get_runstate_info 4
#define VCPUOP_register_runstate_memory_area 5
#define SCHEDOP_poll 3
#define ENOENT 2

enum { RUNNING, RUNNABLE, BLOCKED, OFFLINE };
static const char *const names[] = { "running", "runnable", "blocked", "offline" };

struct runstate {
	int state;
	uint64_t since __attribute__((aligned(sizeof(long)))); /* as each kind of guest has it */
	uint64_t times[4];
};

static struct runstate areas[2];
static volatile unsigned int up, spins, sleep;

static struct runstate runstate(unsigned int vcpu)
{
	struct runstate is;

	check_equal("get_runstate_info", vcpu_op(VCPUOP_get_runstate_info, vcpu, &is), 0);
	return is;
}

static void register_area(unsigned int vcpu)
{
	struct { void *at; uint64_t rest; } op = { &areas[vcpu], 0 };

	check_equal("register_runstate_memory_area",
		    vcpu_op(VCPUOP_register_runstate_memory_area, vcpu, &op), 0);
}

/* Keep the CPU, if Xen lets it: to PAUSE would be to give it away. */
static void spin(unsigned int count)
{
	while (count--)
		asm volatile("");
}

static void wait_long(void)
{
	struct { void *ports; uint32_t nr_ports; uint64_t timeout; } op = { 0, 0, 1ull << 60 };

	hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (unsigned long)&op, 0);
}

void vcpu_main(unsigned int vcpu)
{
	register_area(vcpu);
	up = 1;
	while (!sleep) {
		spin(1000);
		spins++;
	}
	for (;;)
		wait_long();
}

static void await_state(int state)
{
	while (runstate(1).state != state)
		yield();
}

static void check_sum(const char *what, unsigned int vcpu)
{
	struct runstate first = runstate(vcpu), second = runstate(vcpu);
	uint64_t grown = 0;

	for (int state = RUNNING; state <= OFFLINE; state++) {
		check(second.times[state] >= first.times[state], "a time went back");
		grown += second.times[state] - first.times[state];
	}
	check(second.since >= first.since, "its state began earlier");
	check(grown > 0, what);
}

/* Spin until 1 ms was stolen from a vcpu; or until it is clear that it has a CPU of its own. */
static int steal(unsigned int vcpu)
{
	struct runstate before = runstate(vcpu), now;

	do {
		spin(1000);
		now = runstate(vcpu);
		if (now.times[RUNNING] - before.times[RUNNING] > 50000000)
			return 0;
	} while (now.times[RUNNABLE] - before.times[RUNNABLE] < 1000000);
	return 1;
}

static void check_stolen(void)
{
	struct runstate is = runstate(1);

	check_equal("the state of a vcpu that waits for the CPU", is.state, RUNNABLE);
	check_equal("its area", areas[1].state, RUNNABLE);
	check_equal("the area of this one", areas[0].state, RUNNING);
	check(areas[0].times[RUNNABLE] > 900000, "the area does not have what was stolen");
	printk("both had to wait for each other\n");
}

void guest_main(void)
{
	struct runstate is;

	if (vcpu_op(VCPUOP_is_up, 1, 0) < 0) {
		skip("there is one vcpu");
		return;
	}
	is = runstate(1);
	check_equal("the state of a vcpu that is down", is.state, OFFLINE);
	check_equal("how long it ran", is.times[RUNNING] + is.times[RUNNABLE], 0);
	check_equal("the state of the vcpu that asks", runstate(0).state, RUNNING);
	check_equal("of one that is not there", vcpu_op(VCPUOP_get_runstate_info, 77, &is), -ENOENT);

	register_area(0);
	start_vcpus(2);
	await(&up, 1);
	if (steal(0) && steal(1))
		check_stolen();
	is = runstate(1);
	check(is.times[RUNNING] > 1000000 && spins > 0, "the other one did not run");
	check_sum("the time of this one", 0);
	check_sum("the time of the other one", 1);

	sleep = 1;
	await_state(BLOCKED);
	check_equal("its area, when it sleeps", areas[1].state, BLOCKED);
	printk("it is %s\n", names[runstate(1).state]);
	success();
}
