/*
 * Xen takes the context of a new vcpu only if all of it is what the guest may have. What Xen
 * overlooks here, a guest could use against it, or would die of later, without a reason.
 *
 * Success: each field that is wrong is refused by its own rule (refusals.txt), and nothing is kept
 * of it: the right context is taken in the end.
 */
#ifdef GUEST_PV
#include "vcpus.h"

#define PAGE __attribute__((aligned(4096)))
#define PTE_READ (PTE_P | PTE_US | PTE_A)
#define WILD 0x800000000000ul
#define XENS 0xffff800000000000ul
#define UNMAPPED 0x40000000
#define BEYOND 0x7fff0000ul /* no frame is there */

static char writable[4096] PAGE, table[4096] PAGE;
static volatile unsigned int ran;

void vcpu_main(unsigned int vcpu)
{
	ran = vcpu;
	for (;;)
		yield();
}

static long initialise(void)
{
	return vcpu_op(VCPUOP_initialise, 1, &vcpu_context);
}

static unsigned long as_cr3(unsigned long mfn)
{
	return sizeof(long) == 8 ? mfn << 12 : mfn << 12 | mfn >> 20;
}

/* One thing is wrong with the context. */
#define REFUSE(field, value)                                                                       \
	do {                                                                                       \
		fill_context(&vcpu_context, 1);                                                    \
		vcpu_context.field = (value);                                                      \
		check_equal(#field " = " #value, initialise(), -EINVAL);                           \
	} while (0)

#ifdef __x86_64__
static void refuse_addresses(void)
{
	REFUSE(regs.ip, WILD);
	REFUSE(regs.sp, WILD);
	REFUSE(kernel_sp, WILD);
	REFUSE(fs_base, WILD);
	REFUSE(gs_base_kernel, WILD);
	REFUSE(gs_base_user, WILD);
	REFUSE(event_callback, WILD);
	REFUSE(syscall_callback, WILD);
	REFUSE(failsafe_callback, WILD);
	REFUSE(traps[0].address, WILD);
	REFUSE(traps[255].address, WILD);
	REFUSE(ldt_base, XENS);
}

static void refuse_user_mode(void)
{
	REFUSE(flags, 0); /* without page tables for it */
	REFUSE(control[1], 1ul << 40);
	REFUSE(control[1], virt_to_mfn(writable) << 12);
}
#else
static void refuse_addresses(void)
{
}

static void refuse_user_mode(void)
{
}
#endif

static void refuse_ldt(void)
{
	REFUSE(ldt_base, 0x1008);
	REFUSE(ldt_ents, 8193);
}

static void refuse_gdt(void)
{
	REFUSE(gdt_ents, 7169);
	fill_context(&vcpu_context, 1);
	vcpu_context.gdt_frames[0] = BEYOND;
	vcpu_context.gdt_ents = 1;
	check_equal("a GDT that is nowhere", initialise(), -EINVAL);
	vcpu_context.gdt_frames[0] = virt_to_mfn(writable);
	check_equal("a GDT that can be written", initialise(), -EINVAL);
	vcpu_context.gdt_frames[0] = virt_to_mfn(table);
	vcpu_context.gdt_frames[1] = virt_to_mfn(writable);
	vcpu_context.gdt_ents = 513;
	check_equal("a GDT of which a part can be written", initialise(), -EINVAL);
}

static void refuse_roots(void)
{
	REFUSE(control[3], as_cr3(BEYOND));
	REFUSE(control[3], as_cr3(virt_to_mfn(writable)));
	REFUSE(control[3], as_cr3(virt_to_mfn((void *)l1_entry(writable))));
}

void guest_main(void)
{
	if (vcpu_op(VCPUOP_is_up, 1, 0) < 0) {
		skip("there is one vcpu");
		return;
	}
	check_equal("protect the table",
		    update_va_mapping(table, (uint64_t)virt_to_mfn(table) << 12 | PTE_READ), 0);
	refuse_addresses();
	refuse_ldt();
	refuse_user_mode();
	refuse_gdt();
	refuse_roots();
	check_equal("a context that is not mapped",
		    vcpu_op(VCPUOP_initialise, 1, (void *)UNMAPPED), -EFAULT);
	check_equal("up", vcpu_op(VCPUOP_up, 1, 0), -EINVAL);
	check_equal("is_up", vcpu_op(VCPUOP_is_up, 1, 0), 0);
	/* No reference is left: the pages can be what they like. */
	check_equal("write the table again",
		    update_va_mapping(table, (uint64_t)virt_to_mfn(table) << 12 | PTE_READ | PTE_RW), 0);

	start_vcpus(2);
	await(&ran, 1);
	check_equal("initialise it again", initialise(), -EEXIST);
	check_equal("initialise the one that asks",
		    vcpu_op(VCPUOP_initialise, 0, &vcpu_context), -EEXIST);
	success();
}
#endif
