/* As pv.c, for the vcpu_hvm_context of PVH guests, in both of its forms. */
#ifndef GUEST_PV
#include "vcpus.h"

#define EFAULT 14
#define EEXIST 17
#define EINVAL 22
#define WILD 0x800000000000ul
#define CR4_VMXE (1 << 13)
#define NO_MEMORY 0x3fffffff000

struct context32 {
	uint32_t mode, pad;
	uint32_t eax, ecx, edx, ebx, esp, ebp, esi, edi, eip, eflags, cr0, cr3, cr4, pad1;
	uint64_t efer;
	uint32_t cs_base, ds_base, ss_base, es_base, tr_base;
	uint32_t cs_limit, ds_limit, ss_limit, es_limit, tr_limit;
	uint16_t cs_ar, ds_ar, ss_ar, es_ar, tr_ar, pad2[3];
};
_Static_assert(sizeof(struct context32) == 128, "vcpu_hvm_context");

static struct context32 context32;
static volatile unsigned int ran;

void vcpu_main(unsigned int vcpu)
{
	ran = vcpu;
	for (;;)
		yield();
}

static void fill_context32(void)
{
	extern char vcpu_start[];

	context32 = (struct context32){
		.eip = (unsigned long)vcpu_start,
		.eflags = 2,
		.cr0 = CR0_PE,
		.cs_limit = 0xffffffff, .ds_limit = 0xffffffff,
		.ss_limit = 0xffffffff, .es_limit = 0xffffffff, .tr_limit = 0x67,
		.cs_ar = 0xc9b, .ds_ar = 0xc93, .ss_ar = 0xc93, .es_ar = 0xc93, .tr_ar = 0x8b,
	};
}

/* One thing is wrong with the context. */
#define REFUSE(field, value)                                                                       \
	do {                                                                                       \
		fill_context(&vcpu_context, 1);                                                    \
		vcpu_context.field = (value);                                                      \
		check_equal(#field " = " #value,                                                   \
			    vcpu_op(VCPUOP_initialise, 1, &vcpu_context), -EINVAL);                \
	} while (0)

#define REFUSE32(field, value)                                                                     \
	do {                                                                                       \
		fill_context32();                                                                  \
		context32.field = (value);                                                         \
		check_equal(#field " = " #value,                                                   \
			    vcpu_op(VCPUOP_initialise, 1, &context32), -EINVAL);                   \
	} while (0)

static void refuse64(void)
{
	REFUSE(mode, 2);
	REFUSE(pad, 1);
	REFUSE(rip, WILD);
	REFUSE(cr0, CR0_PE);
	REFUSE(cr4, 0);
	REFUSE(efer, EFER_NX);
	REFUSE(cr4, CR4_PAE | CR4_VMXE);
	REFUSE(efer, EFER_LME | 1 << 15);
}

static void refuse32(void)
{
	REFUSE32(pad1, 1);
	REFUSE32(pad2[2], 1);
	REFUSE32(cs_ar, 0x1c9b);
	REFUSE32(cs_ar, 0);
	REFUSE32(ss_ar, 0);
	REFUSE32(tr_ar, 0);
	REFUSE32(cs_ar, 0xc93);
	REFUSE32(ss_ar, 0xc91);
	REFUSE32(ss_ar, 0xc13);
	REFUSE32(ds_ar, 0xc99);
	REFUSE32(es_ar, 0xc82);
	REFUSE32(tr_ar, 0x82);
	REFUSE32(cs_limit, 0xff);
	REFUSE32(ss_ar, 0xcf3);
	REFUSE32(ds_ar, 0xcf3);
	REFUSE32(efer, 1 << 10);
	REFUSE32(cr4, CR4_VMXE);
	REFUSE32(efer, 1 << 15);
}

void guest_main(void)
{
	refuse64();
	refuse32();
	check_equal("a context that is nowhere",
		    vcpu_op(VCPUOP_initialise, 1, (void *)NO_MEMORY), -EFAULT);
	check_equal("up", vcpu_op(VCPUOP_up, 1, 0), -EINVAL);
	check_equal("is_up", vcpu_op(VCPUOP_is_up, 1, 0), 0);

	start_vcpus(2);
	await(&ran, 1);
	check_equal("initialise it again",
		    vcpu_op(VCPUOP_initialise, 1, &vcpu_context), -EEXIST);
	success();
}
#endif
