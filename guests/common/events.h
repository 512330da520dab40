/* Event channels of a guest: ports among its own vcpus, and waiting for them. */
#ifndef EVENTS_H
#define EVENTS_H

#ifdef GUEST_PV
#include "pv.h"
#else
#include "pvh.h"
#endif

#define SCHEDOP_poll 3
#define EVTCHNOP_bind_virq 1
#define EVTCHNOP_close 3
#define EVTCHNOP_status 5
#define EVTCHNOP_alloc_unbound 6
#define EVTCHNOP_bind_ipi 7
#define EVTCHNOP_bind_vcpu 8
#define EVTCHNOP_unmask 9

#define WORD_BITS (8 * sizeof(long))

struct vcpu_info {
	uint8_t pending, mask;
	unsigned long pending_sel;
	unsigned long arch[sizeof(long) == 8 ? 2 : 6];
	uint8_t time[32];
};

static struct shared_info {
	struct vcpu_info vcpu[32];
	unsigned long pending[WORD_BITS];
	unsigned long mask[WORD_BITS];
	char rest[4096 - 32 * 64 - 2 * 8 * WORD_BITS * sizeof(long) / 8];
} shared __attribute__((aligned(4096)));

static inline void map_shared_info(void)
{
#ifdef GUEST_PV
	check_equal("map shared_info",
		    update_va_mapping(&shared, start_info()->shared_info | PTE_P | PTE_RW | PTE_US |
							PTE_A | PTE_D), 0);
#else
	check_equal("map shared_info", add_to_physmap(XENMAPSPACE_shared_info, 0, &shared), 0);
#endif
}

static inline long event_op(unsigned int command, void *op)
{
	return hypercall(__HYPERVISOR_event_channel_op, command, (unsigned long)op, 0);
}

static inline uint32_t bind_ipi(unsigned int vcpu)
{
	struct { uint32_t vcpu, port; } op = { vcpu, 0 };

	check_equal("bind_ipi", event_op(EVTCHNOP_bind_ipi, &op), 0);
	return op.port;
}

static inline void send(uint32_t port)
{
	struct evtchn_send op = { port };

	event_op(EVTCHNOP_send, &op);
}

/* Sleep until there is an event on a port, and take it. */
static inline void poll(uint32_t port)
{
	struct { const uint32_t *ports; uint32_t nr_ports; uint64_t timeout; } op = { &port, 1, 0 };
	volatile unsigned long *word = &shared.pending[port / WORD_BITS];
	unsigned long bit = 1ul << port % WORD_BITS;

	while (!(*word & bit))
		hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (unsigned long)&op, 0);
	__atomic_fetch_and(word, ~bit, __ATOMIC_SEQ_CST);
}

#endif
