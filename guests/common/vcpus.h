/* A guest's other vcpus, in every environment: how they start, and what they need to take turns. */
#ifndef VCPUS_H
#define VCPUS_H

#ifdef GUEST_PV
#include "vcpu_context.h"
#else
#include "pvh.h"
#include "traps.h"

#define VCPUOP_initialise 0
#define VCPUOP_up 1
#define VCPUOP_down 2
#define VCPUOP_is_up 3
#define VCPU_HVM_MODE_64B 1

struct vcpu_hvm_context {
	uint32_t mode, pad;
	uint64_t rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags, cr0, cr3, cr4, efer;
	uint64_t rest; /* of the 32-bit form */
};
#endif

#define MAX_VCPUS 8

static char vcpu_stacks[MAX_VCPUS][8192] __attribute__((aligned(16)));

static inline long vcpu_op(unsigned int command, unsigned int vcpu, void *argument)
{
	return hypercall(__HYPERVISOR_vcpu_op, command, vcpu, (unsigned long)argument);
}

static inline void yield(void)
{
	hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0);
}

/* Let other vcpus run until a variable is what it should be. */
static inline void await(const volatile unsigned int *variable, unsigned int should)
{
	while (*variable != should)
		yield();
}

/* ---- how a vcpu comes to vcpu_main(): in the kernel, with its number ---- */

void vcpu_main(unsigned int vcpu);

#ifdef GUEST_PV
static inline void fill_context(struct context *context, unsigned int vcpu)
{
	unsigned long *top = (unsigned long *)vcpu_stacks[vcpu + 1];

#ifdef __x86_64__
	start_in_kernel(context, vcpu_main, top - 1);
	context->regs.di = vcpu;
#else
	top[-1] = vcpu; /* after a return address */
	start_in_kernel(context, vcpu_main, top - 2);
#endif
}

static struct context vcpu_context;
#else
/* VCPUOP_initialise leads here, without a GDT. */
asm("	.text\n"
    "vcpu_start:\n"
    "	lgdt	vcpu_gdt\n"
    "	push	$8\n" /* KERNEL_CS */
    "	push	$1f\n"
    "	lretq\n"
    "1:	mov	$16, %eax\n" /* KERNEL_DS */
    "	mov	%eax, %ds\n"
    "	mov	%eax, %es\n"
    "	mov	%eax, %ss\n"
    "	xor	%ebp, %ebp\n"
    "	call	vcpu_main\n"
    "	ud2\n");

__attribute__((used)) static struct {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed)) vcpu_gdt;

static inline void fill_context(struct vcpu_hvm_context *context, unsigned int vcpu)
{
	extern char vcpu_start[], l4_table[];

	asm volatile("sgdt %0" : "=m"(vcpu_gdt));
	*context = (struct vcpu_hvm_context){
		.mode = VCPU_HVM_MODE_64B,
		.rsp = (unsigned long)vcpu_stacks[vcpu + 1],
		.rdi = vcpu,
		.rip = (unsigned long)vcpu_start,
		.rflags = 2,
		.cr0 = CR0_PG | CR0_WP | CR0_PE,
		.cr3 = (unsigned long)l4_table,
		.cr4 = CR4_PAE,
		.efer = EFER_LME | EFER_NX,
	};
}

static struct vcpu_hvm_context vcpu_context;
#endif

/* Start vcpu 1 and those after it: as many vcpus as there are then run. */
static inline void start_vcpus(unsigned int count)
{
	for (unsigned int vcpu = 1; vcpu < count; vcpu++) {
		fill_context(&vcpu_context, vcpu);
		check_equal("initialise", vcpu_op(VCPUOP_initialise, vcpu, &vcpu_context), 0);
		check_equal("up", vcpu_op(VCPUOP_up, vcpu, 0), 0);
	}
}

#endif
