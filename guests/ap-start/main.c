/*
 * A PV guest brings up a second vcpu. Xen takes a vcpu_guest_context only if all of it is what a
 * guest may have. Then the vcpu starts with just these registers. Both can send each other events,
 * and wait for them. A vcpu that went down goes on where it was.
 *
 * Success: each wrong context is refused, and the right one is what the vcpu finds.
 */
#include "pv.h"
#include "traps.h"
#include "vcpu_context.h"

#define SCHEDOP_poll 3
#define EVTCHNOP_bind_ipi 7

#define WILD 0x800000000000ul
#define ROUNDS 100u
#define AX 0xa1a1a1a1u
#define DI 0xd1d1d1d1u
#define CONTROL_WORD 0x27f
#define MXCSR 0x1f80
#define WORD_BITS (8 * sizeof(long))

static struct context context;

struct vcpu_info {
	uint8_t pending, mask;
	unsigned long pending_sel;
	unsigned long arch[sizeof(long) == 8 ? 2 : 6];
	uint8_t time[32];
};

static struct shared_info {
	struct vcpu_info vcpu[32];
	unsigned long pending[WORD_BITS];
	unsigned long mask[WORD_BITS];
	char rest[4096 - 32 * 64 - 2 * 8 * WORD_BITS * sizeof(long) / 8];
} shared __attribute__((aligned(4096)));

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

static uint32_t bind_ipi(unsigned int vcpu)
{
	struct { uint32_t vcpu, port; } op = { vcpu, 0 };

	check_equal("bind_ipi", hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_ipi,
					  (unsigned long)&op, 0), 0);
	return op.port;
}

static void send(uint32_t port)
{
	struct evtchn_send op = { port };

	hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, (unsigned long)&op, 0);
}

/* Sleep until there is an event on a port, and take it. */
static void poll(uint32_t port)
{
	struct { const uint32_t *ports; uint32_t nr_ports; uint64_t timeout; } op = { &port, 1, 0 };
	volatile unsigned long *word = &shared.pending[port / WORD_BITS];
	unsigned long bit = 1ul << port % WORD_BITS;

	while (!(*word & bit))
		hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (unsigned long)&op, 0);
	__atomic_fetch_and(word, ~bit, __ATOMIC_SEQ_CST);
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

/* One thing is wrong with the context. */
#define REFUSE(field, value)                                                                       \
	do {                                                                                       \
		fill_context();                                                                    \
		context.field = (value);                                                           \
		check_equal(#field " = " #value, initialise(), -EINVAL);                           \
		check_equal("up after " #field, vcpu_op(VCPUOP_up, 0), -EINVAL);                   \
	} while (0)

static void wrong_contexts(void)
{
#ifdef __x86_64__
	REFUSE(regs.ip, WILD);
	REFUSE(regs.sp, WILD);
	REFUSE(kernel_sp, WILD);
	REFUSE(fs_base, WILD);
	REFUSE(gs_base_kernel, WILD);
	REFUSE(gs_base_user, WILD);
	REFUSE(event_callback, WILD);
	REFUSE(failsafe_callback, WILD);
	REFUSE(syscall_callback, WILD);
	REFUSE(traps[255].address, WILD);
	REFUSE(ldt_base, 0xffff800000000000); /* where Xen is */
	REFUSE(flags, 0); /* user mode, without page tables for it */
	REFUSE(control[1], 1ul << 40);
#endif
	REFUSE(ldt_base, 0x1008);
	REFUSE(ldt_ents, 8193);
	REFUSE(gdt_ents, 7169);
	REFUSE(control[3], 0x7fff0000);
	fill_context();
	context.gdt_frames[0] = virt_to_mfn(&base); /* which is mapped writable */
	context.gdt_ents = 1;
	check_equal("a GDT that can be written", initialise(), -EINVAL);
	check_equal("a context that is not mapped",
		    vcpu_op(VCPUOP_initialise, 0x40000000), -EFAULT);
	check_equal("is_up", vcpu_op(VCPUOP_is_up, 0), 0);
}

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, 0) < 0) {
		skip("there is one vcpu");
		return;
	}
	check_equal("map shared_info",
		    update_va_mapping(&shared, start_info()->shared_info | PTE_P | PTE_RW | PTE_US |
							PTE_A | PTE_D), 0);
	wrong_contexts();

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
