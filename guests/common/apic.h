/* The local APIC of a PVH guest, in either of its modes. A register is named by its MSR - 0x800. */
#ifndef APIC_H
#define APIC_H

#include "x86.h"

#define MSR_APIC_BASE 0x1b
#define APIC_BASE_EXTD (1 << 10)

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

static inline uint32_t get(unsigned int reg)
{
	return x2apic ? rdmsr(0x800 + reg) : *(volatile uint32_t *)(0xfee00000ul + 16 * reg);
}

static inline void set(unsigned int reg, uint32_t value)
{
	if (x2apic)
		wrmsr(0x800 + reg, value);
	else
		*(volatile uint32_t *)(0xfee00000ul + 16 * reg) = value;
}

/* Whether a vector is set in ISR or IRR. */
static inline int is_set(unsigned int first, unsigned int vector)
{
	return get(first + vector / 32) >> vector % 32 & 1;
}

static inline void enter_x2apic(void)
{
	wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_EXTD);
	x2apic = 1;
}

#endif
