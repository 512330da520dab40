/*
 * A vcpu's local APIC sends interrupts to others, by each kind of destination (SDM volume 3,
 * "Issuing Interprocessor Interrupts"): physical, logical in the flat, cluster and x2APIC models,
 * all, all but self, self, and lowest priority. If one goes astray, a kernel waits for ever.
 *
 * Success: each reaches whom it is for, once, in xAPIC and in x2APIC mode.
 */
#ifndef GUEST_PV
#include "apic.h"
#include "vcpus.h"

#define VCPUS 4
#define VECTOR 0x61
#define LDR 0x0d
#define DFR 0x0e
#define DFR_FLAT 0xffffffff
#define DFR_CLUSTER 0x0fffffff
#define ICR_LOWEST (1 << 8)
#define ICR_LOGICAL (1 << 11)
#define ICR_ALL (2 << 18)
#define ICR_OTHERS (3 << 18)
#define APIC_ID(vcpu) (2 * (vcpu))

static struct {
	uint16_t limit;
	unsigned long base;
} __attribute__((packed)) idt;

static volatile unsigned int taken[VCPUS], ready, model;

static unsigned int this_vcpu(void)
{
	return (x2apic ? get(ID) : get(ID) >> 24) / 2;
}

static void note(struct frame *frame)
{
	(void)frame;
	taken[this_vcpu()]++;
	set(EOI, 0);
}

/* Enter the model that vcpu 0 has chosen. */
static void join(unsigned int vcpu)
{
	if (model == 2)
		wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_EXTD);
	set(SPURIOUS, 0x1ff);
	if (model < 2) {
		set(DFR, model ? DFR_CLUSTER : DFR_FLAT);
		set(LDR, (model ? (vcpu / 2) << 4 | 1 << vcpu % 2 : 1u << vcpu) << 24);
	}
}

void vcpu_main(unsigned int vcpu)
{
	unsigned int joined = 0;

	asm volatile("lidt %0" : : "m"(idt));
	join(vcpu);
	__atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		wait_for_interrupt();
		if (model != joined) {
			join(vcpu);
			joined = model;
			__atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
		}
	}
}

static void send(unsigned int command, unsigned int destination)
{
	if (x2apic) {
		wrmsr(0x800 + ICR, (uint64_t)destination << 32 | command | ICR_ASSERT);
		return;
	}
	set(ICR2, destination << 24);
	set(ICR, command | ICR_ASSERT);
}

/* Send an interrupt, and let each take what it has: bit n of `whom` is vcpu n. */
static void expect(const char *what, unsigned int command, unsigned int destination,
		   unsigned int whom)
{
	unsigned int got = 0;

	send(VECTOR | command, destination);
	for (unsigned int n = 0; n < 4 * VCPUS; n++)
		yield();
	let_interrupts_in();
	for (unsigned int vcpu = 0; vcpu < VCPUS; vcpu++) {
		check(taken[vcpu] < 2, "an interrupt came twice");
		got |= taken[vcpu] << vcpu;
		taken[vcpu] = 0;
	}
	check_equal(what, got, whom);
}

static void lowest_priority(unsigned int all)
{
	unsigned int seen = 0;

	set(TPR, 0x20);
	for (unsigned int n = 1; n < VCPUS; n++) {
		send(VECTOR | ICR_LOWEST | ICR_LOGICAL, all);
		for (unsigned int wait = 0; wait < 4 * VCPUS; wait++)
			yield();
		for (unsigned int vcpu = 1; vcpu < VCPUS; vcpu++) {
			seen |= taken[vcpu] << vcpu;
			taken[vcpu] = 0;
		}
	}
	check_equal("lowest priority, one after the other", seen, 0xe);
	set(TPR, 0);
}

static void each_kind(const char *name)
{
	unsigned int broadcast = x2apic ? 0xffffffff : 0xff;

	expect("physical", 0, APIC_ID(2), 1 << 2);
	expect("physical, to nobody", 0, 77, 0);
	expect("physical, to all", 0, broadcast, 0xf);
	expect("to itself by its ID", 0, APIC_ID(0), 1);
	expect("self", ICR_SELF, 0, 1);
	expect("all", ICR_ALL, 0, 0xf);
	expect("all but self", ICR_OTHERS, 0, 0xe);
	if (model == 1) {
		expect("logical, of cluster 1", ICR_LOGICAL, 0x13, 0xc);
		expect("logical, one of cluster 0", ICR_LOGICAL, 0x02, 0x2);
		expect("logical, of cluster 2", ICR_LOGICAL, 0x23, 0);
	} else {
		expect("logical", ICR_LOGICAL, 0xa, 0xa);
		expect("logical, to nobody", ICR_LOGICAL, 0xf0, 0);
		lowest_priority(0xe);
	}
	printk("%s: each kind\n", name);
}

static void next_model(void)
{
	model++;
	ready = 0;
	send(VECTOR | ICR_OTHERS, 0);
	await(&ready, VCPUS - 1);
	for (unsigned int vcpu = 1; vcpu < VCPUS; vcpu++)
		taken[vcpu] = 0;
	join(0);
}

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, VCPUS - 1, 0) < 0) {
		skip("there are too few vcpus");
		return;
	}
	asm volatile("sidt %0" : "=m"(idt));
	set_handler(VECTOR, note);
	join(0);
	start_vcpus(VCPUS);
	await(&ready, VCPUS - 1);
	each_kind("flat");
	next_model();
	each_kind("cluster");
	next_model();
	x2apic = 1;
	each_kind("x2APIC");
	success();
}
#endif
