/*
 * A local APIC sends interrupts to itself. They wait for their priority, and stay in service until
 * their EOI. An NMI waits for nothing (SDM volume 3, chapter 11). If the order is not kept, or an
 * EOI does nothing, a kernel hangs.
 *
 * Success: vectors come in the order of their priority, and none comes below the task's priority.
 * This holds in xAPIC and in x2APIC mode. What x2APIC reserves is #GP.
 */
#include "apic.h"
#include "pvh.h"
#include "traps.h"

#define LOW_VECTOR 0x51
#define HIGH_VECTOR 0xa1

static unsigned int taken[8], nr_taken; /* vectors, in order */

static void note(struct frame *frame)
{
	if (nr_taken < 8)
		taken[nr_taken++] = frame->vector;
	if (frame->vector == NMI)
		return;
	check(is_set(ISR, frame->vector), "a vector is not in service in its handler");
	set(EOI, 0);
	check(!is_set(ISR, frame->vector), "a vector is in service after its EOI");
}

static void expect(const char *what, unsigned int count, unsigned int first, unsigned int second)
{
	printk("%s: %u taken\n", what, nr_taken);
	check_equal("interrupts", nr_taken, count);
	check(count < 1 || taken[0] == first, "the first is another");
	check(count < 2 || taken[1] == second, "the second is another");
	nr_taken = 0;
}

static void priority(void)
{
	set(ICR, ICR_SELF | ICR_ASSERT | LOW_VECTOR);
	set(ICR, ICR_SELF | ICR_ASSERT | HIGH_VECTOR);
	check(is_set(IRR, LOW_VECTOR) && is_set(IRR, HIGH_VECTOR), "an IPI is not requested");
	let_interrupts_in();
	expect("two IPIs to self", 2, HIGH_VECTOR, LOW_VECTOR);

	set(TPR, HIGH_VECTOR);
	set(ICR, ICR_SELF | ICR_ASSERT | HIGH_VECTOR);
	let_interrupts_in();
	check_equal("processor priority", get(PPR), HIGH_VECTOR);
	expect("IPI of the task's priority", 0, 0, 0);
	set(TPR, HIGH_VECTOR - 0x10);
	let_interrupts_in();
	expect("IPI above the task's priority", 1, HIGH_VECTOR, 0);
	set(TPR, 0);

	if (x2apic)
		wrmsr(0x800 + ICR, (uint64_t)get(ID) << 32 | ICR_ASSERT | ICR_NMI);
	else {
		set(ICR2, get(ID));
		set(ICR, ICR_ASSERT | ICR_NMI);
	}
	asm volatile("nop");
	expect("NMI to self, IF clear", 1, NMI, 0);

	set(ICR, ICR_SELF | ICR_ASSERT | 5);
	set(ESR, 0);
	check_equal("ESR: illegal vector sent", get(ESR), 1 << 5);
	set(ESR, 0);
}

static void run(void)
{
	printk("%s: ID %u\n", x2apic ? "x2APIC" : "xAPIC", get(ID));
	set(SPURIOUS, 0x1ff);
	priority();
}

void guest_main(void)
{
	set_handler(LOW_VECTOR, note);
	set_handler(HIGH_VECTOR, note);
	set_handler(NMI, note);
	TRY("wrmsr", "c"(0x800 + EOI), "a"(0), "d"(0));
	check_equal("x2APIC's registers in xAPIC mode", last_trap.vector, GP);
	run();
	enter_x2apic();
	run();
	set(SELF_IPI, LOW_VECTOR);
	let_interrupts_in();
	expect("SELF_IPI", 1, LOW_VECTOR, 0);
	TRY("wrmsr", "c"(0x800 + ID), "a"(0), "d"(0));
	check_equal("write of x2APIC's ID", last_trap.vector, GP);
	success();
}
