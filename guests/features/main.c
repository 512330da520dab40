/*
 * What CPUID offers beyond the basic instructions. Unikernels do not start without RDRAND and
 * RDSEED. RDTSCP has an auxiliary value. RDFSBASE and the like are undefined until CR4 allows them,
 * and refuse an address that no segment's base can be.
 *
 * Success: all work, in the kernel and in user mode.
 */
#ifdef GUEST_PV
#include "pv.h"
#else
#include "pvh.h"
#endif
#include "traps.h"

#define CR4_FSGSBASE (1ul << 16)
#define MSR_FS_BASE 0xc0000100
#define MSR_TSC_AUX 0xc0000103
#define NON_CANONICAL (1ul << 47)

/* Whether a word was drawn, and not the one before. */
#define DRAW(instruction)                                                                          \
	({                                                                                         \
		unsigned long drawn;                                                               \
		unsigned char carry;                                                               \
		static unsigned long last;                                                         \
		asm volatile(instruction " %0; setc %1" : "=r"(drawn), "=q"(carry) : : "cc");      \
		carry = carry && drawn != last;                                                    \
		last = drawn;                                                                      \
		carry;                                                                             \
	})

static void random_numbers(void)
{
	check(cpuid(1, 0).ecx >> 30 & 1, "no RDRAND");
	check(cpuid(7, 0).ebx >> 18 & 1, "no RDSEED");
	for (int i = 0; i < 10; i++)
		check(DRAW("rdrand") && DRAW("rdseed"), "no random number, or twice the same");
}

static uint32_t rdtscp(void)
{
	uint32_t low, high, aux;

	asm volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
	return aux;
}

static void auxiliary(void)
{
	check(cpuid(0x80000001, 0).edx >> 27 & 1, "no RDTSCP");
	check_equal("TSC_AUX", rdmsr(MSR_TSC_AUX), 0);
	wrmsr(MSR_TSC_AUX, 0x87654321);
	check_equal("TSC_AUX as written", rdmsr(MSR_TSC_AUX), 0x87654321);
	check_equal("ECX after RDTSCP", rdtscp(), 0x87654321);
	TRY("wrmsr", "c"(MSR_TSC_AUX), "a"(0), "d"(1));
	check_equal("more than 32 bits", last_trap.vector, GP);
}

#ifdef __x86_64__
static unsigned long rdfsbase(void)
{
	unsigned long base;

	asm volatile("rdfsbase %0" : "=r"(base));
	return base;
}

static void in_user_mode(void)
{
	unsigned long base = 0x5678, read;

	asm volatile("wrfsbase %1; rdfsbase %0" : "=r"(read) : "r"(base));
	if (read != base)
		asm volatile("hlt"); /* #GP */
	asm volatile("ud2");
}

static void bases(void)
{
	check(cpuid(7, 0).ebx & 1, "no FSGSBASE");
	write_cr4(read_cr4() & ~CR4_FSGSBASE);
	TRY("rdfsbase %%rax", "a"(0));
	check_equal("RDFSBASE without CR4's leave", last_trap.vector, UD);
	write_cr4(read_cr4() | CR4_FSGSBASE);
	check(read_cr4() & CR4_FSGSBASE, "CR4.FSGSBASE cannot be set");
	TRY("wrfsbase %%rax", "a"(0xffff900000001000));
	check_equal("WRFSBASE", last_trap.vector, NO_TRAP);
	check_equal("the base", rdfsbase(), 0xffff900000001000);
	check_equal("the MSR", rdmsr(MSR_FS_BASE), 0xffff900000001000);
	TRY("wrfsbase %%eax", "a"(0xffff900000001000));
	check_equal("half a register", rdfsbase(), 0x1000);
	TRY("wrfsbase %%rax", "a"(NON_CANONICAL));
	check_equal("WRFSBASE of what is not canonical", last_trap.vector, GP);
	check_equal("error code", last_trap.error, 0);
	check_equal("the base is as it was", rdfsbase(), 0x1000);
	run_user(in_user_mode);
	check_equal("WRFSBASE and RDFSBASE in user mode", last_trap.vector, UD);
}
#else
static void bases(void)
{
	TRY(".byte 0xf3, 0x0f, 0xae, 0xc0"); /* rdfsbase %eax */
	check_equal("RDFSBASE outside of 64-bit code", last_trap.vector, UD);
}
#endif

void guest_main(void)
{
	random_numbers();
	auxiliary();
	bases();
	printk("random numbers, RDTSCP, FSGSBASE\n");
	success();
}
