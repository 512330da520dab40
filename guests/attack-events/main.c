/*
 * Event channels that are used after they are gone. XSA-338: a port that had once been valid was no
 * longer valid. XSA-342: Xen took ports beyond what a 32-bit guest has for good ones. XSA-107: the
 * FIFO's control blocks were used before they were there.
 *
 * The rule: a port is looked up each time, under the limit of the guest's own width. What was
 * pending goes when the port closes. The pages of the FIFO are the guest's writable memory for as
 * long as Xen writes to them. Success: refusals, and no event that belongs to a port's former
 * owner.
 */
#include "attack.h"

#define EVTCHNOP_bind_interdomain 0
#define EVTCHNOP_bind_virq 1
#define EVTCHNOP_bind_pirq 2
#define EVTCHNOP_close 3
#define EVTCHNOP_alloc_unbound 6
#define EVTCHNOP_bind_ipi 7
#define EVTCHNOP_bind_vcpu 8
#define EVTCHNOP_unmask 9
#define EVTCHNOP_init_control 11
#define EVTCHNOP_expand_array 12
#define NR_2L (sizeof(long) * sizeof(long) * 64)
#define LAST_PORT 1023 /* what the toolstack lets a guest have */

union op {
	struct { uint16_t dom, remote; uint32_t port; } alloc_unbound;
	struct { uint16_t remote; uint32_t remote_port, port; } bind_interdomain;
	struct { uint32_t virq, vcpu, port; } bind_virq; /* and pirq, flags */
	struct { uint32_t vcpu, port; } bind_ipi;
	struct { uint32_t port, vcpu; } bind_vcpu;
	struct { uint64_t gfn; uint32_t offset, vcpu; uint8_t link_bits; } init_control;
	struct { uint64_t gfn; } expand_array;
	uint32_t port; /* close, send, unmask */
};

static uint32_t words[1024] PAGE, table[1024] PAGE;

static long event(unsigned int command, union op *op)
{
	return hypercall(__HYPERVISOR_event_channel_op, command, (unsigned long)op, 0);
}

static long on_port(unsigned int command, uint32_t port)
{
	return event(command, &(union op){ .port = port });
}

static volatile unsigned long *shared(unsigned long **mask)
{
	static char page[4096] PAGE;
	unsigned long *info = (unsigned long *)page;
	unsigned long vcpus = 32 * 64 / sizeof(long);

	update_va_mapping(page, start_info()->shared_info | PTE_WRITE);
	*mask = info + vcpus + sizeof(long) * 8;
	return info + vcpus;
}

static uint32_t bind_self(uint32_t *peer)
{
	union op op = { .alloc_unbound = { DOMID_SELF, DOMID_SELF, 0 } };

	check_equal("alloc_unbound", event(EVTCHNOP_alloc_unbound, &op), 0);
	*peer = op.alloc_unbound.port;
	op.bind_interdomain.remote = DOMID_SELF;
	op.bind_interdomain.remote_port = *peer;
	check_equal("bind_interdomain", event(EVTCHNOP_bind_interdomain, &op), 0);
	return op.bind_interdomain.port;
}

static void refused_port(uint32_t port)
{
	union op op = { .bind_vcpu = { port, 0 } };

	check_equal("send", on_port(EVTCHNOP_send, port), -EINVAL);
	check_equal("close", on_port(EVTCHNOP_close, port), -EINVAL);
	check_equal("bind_vcpu", event(EVTCHNOP_bind_vcpu, &op), -EINVAL);
	op.bind_interdomain.remote = DOMID_SELF;
	op.bind_interdomain.remote_port = port;
	check_equal("bind_interdomain", event(EVTCHNOP_bind_interdomain, &op), -EINVAL);
}

static void reused(void)
{
	unsigned long *mask;
	volatile unsigned long *pending = shared(&mask);
	uint32_t peer, port = bind_self(&peer), ignored;
	union op op = { .alloc_unbound = { DOMID_SELF, DOMID_SELF, 0 } };

	*mask = -1ul;
	check_equal("send", on_port(EVTCHNOP_send, peer), 0);
	check_equal("what is pending", *pending >> port & 1, 1);
	check_equal("close", on_port(EVTCHNOP_close, port), 0);
	check_equal("what was pending", *pending >> port & 1, 0);
	refused_port(port);
	check_equal("reuse", event(EVTCHNOP_alloc_unbound, &op), 0);
	check_equal("the same port", op.alloc_unbound.port, port);
	check_equal("a former peer's event", on_port(EVTCHNOP_send, peer), 0);
	check_equal("does not come", *pending >> port & 1, 0);
	check_equal("close the peer", on_port(EVTCHNOP_close, peer), 0);
	check_equal("close", on_port(EVTCHNOP_close, port), 0);
	check_equal("close twice", on_port(EVTCHNOP_close, port), -EINVAL);
	ignored = bind_self(&peer);
	check_equal("close both", on_port(EVTCHNOP_close, peer) | on_port(EVTCHNOP_close, ignored), 0);
}

static void out_of_range(void)
{
	union op op;

	refused_port(0);
	refused_port(LAST_PORT + 1);
	refused_port(NR_2L);
	refused_port(-1u);
	op.bind_virq.virq = 24, op.bind_virq.vcpu = 0;
	check_equal("no such VIRQ", event(EVTCHNOP_bind_virq, &op), -EINVAL);
	op.bind_virq.virq = 0, op.bind_virq.vcpu = -1u;
	check_equal("no such vcpu", event(EVTCHNOP_bind_virq, &op), -ENOENT);
	check_equal("nor for an IPI", event(EVTCHNOP_bind_ipi, &(union op){ .bind_ipi.vcpu = 64 }), -ENOENT);
}

static void used_up(void)
{
	uint32_t ports = 0;
	union op op;
	long result;

	do {
		op.bind_ipi.vcpu = 0;
		result = event(EVTCHNOP_bind_ipi, &op);
	} while (!result && ++ports <= LAST_PORT);
	check_equal("ports without end", result, -ENOSPC);
	check_equal("the last port", op.bind_ipi.port, LAST_PORT);
}

static void fifo(void)
{
	unsigned long mfn = virt_to_mfn(words);
	union op op = { .init_control = { mfn, 0, 0, 0 } };
	union op array = { .expand_array = { virt_to_mfn(table) } };

	check_equal("to read alone", protect(table), 0);
	check_equal("pin", pin_table(1, virt_to_mfn(table)), 0);
	check_equal("an array without a FIFO", event(EVTCHNOP_expand_array, &array), -EOPNOTSUPP);
	op.init_control.offset = 4;
	check_equal("not aligned", event(EVTCHNOP_init_control, &op), -EINVAL);
	op.init_control.offset = 4096 - 64;
	check_equal("beyond the page", event(EVTCHNOP_init_control, &op), -EINVAL);
	op = (union op){ .init_control = { mfn, 0, 7, 0 } };
	check_equal("no such vcpu", event(EVTCHNOP_init_control, &op), -ENOENT);
	op = (union op){ .init_control = { virt_to_mfn(table), 0, 0, 0 } };
	check_equal("a page table", event(EVTCHNOP_init_control, &op), -EINVAL);
	op.init_control.gfn = (*XEN_SLOT & PTE_ADDR) >> 12;
	check_equal("Xen's frame", event(EVTCHNOP_init_control, &op), -EINVAL);
	op.init_control.gfn = mfn;
	check_equal("init_control", event(EVTCHNOP_init_control, &op), 0);
	check_equal("twice", event(EVTCHNOP_init_control, &op), -EINVAL);
	check_equal("an array in a page table", event(EVTCHNOP_expand_array, &array), -EINVAL);
	array.expand_array.gfn = mfn;
	check_equal("both in one page", event(EVTCHNOP_expand_array, &array), 0);
	memset(words, 0xff, sizeof(words)); /* each word linked to the last, pending, masked, busy */
	check_equal("an event", on_port(EVTCHNOP_send, LAST_PORT), 0);
	check_equal("unmask", on_port(EVTCHNOP_unmask, LAST_PORT), 0);
	check_equal("to read alone", protect(words), 0);
	check_equal("as a page table", pin_table(1, mfn), -EINVAL);
	check_equal("to write again", unprotect(words), 0);
}

void guest_main(void)
{
	union op beyond_the_page = { .init_control = { virt_to_mfn(words), 4096, 0, 0 } };

	out_of_range();
	/* xen-shim has no FIFO, and asks the Xen below it for its ports, of which it keeps some. */
	if (event(EVTCHNOP_init_control, &beyond_the_page) != -EOPNOTSUPP) {
		reused();
		used_up();
		fifo();
	}
	success();
}
