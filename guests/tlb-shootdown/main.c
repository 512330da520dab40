/*
 * A vcpu changes a mapping that another vcpu has in its TLB, and has it flushed there: a PV guest by
 * hypercalls that name the vcpus, a PVH guest by an interrupt whose handler does INVLPG. A stale
 * translation would lead to a page that may belong to somebody else by then.
 *
 * Success: after each kind of flush, the other vcpu sees the new page, and has seen the old one.
 */
#include "vcpus.h"

#define OLD 0x01d01d
#define NEW 0x4e84e8

static unsigned int pages[2][1024] __attribute__((aligned(4096))) = { { OLD }, { NEW } };
static volatile unsigned int ready, wanted, seen, rounds;

#ifdef GUEST_PV
#define MMUEXT_TLB_FLUSH_LOCAL 6
#define MMUEXT_INVLPG_LOCAL 7
#define MMUEXT_TLB_FLUSH_MULTI 8
#define MMUEXT_INVLPG_MULTI 9
#define MMUEXT_TLB_FLUSH_ALL 10
#define MMUEXT_INVLPG_ALL 11
#define UVMF_TLB_FLUSH 1

static unsigned int window[1024] __attribute__((aligned(4096)));
static unsigned long both = 3;

static uint64_t leads_to(unsigned int page)
{
	return (uint64_t)virt_to_mfn(pages[page]) << 12 | PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D;
}

static long update(unsigned int page, unsigned long flags)
{
	uint64_t entry = leads_to(page);

#ifdef __x86_64__
	return hypercall(__HYPERVISOR_update_va_mapping, (unsigned long)window, entry, flags);
#else
	return hypercall4(__HYPERVISOR_update_va_mapping, (unsigned long)window, entry,
			  entry >> 32, flags);
#endif
}
#else
#include "apic.h"

#define VECTOR 0x61
#define ICR_OTHERS (3 << 18)
#define window ((unsigned int *)0x80000000) /* not the guest's memory */

static struct {
	uint16_t limit;
	unsigned long base;
} __attribute__((packed)) idt;
static uint64_t l1_table[512] __attribute__((aligned(4096)));
static volatile unsigned int flushed;

static void map(unsigned int page)
{
	extern uint64_t l2_tables[];

	*(volatile uint64_t *)l1_table = (unsigned long)pages[page] | 3;
	l2_tables[(unsigned long)window >> 21] = (unsigned long)l1_table | 3;
}

static void flush(struct frame *frame)
{
	(void)frame;
	invlpg(window);
	set(EOI, 0);
	flushed++;
}
#endif

/* The other vcpu looks whenever it is asked to, and never flushes by itself. */
void vcpu_main(unsigned int vcpu)
{
	(void)vcpu;
#ifndef GUEST_PV
	asm volatile("lidt %0" : : "m"(idt));
	set(SPURIOUS, 0x1ff);
	sti();
#endif
	ready = 1;
	for (;;) {
		while (rounds == wanted)
			asm volatile("pause");
		seen = *(volatile unsigned int *)window;
		rounds++;
	}
}

static unsigned int look(void)
{
	wanted++;
	while (rounds != wanted)
		asm volatile("pause");
	return seen;
}

#ifdef GUEST_PV
static void by_mmuext(const char *what, unsigned int command, unsigned long arg1)
{
	unsigned long arg2 = (unsigned long)&both;

	check_equal("map the old page", update(0, UVMF_INVLPG | UVMF_ALL), 0);
	check_equal("the old page", look(), OLD);
	check_equal("map the new page", update(1, 0), 0);
	check_equal(what, mmuext(command, arg1, arg2), 0);
	check_equal(what, look(), NEW);
	check_equal(what, *(volatile unsigned int *)window, NEW);
}

static void by_update(const char *what, unsigned long flags)
{
	check_equal("map the old page", update(0, UVMF_INVLPG | UVMF_ALL), 0);
	check_equal("the old page", look(), OLD);
	check_equal(what, update(1, flags), 0);
	check_equal(what, look(), NEW);
}

static void each_kind(void)
{
	unsigned long at = (unsigned long)window, to_both = (unsigned long)&both;

	by_mmuext("TLB_FLUSH_MULTI", MMUEXT_TLB_FLUSH_MULTI, 0);
	by_mmuext("INVLPG_MULTI", MMUEXT_INVLPG_MULTI, at);
	by_mmuext("TLB_FLUSH_ALL", MMUEXT_TLB_FLUSH_ALL, 0);
	by_mmuext("INVLPG_ALL", MMUEXT_INVLPG_ALL, at);
	by_update("update_va_mapping, INVLPG of both", UVMF_INVLPG | to_both);
	by_update("update_va_mapping, TLB_FLUSH of both", UVMF_TLB_FLUSH | to_both);
	by_update("update_va_mapping, INVLPG of all", UVMF_INVLPG | UVMF_ALL);
	by_update("update_va_mapping, TLB_FLUSH of all", UVMF_TLB_FLUSH | UVMF_ALL);
	check_equal("MULTI of vcpus that cannot be read",
		    mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, 0x40000000), -EINVAL);
	check_equal("the same of update_va_mapping",
		    update(1, UVMF_INVLPG | 0x40000000), -EFAULT);
}
#else
static void each_kind(void)
{
	for (unsigned int n = 1; n <= 20; n++) {
		map(0);
		invlpg(window);
		set(ICR, VECTOR | ICR_OTHERS | ICR_ASSERT);
		while (flushed != 2 * n - 1)
			asm volatile("pause");
		check_equal("the old page", look(), OLD);
		map(1);
		set(ICR, VECTOR | ICR_OTHERS | ICR_ASSERT);
		while (flushed != 2 * n)
			asm volatile("pause");
		check_equal("the new page", look(), NEW);
		invlpg(window);
		check_equal("the new page, here", *(volatile unsigned int *)window, NEW);
	}
}
#endif

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, 1, 0) < 0) {
		skip("there is one vcpu");
		return;
	}
#ifndef GUEST_PV
	asm volatile("sidt %0" : "=m"(idt));
	set_handler(VECTOR, flush);
	set(SPURIOUS, 0x1ff);
	map(0);
#endif
	start_vcpus(2);
	await(&ready, 1);
	each_kind();
	success();
}
