/*
 * A PVH guest brings up its other vcpus. One starts by INIT and STARTUP in real mode (SDM volume 3,
 * chapter 9), the other by VCPUOP_initialise in 64-bit code. They send each other interrupts, to
 * those that halt, too. If one is lost, a kernel with several vcpus hangs.
 *
 * Success: each vcpu starts with the registers that it should, once; each interrupt comes once; a
 * vcpu that halts without interrupts is down until an NMI, or VCPUOP_up, brings it back.
 */
#include "apic.h"
#include "pvh.h"
#include "traps.h"
#include "trampoline.h"
#include "xen.h"

#define VCPUOP_initialise 0
#define VCPUOP_up 1
#define VCPUOP_is_up 3
#define VCPU_HVM_MODE_64B 1

#define EEXIST 17
#define EINVAL 22

#define VECTOR 0x61
#define ICR_LOWEST (1 << 8)
#define ICR_INIT (5 << 8)
#define ICR_STARTUP (6 << 8)
#define ICR_LOGICAL (1 << 11)
#define ICR_OTHERS (3 << 18)
#define LDR 0x0d

struct vcpu_hvm_x86_64 {
	uint64_t rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags, cr0, cr3, cr4, efer;
};

struct vcpu_hvm_context {
	uint32_t mode, pad;
	struct vcpu_hvm_x86_64 regs;
	uint64_t rest;
};

struct table_pointer {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

extern char trampoline[], trampoline_end[], ap_entry[], ap_stack_top[], l4_table[];

static struct table_pointer idt;
struct table_pointer gdt_register; /* of vcpu 0, for all */
static volatile unsigned int starts, first_cr0, first_cs, halts, goes_on;
static volatile unsigned int taken[3], nmis[3]; /* by vcpu */
static volatile uint64_t started_at;

static long vcpu_op(unsigned int command, unsigned int vcpu, void *argument)
{
	return hypercall(__HYPERVISOR_vcpu_op, command, vcpu, (unsigned long)argument);
}

static unsigned int this_vcpu(void)
{
	return get(ID) >> 24 >> 1;
}

static void send(unsigned int command, unsigned int destination)
{
	set(ICR2, destination << 24);
	set(ICR, command | ICR_ASSERT);
}

static void note(struct frame *frame)
{
	(void)frame;
	taken[this_vcpu()]++;
	set(EOI, 0);
}

static void note_nmi(struct frame *frame)
{
	(void)frame;
	nmis[this_vcpu()]++;
}

static void join(void)
{
	set(SPURIOUS, 0x1ff);
	set(LDR, 1u << 24 << this_vcpu());
}

/* A vcpu starts here, with CR0 and CS as they were at first, or with what VCPUOP_initialise says. */
void ap_main(unsigned int cr0, unsigned int cs)
{
	asm volatile("lidt %0" : : "m"(idt));
	join();
	started_at = rdtsc();
	first_cr0 = cr0;
	first_cs = cs;
	starts++;
	for (;;)
		if (halts == this_vcpu()) { /* vcpu 0 never comes here */
			halts = 0;
			asm volatile("cli; hlt" : : : "memory");
			goes_on++;
		} else
			wait_for_interrupt();
}

/* Wait for another vcpu to do its part. */
static void await(const char *what, volatile unsigned int *count, unsigned int should)
{
	uint64_t end = rdtsc() + 1000000000;

	while (*count < should && rdtsc() < end)
		asm volatile("pause");
	check_equal(what, *count, should);
}

static void await_down(unsigned int vcpu)
{
	uint64_t end = rdtsc() + 1000000000;

	while (vcpu_op(VCPUOP_is_up, vcpu, 0) && rdtsc() < end)
		;
	check_equal("is_up of a vcpu that halted", vcpu_op(VCPUOP_is_up, vcpu, 0), 0);
}

static void start_in_real_mode(unsigned int count)
{
	uint64_t before = rdtsc();

	send(ICR_STARTUP | TRAMPOLINE >> 12, 2);
	await("starts", &starts, count);
	check_equal("CR0 at first", first_cr0, 0x10);
	check_equal("CS at first", first_cs, TRAMPOLINE >> 4);
	check(before < started_at && started_at < rdtsc(), "the TSCs differ");
	check_equal("is_up", vcpu_op(VCPUOP_is_up, 1, 0), 1);
}

static void start_by_ipi(void)
{
	for (char *from = trampoline, *to = pointer(TRAMPOLINE); from < trampoline_end;)
		*to++ = *from++;
	check_equal("is_up before", vcpu_op(VCPUOP_is_up, 1, 0), 0);
	check_equal("up before", vcpu_op(VCPUOP_up, 1, 0), -EINVAL);
	send(ICR_INIT, 2);
	start_in_real_mode(1);
	send(ICR_STARTUP | 1, 2); /* it has started already */
	printk("vcpu 1 starts in real mode at %x:0, with CR0 %x\n", first_cs, first_cr0);
}

static void start_by_hypercall(void)
{
	struct vcpu_hvm_context context = {
		.mode = VCPU_HVM_MODE_64B,
		.regs = {
			.rsp = (unsigned long)ap_stack_top - 4096,
			.rdi = 0x1234,
			.rsi = 0x5678,
			.rip = (unsigned long)ap_entry,
			.rflags = 2,
			.cr0 = CR0_PG | CR0_WP | CR0_PE,
			.cr3 = (unsigned long)l4_table,
			.cr4 = CR4_PAE,
			.efer = EFER_LME | EFER_NX,
		},
	};

	check_equal("initialise a vcpu that runs", vcpu_op(VCPUOP_initialise, 1, &context), -EEXIST);
	context.regs.cr4 = 0;
	check_equal("initialise without PAE", vcpu_op(VCPUOP_initialise, 2, &context), -EINVAL);
	context.regs.cr4 = CR4_PAE;
	check_equal("initialise", vcpu_op(VCPUOP_initialise, 2, &context), 0);
	check_equal("is_up before up", vcpu_op(VCPUOP_is_up, 2, 0), 0);
	check_equal("up", vcpu_op(VCPUOP_up, 2, 0), 0);
	await("starts", &starts, 2);
	check_equal("RDI", first_cr0, 0x1234);
	check_equal("RSI", first_cs, 0x5678);
	printk("vcpu 2 starts in 64-bit code, with RDI %x\n", first_cr0);
}

static void interrupts(void)
{
	send(VECTOR, 2);
	await("to vcpu 1, by its ID", &taken[1], 1);
	send(ICR_LOGICAL | VECTOR, 0x6);
	await("to vcpu 1, by its logical ID", &taken[1], 2);
	await("to vcpu 2, by its logical ID", &taken[2], 1);
	send(ICR_OTHERS | VECTOR, 0);
	await("to vcpu 1, as one of the others", &taken[1], 3);
	await("to vcpu 2, as one of the others", &taken[2], 2);
	send(VECTOR, 0xff);
	await("to vcpu 1, as one of all", &taken[1], 4);
	await("to vcpu 2, as one of all", &taken[2], 3);
	let_interrupts_in();
	check_equal("to itself, as one of all", taken[0], 1);
	send(ICR_LOWEST | ICR_LOGICAL | VECTOR, 0x6);
	await("to vcpu 1, as the next of lowest priority", &taken[1], 5);
	send(ICR_LOWEST | ICR_LOGICAL | VECTOR, 0x6);
	await("to vcpu 2, as the next of lowest priority", &taken[2], 4);
	printk("interrupts: %u, %u and %u\n", taken[0], taken[1], taken[2]);
}

static void down_and_up(void)
{
	halts = 1;
	send(VECTOR, 2);
	await_down(1);
	send(VECTOR, 2);
	send(ICR_STARTUP | TRAMPOLINE >> 12, 2);
	check_equal("is_up after an interrupt", vcpu_op(VCPUOP_is_up, 1, 0), 0);
	send(ICR_NMI, 2);
	await("goes on", &goes_on, 1);
	check_equal("NMIs", nmis[1], 1);
	await("the interrupt that came meanwhile", &taken[1], 7);

	halts = 1;
	send(VECTOR, 2);
	await_down(1);
	check_equal("up", vcpu_op(VCPUOP_up, 1, 0), 0);
	await("goes on", &goes_on, 2);
	printk("vcpu 1 comes back by an NMI, and by VCPUOP_up\n");

	send(ICR_INIT, 2);
	check_equal("is_up after INIT", vcpu_op(VCPUOP_is_up, 1, 0), 0);
	check_equal("up after INIT", vcpu_op(VCPUOP_up, 1, 0), -EINVAL);
	start_in_real_mode(3);
	send(VECTOR, 2);
	await("after INIT", &taken[1], 9);
	printk("vcpu 1 starts anew after INIT\n");
}

void guest_main(void)
{
	asm volatile("sidt %0; sgdt %1" : "=m"(idt), "=m"(gdt_register));
	set_handler(VECTOR, note);
	set_handler(NMI, note_nmi);
	join();
	start_by_ipi();
	start_by_hypercall();
	interrupts();
	down_and_up();
	success();
}
