/*
 * Descriptors of a PV guest. Xen checks each descriptor that gets into a GDT or LDT, and raises its
 * DPL to the kernel's ring. The CPU refuses to load what is not there. A descriptor that Xen lets
 * through could lead into Xen itself.
 *
 * Success: good descriptors load. Bad ones are refused by the right errno or exception, and change
 * nothing.
 */
#include "pv.h"
#include "traps.h"

#define DATA 0x00cf93000000ffffull    /* DPL 0, present */
#define ABSENT (0x00cf13000000ffffull | (uint64_t)KERNEL_RING << DPL_SHIFT)
#define READ_ONLY 0x00cff1000000ffffull
#define TSS 0x008089000000ffffull
#define GATE_TO_XEN (0x00008c0000000000ull | 0xe008ull << 16)
#ifdef __x86_64__
#define KERNEL_RING 3
#else
#define KERNEL_RING 1
#endif
#define DPL_SHIFT 45
#define LDT 4

static uint64_t gdt[512] __attribute__((aligned(4096)));
static uint64_t ldt[512] __attribute__((aligned(4096)));

static uint64_t maddr(const void *at)
{
	return (uint64_t)virt_to_mfn(at) << 12 | ((unsigned long)at & 4095);
}

static uint64_t mapping(const void *at, uint64_t bits)
{
	return (uint64_t)virt_to_mfn(at) << 12 | bits | PTE_US;
}

static long set_gdt(unsigned int entries)
{
	unsigned long frame = virt_to_mfn(gdt);

	return hypercall(__HYPERVISOR_set_gdt, (unsigned long)&frame, entries, 0);
}

static void load(const char *what, unsigned int selector, unsigned int vector)
{
	TRY("mov %0, %%fs", "r"(selector));
	check_equal(what, last_trap.vector, vector);
	if (vector != NO_TRAP)
		check_equal("error code", last_trap.error, selector & ~3);
	TRY("mov %0, %%fs", "r"(0));
}

static void refused(const char *what, uint64_t descriptor)
{
	check_equal(what, update_descriptor(maddr(&gdt[1]), descriptor), -EINVAL);
	check_equal("the descriptor after it", gdt[1] >> 40 & 0xfe, (DATA >> 40 & 0x9e) | KERNEL_RING << 5);
}

#ifndef __x86_64__
/* Xen emulates a 32-bit guest's call gates: the CPU would have to enter ring 0 for them. */
#define GATE (0x00008c0000000000ull | (uint64_t)KERNEL_CS << 16)
#define USERS ((uint64_t)3 << DPL_SHIFT)
#define PARAMETERS(n) ((uint64_t)(n) << 32)

extern char gate_target[], user_call[];
unsigned int gate_frame[6];

asm("gate_target:\n"
    "	pop	gate_frame\n"	    /* EIP */
    "	pop	gate_frame + 4\n" /* CS */
    "	pushl	gate_frame + 4\n"
    "	pushl	gate_frame\n"
    "	lret\n"
    "user_target:\n"
    "	mov	%esp, %esi\n"
    "	mov	$gate_frame, %edi\n"
    "	mov	$6, %ecx\n"
    "	rep	movsl\n"
    "	lret	$8\n" /* back to ring 3, with its two parameters */
    "user_call:\n"
    "	push	$11\n"
    "	push	$22\n"
    "	lcall	$0x3b, $0\n"
    "	int3\n");

static uint64_t gate_to(const char *target, uint64_t bits)
{
	uint64_t offset = (unsigned long)target;

	return GATE | bits | (offset & 0xffff) | (offset & 0xffff0000) << 32;
}

static void call_gates(void)
{
	extern char user_target[];

	check_equal("a gate", update_descriptor(maddr(&gdt[6]), gate_to(gate_target, USERS)), 0);
	check_equal("its DPL, where the CPU looks", gdt[6] >> DPL_SHIFT & 3, 0);
	check_equal("its DPL, where Xen looks", gdt[6] >> 16 & 3, 3);
	asm volatile("lcall $0x31, $0" : : : "memory", "cc");
	check_equal("CS after it", gate_frame[1], KERNEL_CS);
	TRY("ljmp *%0", "m"(*(struct { uint32_t ip; uint16_t cs; } *)(uint32_t[]){ 0, 0x29 }));
	check_equal("a jump by no gate", last_trap.vector, GP);
	check_equal("its error code", last_trap.error, 0x28);
	check_equal("a gate with parameters",
		    update_descriptor(maddr(&gdt[7]), gate_to(user_target, USERS | PARAMETERS(2))), 0);
	run_user((void (*)(void))user_call);
	check_equal("back in user mode", last_trap.vector, BP);
	check_equal("the caller's CS", gate_frame[1], USER_CS);
	check_equal("its last parameter", gate_frame[2], 22);
	check_equal("its first parameter", gate_frame[3], 11);
}
#endif

void guest_main(void)
{
	gdt[1] = DATA;
	gdt[2] = ABSENT;
	gdt[3] = READ_ONLY;
	check_equal("set_gdt of a page that is mapped writable", set_gdt(8), -EINVAL);
	update_va_mapping(gdt, mapping(gdt, PTE_P));
	check_equal("set_gdt", set_gdt(8), 0);
	check_equal("DPL of what was 0", gdt[1] >> DPL_SHIFT & 3, KERNEL_RING);
	load("data", 1 << 3 | KERNEL_RING, NO_TRAP);
	load("an absent segment", 2 << 3 | KERNEL_RING, NP);
	load("an entry of the GDT that is 0", 5 << 3 | KERNEL_RING, GP);
	load("Xen's own data segment", 0xe010 | KERNEL_RING, GP);
	TRY("mov %0, %%ss", "r"(2 << 3 | KERNEL_RING));
	check_equal("an absent stack", last_trap.vector, SS);
	TRY("mov %0, %%ss", "r"(3 << 3 | KERNEL_RING));
	check_equal("a read-only stack", last_trap.vector, GP);

	refused("a TSS", TSS);
	refused("a gate into Xen", GATE_TO_XEN);
	check_equal("an address that is not aligned", update_descriptor(maddr(gdt) + 9, DATA), -EINVAL);
	check_equal("update_descriptor", update_descriptor(maddr(&gdt[4]), DATA), 0);
	load("the new one", 4 << 3 | KERNEL_RING, NO_TRAP);

	load("a segment of no LDT", 1 << 3 | LDT | KERNEL_RING, GP);
	ldt[1] = DATA;
	update_va_mapping(ldt, mapping(ldt, PTE_P));
	check_equal("an LDT that is not aligned", mmuext(MMUEXT_SET_LDT, (unsigned long)ldt + 8, 4), -EINVAL);
	check_equal("SET_LDT", mmuext(MMUEXT_SET_LDT, (unsigned long)ldt, 4), 0);
	load("a segment of the LDT", 1 << 3 | LDT | KERNEL_RING, NO_TRAP);
	check_equal("DPL in the LDT", ldt[1] >> DPL_SHIFT & 3, KERNEL_RING);
	load("beyond the LDT", 4 << 3 | LDT | KERNEL_RING, GP);
	check_equal("no LDT", mmuext(MMUEXT_SET_LDT, 0, 0), 0);
	load("a segment of the LDT that was", 1 << 3 | LDT | KERNEL_RING, GP);
#ifndef __x86_64__
	check_equal("an LDT at Xen's addresses", mmuext(MMUEXT_SET_LDT, 0xf5800000, 4), 0);
	TRY("mov %0, %%fs", "r"(1 << 3 | LDT | KERNEL_RING));
	check_equal("a segment of it", last_trap.vector, PF);
	check_equal("where it would be", last_trap.cr2, 0xf5800008);
	check_equal("no LDT again", mmuext(MMUEXT_SET_LDT, 0, 0), 0);
	call_gates();
	TRY("movl $0, 0xffc0000c"); /* xenemu has it there; in Xen there is nothing */
	check_equal("a store into the GDT itself", last_trap.vector, PF);
	check_equal("its error code", last_trap.error, 2);
	load("the GDT after it", 1 << 3 | KERNEL_RING, NO_TRAP);
#endif
	success();
}
