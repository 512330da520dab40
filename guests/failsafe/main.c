/*
 * Xen loads a vcpu's data segments when it switches to the vcpu. If it cannot, it enters the
 * guest's failsafe callback, which finds the four selectors on its stack, and null in the register.
 * Else a kernel would never know why the segment is gone.
 *
 * Success: a vcpu that begins with a selector of nothing is in its callback, with the right frame.
 */
#include "pv.h"
#include "traps.h"
#include "vcpu_context.h"

#define GONE 0x2b /* in a GDT that is empty */
#define CX 0xc1c1c1c1u

#ifdef __x86_64__
#define SCRATCH 2 /* RCX and R11 come first */
#define WORDS 11
#else
#define SCRATCH 0
#define WORDS 7 /* it comes from the kernel's own ring */
#endif

static struct context context;
static char stack[4096] __attribute__((aligned(16)));
static volatile unsigned long found[WORDS], found_sp, found_ds, began;
static volatile int done;

asm("	.text\n"
    "second_start:\n"
    "	incl	began\n"
    "	ud2\n"
    "second_failsafe:\n"
#ifdef __x86_64__
    "	mov	%rsp, found_sp\n"
    "	mov	%ds, %eax\n"
    "	mov	%rax, found_ds\n"
#else
    "	mov	%esp, %cs:found_sp\n" /* flat, as DS is null */
    "	mov	%ds, %eax\n"
    "	mov	%ss, %ecx\n"
    "	mov	%ecx, %ds\n"
    "	mov	%ecx, %es\n"
    "	mov	%eax, found_ds\n"
#endif
    "	call	failsafe_main\n"
    "	ud2\n");

__attribute__((used)) static void failsafe_main(void)
{
	for (int n = 0; n < WORDS; n++)
		found[n] = ((unsigned long *)found_sp)[n];
	done = 1;
	for (;;)
		hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0);
}

static long vcpu_op(unsigned int command, unsigned long pointer)
{
	return hypercall(__HYPERVISOR_vcpu_op, command, 1, pointer);
}

void guest_main(void)
{
	extern char second_start[], second_failsafe[];
	unsigned long top = (unsigned long)stack + sizeof(stack);

	if (vcpu_op(VCPUOP_is_up, 0) < 0) {
		skip("there is one vcpu");
		return;
	}
	start_in_kernel(&context, second_start, (void *)top);
	context.regs.cx = CX;
	context.regs.ds = GONE;
	context.regs.fs = 0;
	context.failsafe_callback = (unsigned long)second_failsafe;
	check_equal("initialise", vcpu_op(VCPUOP_initialise, (unsigned long)&context), 0);
	check_equal("up", vcpu_op(VCPUOP_up, 0), 0);
	while (!done)
		hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0);

	check_equal("where it was to begin has not run", began, 0);
	check_equal("its stack", found_sp, top - sizeof(found));
	check_equal("its DS", found_ds, 0);
	check_equal("DS in the frame", found[SCRATCH], GONE);
	check_equal("ES", found[SCRATCH + 1], context.regs.es);
	check_equal("FS", found[SCRATCH + 2], 0);
	check_equal("GS", found[SCRATCH + 3], 0);
	check_equal("IP", found[SCRATCH + 4], (unsigned long)second_start);
#ifdef __x86_64__
	check_equal("RCX", found[0], CX);
	check_equal("CS, and the event mask", found[SCRATCH + 5], KERNEL_CS | 1ul << 32);
	check_equal("SP", found[SCRATCH + 7], top);
	check_equal("SS", found[SCRATCH + 8], KERNEL_DS);
#else
	check_equal("CS, and the event mask", found[SCRATCH + 5], KERNEL_CS | 1ul << 16);
#endif
	check_equal("IF in the flags", found[SCRATCH + 6] & 0x200, 0);
	success();
}
