/*
 * Vcpus wake each other by events. A port of bind_ipi is for one vcpu, and stays there. If an event
 * is lost, a kernel hangs; if it goes to another vcpu, work is done twice, or not at all.
 *
 * Success: a token goes round all vcpus, each of which sleeps until it comes; each port is where it
 * was bound.
 */
#ifdef GUEST_PV
#include "events.h"
#include "vcpus.h"

#define VCPUS 4
#define ROUNDS 50u
#define EVTCHNSTAT_ipi 5

static uint32_t ports[VCPUS];
static volatile unsigned int ready, laps[VCPUS], at;

static void pass_on(unsigned int vcpu)
{
	for (unsigned int n = 0; n < ROUNDS; n++) {
		poll(ports[vcpu]);
		check_equal("who has the token", at, vcpu);
		at = (vcpu + 1) % VCPUS;
		laps[vcpu]++;
		send(ports[at]);
	}
}

void vcpu_main(unsigned int vcpu)
{
	__atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
	pass_on(vcpu);
	vcpu_op(VCPUOP_down, vcpu, 0);
}

static void check_port(unsigned int vcpu)
{
	struct {
		uint16_t dom;
		uint32_t port, status, vcpu;
		uint64_t rest;
	} is = { DOMID_SELF, ports[vcpu], 0, 0, 0 };
	struct { uint32_t port, vcpu; } move = { ports[vcpu], (vcpu + 1) % VCPUS };

	check_equal("status", event_op(EVTCHNOP_status, &is), 0);
	check_equal("its kind", is.status, EVTCHNSTAT_ipi);
	check_equal("its vcpu", is.vcpu, vcpu);
	check_equal("move it", event_op(EVTCHNOP_bind_vcpu, &move), -EINVAL);
}

void guest_main(void)
{
	struct { uint32_t vcpu, port; } nobody = { VCPUS, 0 };

	if (vcpu_op(VCPUOP_is_up, VCPUS - 1, 0) < 0) {
		skip("there are too few vcpus");
		return;
	}
	map_shared_info();
	for (unsigned int vcpu = 0; vcpu < VCPUS; vcpu++) {
		ports[vcpu] = bind_ipi(vcpu);
		check_port(vcpu);
	}
	check_equal("a vcpu that is not there", event_op(EVTCHNOP_bind_ipi, &nobody), -ENOENT);
	start_vcpus(VCPUS);
	await(&ready, VCPUS - 1);
	send(ports[0]);
	pass_on(0);
	for (unsigned int vcpu = 1; vcpu < VCPUS; vcpu++)
		while (vcpu_op(VCPUOP_is_up, vcpu, 0))
			yield();
	for (unsigned int vcpu = 0; vcpu < VCPUS; vcpu++)
		check_equal("rounds", laps[vcpu], ROUNDS);
	success();
}
#endif
