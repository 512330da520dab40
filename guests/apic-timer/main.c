/*
 * The timer of a PVH guest's local APIC counts at the rate of its divider, once or again and again
 * (SDM volume 3, chapter 11). If the timer is off, a kernel's clock is wrong, or its calibration
 * fails. One tick too many confuses the kernel's scheduler.
 *
 * Success: the count keeps time with the TSC, and each interrupt comes when it is due, in xAPIC and
 * in x2APIC mode.
 */
#include "apic.h"
#include "pvh.h"
#include "traps.h"

#define NS_PER_COUNT 10 /* Xen's bus: 100 MHz */
#define ACCESS_NS 4000 /* what a few accesses to the local APIC's page may take */
#define VECTOR 0xe1

static unsigned int ticks;

static void tick(struct frame *frame)
{
	(void)frame;
	ticks++;
	set(EOI, 0);
}

static void expect(const char *what, unsigned int count)
{
	printk("%s: %u\n", what, ticks);
	check_equal("interrupts", ticks, count);
	ticks = 0;
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

		set(LVT_TIMER, LVT_MASKED | VECTOR);
		set(DIVIDE, (code & 3) | (code & 4) << 1);
		set(INITIAL, 1000000);
		start = rdtsc();
		spin(100000);
		counts = (rdtsc() - start) / NS_PER_COUNT / divide;
		if (1000000 - get(CURRENT) - counts > 16 + ACCESS_NS / NS_PER_COUNT / divide) {
			printk("divided by %u: count %u\n", divide, get(CURRENT));
			failure("the count does not keep time");
		}
	}
	set(DIVIDE, 0xb);
}

static void timer(void)
{
	uint64_t start;

	set(LVT_TIMER, VECTOR);
	set(INITIAL, 50000);
	start = rdtsc();
	wait_for_interrupt();
	check(rdtsc() - start - 500000 < 1000 + ACCESS_NS, "the timer was not in time");
	check_equal("count after the end", get(CURRENT), 0);
	sti();
	spin(1000000);
	cli();
	expect("one-shot timer", 1);

	set(LVT_TIMER, LVT_PERIODIC | VECTOR);
	set(INITIAL, 50000);
	sti();
	spin(1900000);
	cli();
	set(INITIAL, 0);
	expect("periodic timer, 3.8 periods", 3);

	set(LVT_TIMER, LVT_MASKED | VECTOR);
	set(INITIAL, 100);
	spin(10000);
	let_interrupts_in();
	expect("masked timer", 0);
}

static void run(void)
{
	printk("%s: version 0x%x\n", x2apic ? "x2APIC" : "xAPIC", get(VERSION));
	set(SPURIOUS, 0x1ff);
	divider();
	timer();
}

void guest_main(void)
{
	set_handler(VECTOR, tick);
	run();
	enter_x2apic();
	run();
	success();
}
