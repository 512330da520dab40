/*
 * A PVH guest finds Xen by CPUID leaves of Xen's own. An MSR that Xen does not know is #GP, to read
 * and to write, and kernels probe for such MSRs. If an emulator lets a probe pass, the kernel uses
 * what is not there.
 *
 * Success: each leaf says what Xen's says, known MSRs can be read, and everything else is refused.
 */
#include "pvh.h"
#include "traps.h"

#define UNKNOWN_MSR 0x12345
#define MSR_HYPERCALL 0x40000000

static int readable(uint32_t number)
{
	last_trap.vector = NO_TRAP;
	asm volatile(TRYING("rdmsr") : : "c"(number), "a"(0), "d"(0) : "memory"); /* and drop it */
	return last_trap.vector == NO_TRAP;
}

/* NO_TRAP or the exception that it caused. */
static unsigned int try_wrmsr(uint32_t number, uint64_t value)
{
	TRY("wrmsr", "c"(number), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
	return last_trap.vector;
}

static void leaves(void)
{
	uint32_t base = xen_leaf();
	struct cpuid first = cpuid(base, 0), pages = cpuid(base + 2, 0), hvm = cpuid(base + 4, 0);

	check_equal("Xen's first leaf", base, XEN_CPUID_FIRST_LEAF);
	check(first.eax >= base + 4, "no leaf of HVM's features");
	check_equal("version", cpuid(base + 1, 0).eax,
		    hypercall(__HYPERVISOR_xen_version, XENVER_version, 0, 0));
	printk("hypercall page: %u, by MSR 0x%x\n", pages.eax, pages.ebx);
	printk("HVM features: 0x%x, vcpu %u\n", hvm.eax, hvm.ebx);
	check(hvm.eax & 1 << 3, "the vcpu's number is not given");
	check_equal("leaf after the last", cpuid(first.eax + 1, 0).eax, 0);
	check(cpuid(1, 0).ecx >> 31, "no hypervisor bit");
}

static void known(void)
{
	static const uint32_t numbers[] = {
		0x10, 0x1b, 0x8b, 0xfe, 0x174, 0x175, 0x176, 0x179, 0x1a0, 0x200, 0x250, 0x277,
		0x2ff, MSR_HYPERCALL, MSR_EFER, 0xc0000081, 0xc0000082, 0xc0000084, 0xc0000100,
	};
	uint64_t before, by_msr;

	for (unsigned int i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
		if (!readable(numbers[i])) {
			printk("MSR 0x%x cannot be read\n", numbers[i]);
			failure("a known MSR");
		}
	before = rdtsc();
	by_msr = rdmsr(0x10);
	check(before <= by_msr && by_msr <= rdtsc(), "IA32_TSC is not what RDTSC reads");
	wrmsr(0x175, 0x1234);
	check_equal("SYSENTER_ESP", rdmsr(0x175), 0x1234);
}

static void refused(void)
{
	check(!readable(UNKNOWN_MSR), "an unknown MSR can be read");
	check_equal("error code", last_trap.error, 0);
	check_equal("write of an unknown MSR", try_wrmsr(UNKNOWN_MSR, 0), GP);
	check_equal("write of MTRRcap", try_wrmsr(0xfe, 0), GP);
	check_equal("unknown bit of EFER", try_wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 2), GP);
	check_equal("PAT of a type that is none", try_wrmsr(0x277, 2), GP);
	check_equal("page beyond all memory", try_wrmsr(MSR_HYPERCALL, 0xffffff000), GP);
	check_equal("second hypercall page", try_wrmsr(MSR_HYPERCALL, 1), GP);
#ifdef __x86_64__
	check_equal("FS base not canonical", try_wrmsr(0xc0000100, 1ul << 47), GP);
	check_equal("LSTAR not canonical", try_wrmsr(0xc0000082, 1ul << 47), GP);
#endif
}

void guest_main(void)
{
	leaves();
	known();
	refused();
	success();
}
