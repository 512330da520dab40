/*
 * VMCALL reaches Xen from ring 0 only, and from any page. The hypercall page that an MSR fills is a
 * convenience, and may be anywhere. If programs could call Xen, they would own their kernel.
 *
 * Success: VMCALL does what the page does, ring 3 is refused, and the page's stubs are Xen's.
 */
#include "pvh.h"
#include "traps.h"

#define ENOSYS 38
#define EPERM 1
#define MSR_HYPERCALL 0x40000000

static long vmcall(unsigned long number, unsigned long a1, unsigned long a2)
{
	long result;

#ifdef __x86_64__
	asm volatile("vmcall" : "=a"(result), "+D"(a1), "+S"(a2) : "a"(number) : "memory");
#else
	asm volatile("vmcall" : "=a"(result), "+b"(a1), "+c"(a2) : "a"(number) : "memory");
#endif
	return result;
}

static long user_result;

static void user_vmcall(void)
{
	user_result = vmcall(__HYPERVISOR_xen_version, XENVER_version, 0);
	asm volatile("ud2");
}

void guest_main(void)
{
	static char page[4096] __attribute__((aligned(4096)));
	long result, version = hypercall(__HYPERVISOR_xen_version, XENVER_version, 0, 0);

	check_equal("VMCALL", vmcall(__HYPERVISOR_xen_version, XENVER_version, 0), version);
	check_equal("no such hypercall", vmcall(63, 0, 0), -ENOSYS);
	run_user(user_vmcall);
	check_equal("VMCALL in ring 3", user_result, -EPERM);
	wrmsr(MSR_HYPERCALL, (unsigned long)page);
	check_equal("hypercall page", *(uint8_t *)page, 0xb8); /* MOV $number, %eax */
	asm volatile("call *%1" : "=a"(result)
		     : "r"(page + 32 * 63), "a"(0), "b"(0), "c"(0), "d"(0) : "memory");
	check_equal("stub of no hypercall", result, -ENOSYS);
	check_equal("stub of iret", *(uint16_t *)(page + 32 * 23), 0x0b0f);
	success();
}
