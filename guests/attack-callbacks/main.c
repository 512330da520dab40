/*
 * Callbacks, stacks and segment bases that lead out of the guest. XSA-215: Xen entered a failsafe
 * callback with a frame that reached out of the guest's address space, and overwrote its own
 * memory. XSA-193: the host crashes when it loads a segment base that is not canonical.
 *
 * The rule: what Xen keeps for later is canonical and of the guest's ring. A handler in Xen's part
 * is entered as the guest, so it faults. Success: refusals, and page faults with the U bit.
 */
#include "attack.h"

#define CALLBACKTYPE_nmi 4
#define CALLBACKOP_unregister 1
#define SEGBASE_FS 0
#define SEGBASE_GS_USER 1
#define SEGBASE_GS_KERNEL 2
#define XEN_CS 0xe008

extern char trap_stubs[];
static struct frame seen;
static unsigned long fault_address;

static struct trap_info traps[2] = { { .vector = 0x50, .flags = 3, .cs = KERNEL_CS } };

/* From a handler that is not there: go on as if it had been, and had returned from ring 3. */
static void note(struct frame *frame)
{
	extern char leave_user[];

	seen = *frame;
	fault_address = read_cr2();
	frame->ip = (unsigned long)leave_user;
	frame->cs = KERNEL_CS;
	frame->flags &= ~FLAGS_IF;
}

static void interrupt(void)
{
	asm volatile("int $0x50");
}

static void enter(unsigned long address, unsigned int cs)
{
	traps[0].address = address;
	traps[0].cs = cs;
	check_equal("set_trap_table",
		    hypercall(__HYPERVISOR_set_trap_table, (unsigned long)traps, 0, 0), 0);
	seen.vector = NO_TRAP;
	run_user(interrupt);
}

static void handlers_in_xen(void)
{
	set_handler(PF, note);
	set_handler(GP, note);
	set_handler(0x50, note);
	enter((unsigned long)XEN_UNMAPPED, KERNEL_CS);
	check_equal("a handler in Xen", seen.vector, PF);
	check_equal("where it faults", fault_address, (unsigned long)XEN_UNMAPPED);
	check_equal("as the guest's fetch", seen.error & ~0x10ul, 0);
	check_equal("whose kernel it is", seen.cs & 3, KERNEL_CS & 3);
	enter((unsigned long)trap_stubs + 16 * 0x50, XEN_CS);
#ifdef __x86_64__ /* the selector is not used */
	check_equal("Xen's selector", seen.vector, 0x50);
#else
	check_equal("Xen's selector", seen.vector, GP);
	check_equal("which is the error", seen.error, XEN_CS);
	check_equal("with the kernel's ring", seen.cs & 0xffff, XEN_CS | 1);
#endif
	set_handler(PF, NULL);
	set_handler(GP, NULL);
}

static long unregister(unsigned int type)
{
	struct callback_register op = { .type = type };

	return hypercall(__HYPERVISOR_callback_op, CALLBACKOP_unregister, (unsigned long)&op, 0);
}

static void not_to_be_forgotten(void)
{
	check_equal("no event callback", unregister(CALLBACKTYPE_event), -EINVAL);
	check_equal("no failsafe callback", unregister(CALLBACKTYPE_failsafe), -EINVAL);
	check_equal("a callback that is none", unregister(99), -ENOSYS);
}

#ifdef __x86_64__
static void not_canonical(void)
{
	static const unsigned long bad[] = { 1ul << 47, (-1ul << 47) - 1, 1ul << 63 };

	for (unsigned int i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct callback_register op = { .address = bad[i] };

		traps[0].address = bad[i];
		check_equal("set_trap_table",
			    hypercall(__HYPERVISOR_set_trap_table, (unsigned long)traps, 0, 0), -EINVAL);
		for (op.type = 0; op.type <= CALLBACKTYPE_nmi; op.type++)
			check_equal("callback_op", hypercall(__HYPERVISOR_callback_op, CALLBACKOP_register,
							     (unsigned long)&op, 0), -EINVAL);
		check_equal("nmi_op", hypercall(__HYPERVISOR_nmi_op, 0, (unsigned long)&bad[i], 0), -EINVAL);
		for (int base = SEGBASE_FS; base <= SEGBASE_GS_KERNEL; base++)
			check_equal("set_segment_base",
				    hypercall(__HYPERVISOR_set_segment_base, base, bad[i], 0), -EINVAL);
		TRY("wrmsr", "c"(0xc0000100), "a"((uint32_t)bad[i]), "d"(bad[i] >> 32));
		check_equal("wrmsr of FS_BASE", last_trap.vector, GP);
	}
}
#endif

/* XSA-12: reserved bits of DR7, which crash the host where they are loaded. */
static void breakpoints(void)
{
#ifdef __x86_64__ /* all that a 32-bit guest can say is below Xen's part of the real address space */
	check_equal("a breakpoint in Xen", hypercall(__HYPERVISOR_set_debugreg, 0,
						     (unsigned long)XEN_START, 0), -EPERM);
	check_equal("DR7's upper half", hypercall(__HYPERVISOR_set_debugreg, 7, 1ul << 32, 0), -EINVAL);
	check_equal("DR6's upper half", hypercall(__HYPERVISOR_set_debugreg, 6, 1ul << 32, 0), -EINVAL);
	check_equal("DR0", hypercall(__HYPERVISOR_get_debugreg, 0, 0, 0), 0);
#endif
	check_equal("DR7.GD", hypercall(__HYPERVISOR_set_debugreg, 7, 1 << 13, 0), -EPERM);
	check_equal("an I/O breakpoint", hypercall(__HYPERVISOR_set_debugreg, 7, 2 << 16 | 1, 0), -EPERM);
	check_equal("no such register", hypercall(__HYPERVISOR_set_debugreg, 8, 0, 0), -ENODEV);
}

void guest_main(void)
{
	handlers_in_xen();
	not_to_be_forgotten();
#ifdef __x86_64__
	not_canonical();
#endif
	breakpoints();
	success();
}
