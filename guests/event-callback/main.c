/*
 * A PVH guest hears of events by an interrupt. Xen may raise a vector while the vcpu's pending byte
 * is set (HVM_PARAM_CALLBACK_IRQ). Or the local APIC has a vector of its own for it, which wants an
 * EOI (HVMOP_set_evtchn_upcall_vector). If an upcall is lost, comes twice, or gets through a mask,
 * a kernel hangs or goes wrong much later.
 *
 * Success: each event arrives once, when it may.
 */
#include "pvh.h"
#include "traps.h"

#define VECTOR 0xf3
#define APIC_VECTOR 0xe3
#define APIC ((volatile uint32_t *)0xfee00000)
#define APIC_EOI (0xb0 / 4)
#define APIC_SPURIOUS (0xf0 / 4)
#define APIC_ISR7 (0x170 / 4) /* vectors 0xe0 to 0xff */
#define WORD_BITS (8 * sizeof(long))

#define EVTCHNOP_bind_virq 1
#define EVTCHNOP_bind_ipi 7
#define EVTCHNOP_unmask 9
#define VIRQ_TIMER 0
#define VCPUOP_stop_periodic_timer 7
#define VCPUOP_set_singleshot_timer 8

struct vcpu_info {
	uint8_t pending, mask;
	unsigned long pending_sel;
	unsigned long arch[sizeof(long) == 8 ? 2 : 6];
	uint8_t time[32];
};
_Static_assert(sizeof(struct vcpu_info) == 64, "vcpu_info");

static struct shared_info {
	struct vcpu_info vcpu[32];
	unsigned long pending[WORD_BITS];
	unsigned long mask[WORD_BITS];
} shared __attribute__((aligned(4096)));

static struct vcpu_info *const vcpu = &shared.vcpu[0];
static unsigned int upcalls, wanted_port;
static int in_service;

static unsigned int bind(unsigned int command, uint32_t first)
{
	uint32_t op[3] = { first, 0, 0 }; /* bind_ipi: vcpu, port; bind_virq: virq, vcpu, port */
	long result = hypercall(__HYPERVISOR_event_channel_op, command, (unsigned long)op, 0);

	check_equal("bind", result, 0);
	return command == EVTCHNOP_bind_ipi ? op[1] : op[2];
}

static void event_op(unsigned int command, uint32_t port)
{
	check_equal("event channel operation",
		    hypercall(__HYPERVISOR_event_channel_op, command, (unsigned long)&port, 0), 0);
}

static int pending(unsigned int port)
{
	return shared.pending[port / WORD_BITS] >> port % WORD_BITS & 1;
}

static void upcall(struct frame *frame)
{
	upcalls++;
	check_equal("pending byte", vcpu->pending, 1);
	check(pending(wanted_port), "the event is not pending");
	check(vcpu->pending_sel >> wanted_port / WORD_BITS & 1, "the selector is not set");
	vcpu->pending = 0;
	vcpu->pending_sel = 0;
	shared.pending[wanted_port / WORD_BITS] &= ~(1ul << wanted_port % WORD_BITS);
	if (frame->vector == APIC_VECTOR) {
		in_service = APIC[APIC_ISR7] >> (APIC_VECTOR & 31) & 1;
		APIC[APIC_EOI] = 0;
	}
}

static void expect(const char *what, unsigned int count)
{
	let_interrupts_in();
	printk("%s: %u\n", what, upcalls);
	check_equal("upcalls", upcalls, count);
	upcalls = 0;
}

static void ipi(void)
{
	unsigned int port = wanted_port = bind(EVTCHNOP_bind_ipi, 0);

	event_op(EVTCHNOP_unmask, port);
	event_op(EVTCHNOP_send, port);
	event_op(EVTCHNOP_send, port);
	check_equal("upcalls with IF clear", upcalls, 0);
	expect("upcalls of an IPI that was sent twice", 1);
	shared.mask[port / WORD_BITS] |= 1ul << port % WORD_BITS;
	event_op(EVTCHNOP_send, port);
	check(pending(port), "a masked event is not pending");
	expect("upcalls of a masked port", 0);
	event_op(EVTCHNOP_unmask, port);
	expect("upcalls when it is unmasked", 1);
}

static void timer(void)
{
	struct { uint64_t timeout_abs_ns; uint32_t flags; } at = { rdtsc() + 1000000, 0 };

	wanted_port = bind(EVTCHNOP_bind_virq, VIRQ_TIMER);
	event_op(EVTCHNOP_unmask, wanted_port);
	hypercall(__HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, 0, 0);
	check_equal("set_singleshot_timer",
		    hypercall(__HYPERVISOR_vcpu_op, VCPUOP_set_singleshot_timer, 0,
			      (unsigned long)&at), 0);
	expect("upcalls before the timer", 0);
	wait_for_interrupt();
	check(rdtsc() - at.timeout_abs_ns < 10000, "the timer was not in time");
	expect("upcalls of the timer", 1);
}

void guest_main(void)
{
	struct { uint32_t vcpu; uint8_t vector; } own = { 0, APIC_VECTOR };

	check_equal("add shared_info", add_to_physmap(XENMAPSPACE_shared_info, 0, &shared), 0);
	memset(shared.mask, 0xff, sizeof(shared.mask)); /* the console's is not of interest */
	vcpu->pending = 0;
	vcpu->pending_sel = 0;
	set_handler(VECTOR, upcall);
	set_handler(APIC_VECTOR, upcall);

	/* Xen raises a new vector at once; an APIC that is off ignores that. */
	check_equal("set the upcall vector",
		    hypercall(__HYPERVISOR_hvm_op, HVMOP_set_evtchn_upcall_vector,
			      (unsigned long)&own, 0), 0);
	APIC[APIC_SPURIOUS] = 0x1ff;
	printk("by the local APIC:\n");
	ipi();
	check(in_service, "the APIC did not have the upcall in service");

	/* From now on it is off again, and loses the upcalls that Xen still sends there. */
	APIC[APIC_SPURIOUS] = 0xff;
	check_equal("set the callback",
		    set_param(HVM_PARAM_CALLBACK_IRQ, HVM_CALLBACK_VECTOR(VECTOR)), 0);
	check_equal("set a callback by GSI", set_param(HVM_PARAM_CALLBACK_IRQ, 1), 0);
	printk("by Xen's vector, which no GSI replaces:\n");
	ipi();
	timer();
	success();
}
