/*
 * A PV guest brings up a second vcpu, which starts with just the registers that it is given. Both
 * can send each other events, and wait for them. A vcpu that went down goes on where it was.
 *
 * Success: the second vcpu finds its registers, and each event arrives.
 */
#include "events.h"
#include "traps.h"
#include "vcpu_context.h"

#define ROUNDS 100u
#define AX 0xa1a1a1a1u
#define DI 0xd1d1d1d1u
#define CONTROL_WORD 0x27f
#define MXCSR 0x1f80

static struct context context;

static char stack[4096] __attribute__((aligned(16)));
static uint32_t to_first, to_second; /* the ports of each vcpu's IPI */
static volatile unsigned int stage, rounds;
static volatile unsigned long found_ax, found_di, found_flags, found_dr7, found_base;
static volatile uint16_t found_control;
static unsigned long base = 0xba5e; /* what the second vcpu's GS leads to */

static long vcpu_op(unsigned int command, unsigned long pointer)
{
	return hypercall(__HYPERVISOR_vcpu_op, command, 1, pointer);
}

static long initialise(void)
{
	return vcpu_op(VCPUOP_initialise, (unsigned long)&context);
}

static void yield(void)
{
	hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0);
}

static void wait_for_stage(unsigned int wanted)
{
	while (stage != wanted)
		yield();
}

/* ---- the second vcpu ---- */

asm("	.text\n"
    "second_start:\n"
#ifdef __x86_64__
    "	mov	%rax, found_ax\n"
    "	mov	%rdi, found_di\n"
    "	pushf\n"
    "	pop	%rax\n"
    "	mov	%rax, found_flags\n"
    "	mov	%gs:0, %rax\n"
    "	mov	%rax, found_base\n"
#else
    "	mov	%eax, found_ax\n"
    "	mov	%edi, found_di\n"
    "	pushf\n"
    "	pop	%eax\n"
    "	mov	%eax, found_flags\n"
#endif
    "	fnstcw	found_control\n"
    "	call	second_main\n"
    "	ud2\n");

__attribute__((used)) static void second_main(void)
{
	found_dr7 = hypercall(__HYPERVISOR_get_debugreg, 7, 0, 0);
	stage = 1;
	for (unsigned int n = 0; n < ROUNDS; n++) {
		poll(to_second);
		rounds++;
		send(to_first);
	}
	stage = 2;
	vcpu_op(VCPUOP_down, 0);
	stage = 3; /* it came up again */
	for (;;)
		yield();
}

/* ---- the first one ---- */

static void fill_context(void)
{
	extern char second_start[];

	start_in_kernel(&context, second_start, stack + sizeof(stack));
	context.flags |= VGCF_I387_VALID;
	*(uint16_t *)context.fpu = CONTROL_WORD;
	*(uint32_t *)(context.fpu + 24) = MXCSR;
	context.regs.ax = AX;
	context.regs.di = DI;
	context.regs.flags = 0x3001; /* CF, and an IOPL, which is Xen's business */
	context.debug[0] = (unsigned long)&base;
	context.debug[7] = 1;
#ifdef __x86_64__
	context.gs_base_kernel = (unsigned long)&base;
#endif
}

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, 0) < 0) {
		skip("there is one vcpu");
		return;
	}
	map_shared_info();
	fill_context();
	check_equal("initialise", initialise(), 0);
	check_equal("initialise it again", initialise(), -EEXIST);
	check_equal("is_up before it is", vcpu_op(VCPUOP_is_up, 0), 0);
	to_first = bind_ipi(0);
	to_second = bind_ipi(1);
	check_equal("up", vcpu_op(VCPUOP_up, 0), 0);
	wait_for_stage(1);
	check_equal("is_up when it is", vcpu_op(VCPUOP_is_up, 0), 1);
	check_equal("its AX", found_ax, AX);
	check_equal("its DI", found_di, DI);
	check_equal("its flags, with IF", found_flags & 0x3201, 0x201);
	check_equal("its FPU's control word", found_control, CONTROL_WORD);
	check_equal("its DR7", found_dr7, 0x401);
#ifdef __x86_64__
	check_equal("what its GS leads to", found_base, base);
#endif

	for (unsigned int n = 0; n < ROUNDS; n++) {
		send(to_second);
		poll(to_first);
	}
	check_equal("rounds", rounds, ROUNDS);

	wait_for_stage(2);
	while (vcpu_op(VCPUOP_is_up, 0))
		yield();
	check_equal("up again", vcpu_op(VCPUOP_up, 0), 0);
	wait_for_stage(3);
	success();
}
