/*
 * A kernel that starts another one asks for a soft reset (SCHEDOP_shutdown). The domain is renewed:
 * ports and what Xen shares are as at the domain's start. Memory and registers stay, and the vcpu
 * goes on after its hypercall. If something is left over, the other kernel fails long after that.
 *
 * Success: nothing is left over, and the console and the store are there again.
 */
#include "pvh.h"

#define SCHEDOP_shutdown 2
#define SHUTDOWN_soft_reset 5
#define EVTCHNOP_bind_virq 1
#define EVTCHNOP_status 5
#define VIRQ_TIMER 0
#define EVTCHNSTAT_closed 0
#define EVTCHNSTAT_interdomain 2
#define TIMES 3

static char shared[4096] __attribute__((aligned(4096)));
static char kept[4096] __attribute__((aligned(4096)));

static uint32_t status(uint32_t port)
{
	struct { uint16_t dom; uint32_t port, status, vcpu; uint64_t rest; } op = { DOMID_SELF, port, 0, 0, 0 };

	check_equal("a port's status",
		    hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_status, (unsigned long)&op, 0), 0);
	return op.status;
}

static long bind_timer(uint32_t *port)
{
	uint32_t op[3] = { VIRQ_TIMER, 0, 0 };
	long result = hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, (unsigned long)op, 0);

	*port = op[2];
	return result;
}

void guest_main(void)
{
	uint64_t console_port = 0, store_port = 0;
	uint32_t port = 0;

	for (int time = 0; time < TIMES; time++) {
		uint32_t reason = SHUTDOWN_soft_reset;

		memset(kept, 0x40 + time, sizeof(kept));
		check_equal("shared_info", add_to_physmap(XENMAPSPACE_shared_info, 0, shared), 0);
		check_equal("bind the timer", bind_timer(&port), 0);
		check_equal("the hypercall",
			    hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (unsigned long)&reason, 0), 0);
		check_equal("the port of before", status(port), EVTCHNSTAT_closed);
		check_equal("memory", kept[time], 0x40 + time);
		shared[0] = 1; /* RAM again */
		get_param(HVM_PARAM_CONSOLE_EVTCHN, &console_port);
		get_param(HVM_PARAM_STORE_EVTCHN, &store_port);
		check_equal("the console's port", status(console_port), EVTCHNSTAT_interdomain);
		check_equal("the store's port", status(store_port), EVTCHNSTAT_interdomain);
		check_equal("the console's port as at first", console_port, console().port);
	}
	success();
}
