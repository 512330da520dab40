/* How a PV guest brings up another vcpu: Xen's public vcpu.h and arch-x86/xen.h. */
#ifndef VCPU_CONTEXT_H
#define VCPU_CONTEXT_H

#include "pv.h"
#include "traps.h"

#define VCPUOP_initialise 0
#define VCPUOP_up 1
#define VCPUOP_down 2
#define VCPUOP_is_up 3

#define VGCF_I387_VALID 1ul
#define VGCF_in_kernel 4ul

#ifdef __x86_64__
struct registers {
	uint64_t r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	uint32_t error_code, entry_vector;
	uint64_t ip;
	uint16_t cs, pad0;
	uint8_t saved_upcall_mask, pad1[3];
	uint64_t flags, sp;
	uint64_t ss, es, ds, fs, gs; /* 16 bits count */
};
#else
struct registers {
	uint32_t bx, cx, dx, si, di, bp, ax;
	uint16_t error_code, entry_vector;
	uint32_t ip;
	uint16_t cs;
	uint8_t saved_upcall_mask, pad0;
	uint32_t flags, sp;
	uint32_t ss, es, ds, fs, gs; /* 16 bits count */
};
#endif

struct context { /* vcpu_guest_context */
	char fpu[512];
	unsigned long flags;
	struct registers regs;
	struct trap_info traps[256];
	unsigned long ldt_base, ldt_ents;
	unsigned long gdt_frames[16], gdt_ents;
	unsigned long kernel_ss, kernel_sp;
	unsigned long control[8], debug[8];
#ifdef __x86_64__
	unsigned long event_callback, failsafe_callback, syscall_callback;
	unsigned long vm_assist;
	uint64_t fs_base, gs_base_kernel, gs_base_user;
#else
	unsigned long event_callback_cs, event_callback, failsafe_callback_cs, failsafe_callback;
	unsigned long vm_assist;
#endif
};
_Static_assert(sizeof(struct context) == (sizeof(long) == 8 ? 5168 : 2800), "vcpu_guest_context");

/* A context that Xen takes: the vcpu begins at `start` in the kernel, on its stack's top. */
static inline void start_in_kernel(struct context *context, void *start, void *stack_top)
{
	unsigned long root = virt_to_mfn((void *)start_info()->pt_base);

	memset(context, 0, sizeof(*context));
	context->flags = VGCF_in_kernel;
	context->regs.ip = (unsigned long)start;
	context->regs.sp = (unsigned long)stack_top;
	context->regs.cs = KERNEL_CS;
	context->regs.ss = context->kernel_ss = KERNEL_DS;
	context->kernel_sp = (unsigned long)ring0_stack + sizeof(ring0_stack);
#ifdef __x86_64__
	context->control[3] = root << 12;
#else
	context->regs.ds = context->regs.es = KERNEL_DS;
	context->event_callback_cs = context->failsafe_callback_cs = KERNEL_CS;
	context->control[3] = root << 12 | root >> 20;
#endif
}

#endif
