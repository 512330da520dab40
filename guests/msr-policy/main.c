/*
 * What a PV guest is told of its CPU, and which model-specific registers its kernel may read and
 * write. Xen derives both from the host, for each kind of guest. A PV guest sees nothing of large
 * pages, MTRRs or the x2APIC. A 32-bit PV guest sees nothing of long mode. Kernels read MSRs of an
 * Intel CPU without asking. If an emulator refuses them, each boot begins with a warning.
 *
 * Success: each leaf and register is as on Xen 4.17 on an Intel CPU, whatever else that CPU has.
 */
#include "pv.h"
#include "traps.h"

/* CPUID by the forced-emulation prefix: the kernel's view, whether or not CPUID faults. */
static struct cpuid kernel_cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid is;

	asm volatile("ud2; .ascii \"xen\"; cpuid"
		     : "=a"(is.eax), "=b"(is.ebx), "=c"(is.ecx), "=d"(is.edx)
		     : "a"(leaf), "c"(subleaf));
	return is;
}

static void check_bits(const char *word, uint32_t is, uint32_t set, uint32_t clear)
{
	if ((is & set) == set && !(is & clear))
		return;
	printk("%s: 0x%x; of 0x%x it lacks 0x%x, of 0x%x it has 0x%x\n", word, is, set, set & ~is,
	       clear, clear & is);
	failure(word);
}

#define BIT(n) (1u << (n))
#define IF64(bits) (sizeof(long) == 8 ? (bits) : 0)
#define IF32(bits) (sizeof(long) == 4 ? (bits) : 0)

static void leaves(void)
{
	struct cpuid one = kernel_cpuid(1, 0), extended = kernel_cpuid(0x80000001, 0);

	/* FPU DE TSC MSR PAE MCE CX8 APIC SEP MCA CMOV PAT CLFLUSH MMX FXSR SSE SSE2, but not
	 * VME PSE MTRR PGE PSE36 DS */
	check_bits("leaf 1, EDX", one.edx, 0x07894b74 | BIT(0) | BIT(7), 0x0022300a);
	/* HYPERVISOR, but not MONITOR VMX EIST X2APIC TSC_DEADLINE */
	check_bits("leaf 1, ECX", one.ecx, BIT(31) | IF64(BIT(13)), 0x012000a8 | IF32(BIT(13)));
	check_equal("APIC ID", one.ebx >> 24, 0);
	/* ARCH_CAPS; but not TSC_ADJUST SMEP ERMS INVPCID SMAP */
	check_bits("leaf 7, EBX", kernel_cpuid(7, 0).ebx, 0, 0x00100482);
	check_bits("leaf 7, EDX", kernel_cpuid(7, 0).edx, BIT(29), 0);
	check_equal("topology", kernel_cpuid(0xb, 1).ecx | kernel_cpuid(0xb, 1).edx, 0);
	/* NX, and in long mode SYSCALL and LM; but not PAGE1GB */
	check_bits("leaf 0x80000001, EDX", extended.edx, BIT(20) | IF64(BIT(11) | BIT(29)),
		   BIT(26) | IF32(BIT(11) | BIT(29)));
	check_bits("leaf 0x80000001, ECX", extended.ecx, IF64(BIT(0)), IF32(BIT(0)));
	check_equal("bits of a linear address", kernel_cpuid(0x80000008, 0).eax >> 8,
		    sizeof(long) == 8 ? 48 : 32);
	check_equal("leaf after the last", kernel_cpuid(0x17, 0).eax, 0);
}

enum {
	REFUSED = 0,
	READ = 1,    /* it can be read; and is 0, unless ONES or ANY */
	ZERO = 2,    /* it takes a 0 */
	ONE = 4,     /* it takes a 1 */
	BACK = 8,    /* it takes what was read */
	KEEPS = 16,  /* a 1 that was written is read again */
	ONES = 32,
	ANY = 64,
};
#define DUMMY (READ | ZERO | ONE | BACK)
#define CLEARED (READ | ZERO | BACK)
#define WRITE_ONLY (ZERO | ONE)

static const struct {
	uint32_t first, last;
	unsigned int how;
} registers[] = {
	{ 0x0, 0x1, READ },		/* P5_MC_ADDR, P5_MC_TYPE */
	{ 0x10, 0x10, READ | ANY },	/* TSC */
	{ 0x17, 0x17, READ | ANY },	/* PLATFORM_ID: the host's */
	{ 0x1b, 0x1b, READ | ANY },	/* APIC_BASE */
	{ 0x3a, 0x3a, READ | ANY },	/* FEATURE_CONTROL */
	{ 0x3b, 0x3b, REFUSED },	/* TSC_ADJUST */
	{ 0x79, 0x79, REFUSED },	/* BIOS_UPDT_TRIG */
	{ 0xc1, 0xc8, DUMMY },		/* PERFCTR* */
	{ 0xe7, 0xe8, WRITE_ONLY },	/* MPERF, APERF */
	{ 0xfe, 0xfe, REFUSED },	/* MTRRcap */
	{ 0x10a, 0x10a, READ | ANY },	/* ARCH_CAPABILITIES */
	{ 0x174, 0x176, REFUSED },	/* SYSENTER_* */
	{ 0x179, 0x179, DUMMY | ANY },	/* MCG_CAP */
	{ 0x17a, 0x17a, DUMMY | KEEPS },	/* MCG_STATUS */
	{ 0x17b, 0x17b, DUMMY },	/* MCG_CTL */
	{ 0x186, 0x189, DUMMY },	/* EVNTSEL* */
	{ 0x198, 0x198, READ },		/* PERF_STATUS */
	{ 0x199, 0x199, DUMMY },	/* PERF_CTL */
	{ 0x19a, 0x19a, WRITE_ONLY },	/* THERM_CONTROL */
	{ 0x19c, 0x19c, READ },		/* THERM_STATUS */
	{ 0x1a0, 0x1a0, DUMMY | ANY },	/* MISC_ENABLE */
	{ 0x1b0, 0x1b0, WRITE_ONLY },	/* ENERGY_PERF_BIAS */
	{ 0x1d9, 0x1d9, REFUSED },	/* DEBUGCTL */
	{ 0x200, 0x20f, REFUSED },	/* MTRRs */
	{ 0x277, 0x277, READ | ANY },	/* PAT */
	{ 0x280, 0x281, DUMMY | KEEPS },	/* MC*_CTL2 of two banks */
	{ 0x282, 0x29f, DUMMY },	/* and of those that are not there */
	{ 0x309, 0x30b, DUMMY },	/* FIXED_CTR* */
	{ 0x345, 0x345, READ },		/* PERF_CAPABILITIES */
	{ 0x38d, 0x390, DUMMY },
	{ 0x400, 0x400, DUMMY | ONES },	/* MC0_CTL */
	{ 0x401, 0x403, CLEARED },	/* MC0_STATUS, ADDR, MISC */
	{ 0x404, 0x404, DUMMY | ONES },
	{ 0x405, 0x407, CLEARED },
	{ 0x408, 0x47f, DUMMY },
	{ 0x480, 0x480, REFUSED },	/* VMX_BASIC */
	{ 0x4d0, 0x4d0, REFUSED },	/* MCG_EXT_CTL */
	{ 0x6e0, 0x6e0, REFUSED },	/* TSC_DEADLINE */
	{ 0x802, 0x803, REFUSED },	/* the x2APIC's */
	{ 0xda0, 0xda0, REFUSED },	/* XSS */
	{ 0x12345, 0x12345, REFUSED },
	{ 0x40000000, 0x40000000, READ },	/* Xen's own */
	{ 0x40000001, 0x40000001, REFUSED },
	{ 0xc0000080, 0xc0000080, READ | BACK | ANY },	/* EFER */
	{ 0xc0000081, 0xc0000084, REFUSED },	/* STAR, LSTAR, CSTAR, FMASK */
	{ 0xc001001f, 0xc001001f, DUMMY },	/* NB_CFG */
	{ 0xc0010015, 0xc0010015, REFUSED },	/* HWCR */
	{ 0xc0010055, 0xc0010055, REFUSED },
};

static int try_rdmsr(uint32_t number, uint64_t *value)
{
	uint32_t low = 0, high = 0;

	last_trap.vector = NO_TRAP;
	asm volatile(TRYING("rdmsr") : "+a"(low), "+d"(high) : "c"(number) : "memory");
	*value = (uint64_t)high << 32 | low;
	return last_trap.vector == NO_TRAP;
}

static int try_wrmsr(uint32_t number, uint64_t value)
{
	TRY("wrmsr", "c"(number), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
	return last_trap.vector == NO_TRAP;
}

/* Leave it as it was, if it can be written. */
static unsigned int ask(uint32_t number)
{
	uint64_t before, after;
	unsigned int how = 0;

	if (try_rdmsr(number, &before))
		how |= READ | (before == -1ull ? ONES : before ? ANY : 0);
	how |= (try_wrmsr(number, 0) ? ZERO : 0) | (try_wrmsr(number, 1) ? ONE : 0);
	if ((how & (READ | ONE | ANY | ONES)) == (READ | ONE) && try_rdmsr(number, &after) &&
	    after == 1)
		how |= KEEPS;
	if ((how & READ) && try_wrmsr(number, before))
		how |= BACK;
	return how;
}

void guest_main(void)
{
	unsigned int asked = 0;

	leaves();
	for (unsigned int i = 0; i < sizeof(registers) / sizeof(*registers); i++)
		for (uint32_t n = registers[i].first; n <= registers[i].last; n++, asked++) {
			unsigned int how = ask(n), should = registers[i].how;

			if ((how & ~(should & ANY)) == (should & ~ANY))
				continue;
			printk("MSR 0x%x: 0x%x instead of 0x%x\n", n, how, should);
			failure("a register");
		}
	printk("%u registers\n", asked);
	success();
}
