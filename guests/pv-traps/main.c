/*
 * Traps of a PV guest. INT n goes by the guest's own gate and its DPL, from user mode to the stack
 * that stack_switch set. int 0x80 and int3 need no DPL. If the gate says so, events are masked.
 * iret restores the mask, and lets the next NMI in. A wrong ring, stack or mask corrupts a kernel
 * silently.
 *
 * Success: all of it.
 */
#include "pv.h"
#include "traps.h"

#define IDT 2	   /* in an error code */
#define EVENT 0xf3 /* the vector that does for the event callback */

void user_int80(void), user_int82(void), user_int21(void), user_int3(void);

static void from_user(const char *what, void (*code)(void), unsigned int vector,
		      unsigned long error)
{
	unsigned long top = (unsigned long)ring0_stack + sizeof(ring0_stack);

	run_user(code);
	check_equal(what, last_trap.vector, vector);
	check_equal("error code", last_trap.error, error);
	check_equal("user CS", last_trap.cs, USER_CS);
	check(last_trap.stack < top && last_trap.stack >= top - 64, "the kernel's stack");
}

static union {
	struct {
		uint8_t pending, mask; /* of vcpu 0 */
	};
	char page[4096];
} volatile shared_info __attribute__((aligned(4096)));
static unsigned int events, mask_in_handler;

static void note_mask(struct frame *frame)
{
	mask_in_handler = shared_info.mask;
	last_trap.flags = frame->flags;
}

static void skip_ud2(struct frame *frame)
{
	note_mask(frame);
	frame->ip += 2;
}

static void take_event(struct frame *frame)
{
	note_mask(frame);
	shared_info.pending = 0;
	events++;
}

static void upcalls(void)
{
	extern char trap_stubs[];
	struct callback_register callback = {
		.type = CALLBACKTYPE_event, .address = (unsigned long)trap_stubs + 16 * EVENT,
#ifndef __x86_64__
		.cs = KERNEL_CS,
#endif
	};

	set_handler(EVENT, take_event);
	check_equal("callback_op", hypercall(__HYPERVISOR_callback_op, CALLBACKOP_register,
					     (unsigned long)&callback, 0), 0);
	shared_info.pending = 1;
	hypercall(__HYPERVISOR_xen_version, XENVER_version, 0, 0);
	check_equal("events while masked", events, 0);
	shared_info.mask = 0;
	hypercall(__HYPERVISOR_xen_version, XENVER_version, 0, 0);
	check_equal("events when unmasked", events, 1);
	check_equal("mask in the callback", mask_in_handler, 1);
	check_equal("IF in its frame", last_trap.flags & FLAGS_IF, FLAGS_IF);
	check_equal("mask after it", shared_info.mask, 0);
}

static void masking(void)
{
	set_handler(UD, skip_ud2);
	for (int masks = 0; masks < 2; masks++) {
		set_gate_masks_events(UD, masks);
		shared_info.mask = 0;
		asm volatile("ud2" : : : "memory");
		check_equal("mask in the handler", mask_in_handler, masks);
		check_equal("IF in the frame", last_trap.flags & FLAGS_IF, FLAGS_IF);
		check_equal("mask after iret", shared_info.mask, 0);
		shared_info.mask = 1;
		asm volatile("ud2" : : : "memory");
		check_equal("IF in the frame, masked", last_trap.flags & FLAGS_IF, 0);
		check_equal("mask after iret, masked", shared_info.mask, 1);
	}
}

static unsigned int nmis, events_in_nmi;

static long send_nmi(void)
{
	return hypercall(__HYPERVISOR_vcpu_op, VCPUOP_send_nmi, 0, 0);
}

static void take_nmi(struct frame *frame)
{
	note_mask(frame);
	if (nmis++)
		return;
	shared_info.pending = 1;
	check_equal("an NMI in its handler", send_nmi(), 0);
	check_equal("which waits", nmis, 1);
	events_in_nmi = events;
}

/* Those that the guest sends itself: no others reach it. */
static void nmi(void)
{
	events = 0;
	set_handler(NMI, take_nmi);
	set_gate_masks_events(NMI, 1);
	shared_info.mask = 0;
	check_equal("send_nmi", send_nmi(), 0);
	check_equal("NMIs", nmis, 2);
	check_equal("mask in an NMI's handler", mask_in_handler, 1);
	check_equal("events in it", events_in_nmi, 0);
	check_equal("events after it", events, 1);
	check_equal("with an argument", hypercall(__HYPERVISOR_vcpu_op, VCPUOP_send_nmi, 0, 1), -EINVAL);
}

void guest_main(void)
{
	uint64_t bits = PTE_P | PTE_RW | PTE_US;

	from_user("int 0x80", user_int80, 0x80, 0);
	from_user("int3", user_int3, BP, 0);
	from_user("int 0x21 by a gate of DPL 0", user_int21, GP, 0x21 << 3 | IDT);
	set_gate_dpl(0x21, 3);
	from_user("int 0x21 by a gate of DPL 3", user_int21, 0x21, 0);
	from_user("a hypercall from user mode", user_int82, GP, 0x82 << 3 | IDT);
	TRY("int $0x22");
	check_equal("int 0x22 in the kernel, DPL 0", last_trap.vector, GP);
	check_equal("shared_info", update_va_mapping(&shared_info, start_info()->shared_info | bits), 0);
	upcalls();
	masking();
	nmi();
	success();
}
