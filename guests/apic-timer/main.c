/*
 * The local APIC of a PVH guest: its timer counts at the rate of its divider, once or again and
 * again; interrupts wait for their priority and stay in service until their EOI (SDM volume 3,
 * chapter 11). A timer that is off makes a kernel's clock wrong or its calibration fail; one tick
 * too many or an EOI that does nothing hangs it. Success: the same in xAPIC and in x2APIC mode.
 */
#include "pvh.h"
#include "traps.h"

#define MSR_APIC_BASE 0x1b
#define APIC_BASE_EXTD (1 << 10)
#define NS_PER_COUNT 10 /* Xen's bus: 100 MHz */
#define TIMER_VECTOR 0xe1
#define LOW_VECTOR 0x51
#define HIGH_VECTOR 0xa1

enum {
	ID = 0x02, VERSION = 0x03, TPR = 0x08, PPR = 0x0a, EOI = 0x0b, SPURIOUS = 0x0f, ISR = 0x10,
	IRR = 0x20, ESR = 0x28, ICR = 0x30, ICR2 = 0x31, LVT_TIMER = 0x32, INITIAL = 0x38,
	CURRENT = 0x39, DIVIDE = 0x3e, SELF_IPI = 0x3f,
};
#define LVT_MASKED (1 << 16)
#define LVT_PERIODIC (1 << 17)
#define ICR_NMI (4 << 8)
#define ICR_ASSERT (1 << 14)
#define ICR_SELF (1 << 18)

static int x2apic;
static unsigned int taken[8], nr_taken; /* vectors, in order */

static uint32_t get(unsigned int reg)
{
	return x2apic ? rdmsr(0x800 + reg) : *(volatile uint32_t *)(0xfee00000ul + 16 * reg);
}

static void set(unsigned int reg, uint32_t value)
{
	if (x2apic)
		wrmsr(0x800 + reg, value);
	else
		*(volatile uint32_t *)(0xfee00000ul + 16 * reg) = value;
}

static int is_set(unsigned int first, unsigned int vector)
{
	return get(first + vector / 32) >> vector % 32 & 1;
}

static void note(struct frame *frame)
{
	if (nr_taken < 8)
		taken[nr_taken++] = frame->vector;
	if (frame->vector == NMI)
		return;
	check(is_set(ISR, frame->vector), "a vector is not in service in its handler");
	set(EOI, 0);
	check(!is_set(ISR, frame->vector), "a vector is in service behind its EOI");
}

static void expect(const char *what, unsigned int count, unsigned int first, unsigned int second)
{
	printk("%s: %u taken\n", what, nr_taken);
	check_equal("interrupts", nr_taken, count);
	check(count < 1 || taken[0] == first, "the first is another");
	check(count < 2 || taken[1] == second, "the second is another");
	nr_taken = 0;
}

static void spin(uint64_t ns)
{
	uint64_t end = rdtsc() + ns;

	while (rdtsc() < end)
		;
}

static void divider(void)
{
	for (unsigned int code = 0; code < 8; code++) {
		unsigned int divide = 1 << (code + 1) % 8; /* codes 0 to 7: 2 to 128, then 1 */
		uint64_t start, counts;

		set(LVT_TIMER, LVT_MASKED | TIMER_VECTOR);
		set(DIVIDE, (code & 3) | (code & 4) << 1);
		set(INITIAL, 1000000);
		start = rdtsc();
		spin(100000);
		counts = (rdtsc() - start) / NS_PER_COUNT / divide;
		if (1000000 - get(CURRENT) - counts > 16) {
			printk("divided by %u: count %u\n", divide, get(CURRENT));
			failure("the count does not keep time");
		}
	}
	set(DIVIDE, 0xb);
}

static void timer(void)
{
	uint64_t start;

	set(LVT_TIMER, TIMER_VECTOR);
	set(INITIAL, 50000);
	start = rdtsc();
	wait_for_interrupt();
	check(rdtsc() - start - 500000 < 1000, "the timer was not in time");
	check_equal("count behind the end", get(CURRENT), 0);
	sti();
	spin(1000000);
	cli();
	expect("one-shot timer", 1, TIMER_VECTOR, 0);

	set(LVT_TIMER, LVT_PERIODIC | TIMER_VECTOR);
	set(INITIAL, 50000);
	sti();
	spin(1900000);
	cli();
	set(INITIAL, 0);
	expect("periodic timer, 3.8 periods", 3, TIMER_VECTOR, TIMER_VECTOR);

	set(LVT_TIMER, LVT_MASKED | TIMER_VECTOR);
	set(INITIAL, 100);
	spin(10000);
	let_interrupts_in();
	expect("masked timer", 0, 0, 0);
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
	printk("%s: version 0x%x, ID %u\n", x2apic ? "x2APIC" : "xAPIC", get(VERSION), get(ID));
	set(SPURIOUS, 0x1ff);
	divider();
	timer();
	priority();
}

void guest_main(void)
{
	set_handler(TIMER_VECTOR, note);
	set_handler(LOW_VECTOR, note);
	set_handler(HIGH_VECTOR, note);
	set_handler(NMI, note);
	TRY("rdmsr", "c"(0x802), "a"(0), "d"(0));
	check_equal("x2APIC's registers in xAPIC mode", last_trap.vector, GP);
	run();
	wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_EXTD);
	x2apic = 1;
	run();
	set(SELF_IPI, LOW_VECTOR);
	let_interrupts_in();
	expect("SELF_IPI", 1, LOW_VECTOR, 0);
	TRY("wrmsr", "c"(0x802), "a"(0), "d"(0));
	check_equal("write of x2APIC's ID", last_trap.vector, GP);
	success();
}
