/* x86: selectors, control registers, privileged instructions. */
#ifndef X86_H
#define X86_H

#ifdef GUEST_PV /* Xen's flat segments, in every guest's GDT */
#ifdef __x86_64__
#define KERNEL_CS 0xe030 /* ring 3 in truth: what frames and iret show of the kernel */
#define KERNEL_DS 0xe02b
#define USER_CS 0xe033
#define USER_CS32 0xe023
#define USER_DS 0xe02b
#else
#define KERNEL_CS 0xe019
#define KERNEL_DS 0xe021
#define USER_CS 0xe02b
#define USER_DS 0xe033
#endif
#else
/* In the order that SYSCALL and SYSENTER want. */
#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define USER_CS32 0x1b
#define USER_DS 0x23
#define USER_CS64 0x2b
#define TSS_SELECTOR 0x38
#define ABSENT_DS 0x48
#ifdef __x86_64__
#define USER_CS USER_CS64
#define KERNEL_CODE 0x00af9b000000ffff
#else
#define USER_CS USER_CS32
#define KERNEL_CODE 0x00cf9b000000ffff
#endif
#endif

#define CR0_PE (1 << 0)
#define CR0_WP (1 << 16)
#define CR0_PG 0x80000000
#define CR4_PSE (1 << 4)
#define CR4_PAE (1 << 5)
#define MSR_EFER 0xc0000080
#define EFER_SCE (1 << 0)
#define EFER_LME (1 << 8)
#define EFER_NX (1 << 11)

#ifndef __ASSEMBLER__

#include <stdint.h>

#define FLAGS_TF (1 << 8)
#define FLAGS_IF (1 << 9)

struct cpuid {
	uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid is;

	asm volatile("cpuid"
		     : "=a"(is.eax), "=b"(is.ebx), "=c"(is.ecx), "=d"(is.edx)
		     : "a"(leaf), "c"(subleaf));
	return is;
}

static inline uint64_t rdmsr(uint32_t number)
{
	uint32_t low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
	return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t number, uint64_t value)
{
	asm volatile("wrmsr"
		     : : "c"(number), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static inline uint64_t rdtsc(void)
{
	uint32_t low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

#define CONTROL_REGISTER(name)                                                                     \
	static inline unsigned long read_##name(void)                                              \
	{                                                                                          \
		unsigned long value;                                                               \
		asm volatile("mov %%" #name ", %0" : "=r"(value) : : "memory");                    \
		return value;                                                                      \
	}                                                                                          \
	static inline void write_##name(unsigned long value)                                       \
	{                                                                                          \
		asm volatile("mov %0, %%" #name : : "r"(value) : "memory");                        \
	}
CONTROL_REGISTER(cr0)
CONTROL_REGISTER(cr2)
CONTROL_REGISTER(cr3)
CONTROL_REGISTER(cr4)

static inline void sti(void)
{
	asm volatile("sti" : : : "memory");
}

static inline void cli(void)
{
	asm volatile("cli" : : : "memory");
}

/* Let an interrupt in, waiting for it; none can slip in between. */
static inline void wait_for_interrupt(void)
{
	asm volatile("sti; hlt; cli" : : : "memory");
}

/* Let the interrupts in that are pending. */
static inline void let_interrupts_in(void)
{
	asm volatile("sti; nop; nop; cli" : : : "memory");
}

static inline void invlpg(const volatile void *at)
{
	asm volatile("invlpg (%0)" : : "r"(at) : "memory");
}

#endif
#endif
